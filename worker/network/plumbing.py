"""The node's network as one synchronous thing: networks, port ledger and datapath kept in step.

Every change goes noun first (records on disk), kernel second, and is taken back when the kernel refuses. One thread uses
it, inside the node's network namespace; NodeNetwork is its face on the event loop.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from covey.errors import Conflict, Forbidden, Internal, NotFound
from worker.kernel.nft import NftError
from worker.network import balance, dns, plug
from worker.network.datapath import Datapath
from worker.network.endpoint import Attachment, Endpoint, EndpointRequest, PortBinding, Subnet
from worker.network.network import HOST_BINDING, PREDEFINED
from worker.network.networks import DEFAULT_BRIDGE, Networks
from worker.network.port_ledger import PortLedger
from worker.network.ports import Backend
from worker.network.probe import kernel_problems
from worker.network.records import boot_id
from worker.network.spare import Spare
from worker.network.topology import NameTaken
from worker.runtime.errors import remedy

log = logging.getLogger(__name__)
_IP_FREEBIND = 15


@dataclass(frozen=True)
class Listening:
    """What the event loop's side must serve: names, relayed ports, resolver addresses."""

    view: dns.View
    relays: Mapping[balance.Key, tuple[Backend, ...]]
    resolvers: frozenset[str]


class Plumbing:
    """See the module; the directories are as in NodeNetwork."""

    def __init__(self, data_dir: Path, table: str, default_bridge: str = DEFAULT_BRIDGE, run_dir: Path | None = None) -> None:
        self.networks = Networks(data_dir, default_bridge, run_dir=run_dir)
        self.ledger = PortLedger()
        self._datapath = Datapath(table, str(data_dir.resolve()))
        self._boot = boot_id()

    def start(self) -> None:
        """Loads records, holds ports again and repairs links and rules; running containers notice nothing."""
        self.networks.load(self._datapath.occupied(()))
        for attachment in self.networks.attachments.values():
            lost = self.ledger.restore(attachment.container_id, attachment.ports)
            if lost:
                log.warning(
                    "ports %s of container %s are also bound by another process; packets still go to the container",
                    ", ".join(lost),
                    attachment.container_id,
                )
        self._sync()

    def close(self) -> None:
        self.ledger.close()
        self._datapath.close()

    def listening(self) -> Listening:
        attachments = self.networks.exposed.values()
        networks = self.networks.networks.values()
        resolvers = frozenset(network.subnets[0].gateway for network in networks if network.user_defined)
        relays = balance.relayed(balance.backends(attachments))
        return Listening(dns.view(networks, attachments), relays, resolvers)

    def relay_socket(self, key: balance.Key) -> socket.socket | None:
        """A duplicate of the socket that holds a port; None where nothing is held (no IPv6 on the node)."""
        held = self.ledger.socket(key)
        return held.dup() if held is not None else None

    @staticmethod
    def resolver_sockets(address: str) -> tuple[socket.socket, socket.socket]:
        """UDP and TCP port 53 of a bridge address. Raises OSError when another resolver holds them."""
        made: list[socket.socket] = []
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                one = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
                made.append(one)
                if kind == socket.SOCK_STREAM:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
                one.bind((address, 53))
                one.setblocking(False)
        except BaseException:
            for one in made:
                one.close()
            raise
        return made[0], made[1]

    def create_network(self, name: str, driver: str, ipam: Sequence[Subnet], /, **options: Any) -> str:
        """Makes the network and its bridge; returns its id."""
        occupied = self._datapath.occupied([one.bridge for one in self.networks.networks.values() if one.bridge])
        network = self.networks.create(name, driver, ipam, occupied=occupied, **options)
        try:
            self._sync()
        except BaseException:
            self.networks.remove(network.id)
            self._try(self._sync)
            raise
        return network.id

    def remove_network(self, reference: str) -> None:
        self.networks.remove(reference)
        self._sync()

    def prune(self, matches: Callable[[dict[str, Any]], bool]) -> list[str]:
        """Removes networks without containers that ``matches`` accepts (given their inspect form); their names."""
        gone = []
        for network in list(self.networks.networks.values()):
            unused = network.name not in PREDEFINED and not self.networks.members(network.id)
            if unused and matches(self.networks.inspect(network.id)):
                self.networks.remove(network.id)
                gone.append(network.name)
        if gone:
            self._sync()
        return gone

    def reserve(
        self,
        container_id: str,
        name: str,
        requests: Sequence[EndpointRequest],
        ports: Sequence[PortBinding],
        dns: Sequence[str],
    ) -> Attachment:
        """Leases addresses and holds ports, all or nothing; a second call for the same container is a Conflict."""
        if container_id in self.networks.attachments:
            raise Conflict(f"container {container_id} is attached to its networks already; detach it first")
        self._check(requests)
        attachment = Attachment(container_id, name, self._boot, dns=tuple(dns))
        try:
            endpoints: list[Endpoint] = []
            for request in requests:
                endpoints.append(self.networks.connect(container_id, request, _next_interface(endpoints)))
            attachment = attachment.with_endpoints(endpoints)
            attachment = replace(attachment, ports=self._claim(attachment, ports))
            self.networks.hold(attachment)
            self._bridge(attachment)
        except BaseException:
            self.networks.forget(container_id)
            for network_id in self.networks.networks:
                self.networks.disconnect(container_id, network_id)
            self.ledger.release(container_id)
            self._try(self._sync)
            raise
        return attachment

    def _check(self, requests: Sequence[EndpointRequest]) -> None:
        found = [self.networks.find(request.network) for request in requests]
        for network in found:
            if len(found) > 1 and network.driver != "bridge":
                raise Conflict(f"container cannot be connected to {network.name} network and another network")
        if len({network.id for network in found}) < len(found):
            raise Forbidden("a container can have one endpoint on a network; name each network once")

    def _claim(self, attachment: Attachment, ports: Sequence[PortBinding]) -> Any:
        """Host ports for the endpoint that traffic from outside reaches; none on host, none and internal networks."""
        endpoint = attachment.gateway_endpoint(4)
        if endpoint is None or not ports:
            return ()
        default = self.networks.find(endpoint.network_id).options.get(HOST_BINDING, "")
        label = f"{attachment.name} ({endpoint.id})"
        return self.ledger.claim(attachment.container_id, ports, default_host_ip=default, label=label)

    def plug(self, container_id: str, where: int | str, spare: Spare | None = None) -> Attachment:
        """Links the reserved endpoints into a namespace; the container's ports answer from now on.

        ``spare``: a pair that is in the namespace already, for a container with one endpoint; any other gives it up. It is
        recorded first: a daemon that dies in between finds the links missing and makes them.
        """
        attachment = self._attachment(container_id)
        self._bridge(attachment)
        if spare is not None and not _one_bridge(attachment):
            self._datapath.unplug_spare(spare)
            spare = None
        plugged = replace(attachment, plugged=str(where))
        if spare is not None:
            plugged = plugged.with_endpoints([replace(attachment.endpoints[0], host_link=spare.host_link)])
        self.networks.keep(plugged)
        try:
            self._kernel("plug", lambda: self._link(where, plugged, spare))
            self._rules()
        except BaseException:
            self.networks.keep(attachment)
            raise
        return plugged

    def _link(self, where: int | str, attachment: Attachment, spare: Spare | None) -> None:
        if spare is None:
            self._datapath.plug(where, attachment, self.networks.networks.values())
        else:
            self._datapath.adopt(spare, attachment, self.networks.networks[attachment.endpoints[0].network_id])

    def prewire(self, where: int | str) -> Spare | None:
        """A pair of the default bridge in a sandbox's namespace; None while that network has no bridge."""
        return self._datapath.prewire(where, self.networks.find("bridge"))

    def discard(self, spare: Spare) -> None:
        self._datapath.discard(spare)

    def connect(self, container_id: str, name: str, request: EndpointRequest, where: int | str | None) -> Attachment:
        """Adds an endpoint to a container, at once in its namespace when ``where`` is given."""
        attachment = self.networks.attachments.get(container_id) or Attachment(container_id, name, self._boot)
        network = self.networks.find(request.network)
        if any(one.network_id == network.id for one in attachment.endpoints):
            raise Forbidden(f"endpoint with name {name} already exists in network {network.name}")
        for driver in {network.driver, *(one.driver for one in attachment.endpoints)} - {"bridge"}:
            raise Forbidden(f"container {container_id} cannot have a {driver} network and another; disconnect it first")
        endpoint = self.networks.connect(container_id, request, _next_interface(attachment.endpoints))
        grown = attachment.with_endpoints([*attachment.endpoints, endpoint])
        try:
            self.networks.keep(grown)
            self._bridge(grown)
            if where is not None:
                networks = self.networks.networks.values()
                self._kernel("plug", lambda: self._datapath.plug(where, grown, networks, [endpoint]))
                grown = replace(grown, plugged=str(where))
                self.networks.keep(grown)
                self._rules()
        except BaseException:
            self.networks.disconnect(container_id, network.id)
            self.networks.keep(attachment)
            self._try(self._sync)
            raise
        return grown

    def disconnect(self, container_id: str, reference: str, where: int | str | None) -> Attachment:
        """Takes one endpoint off a container; the remaining gateway becomes its default route."""
        network = self.networks.find(reference)
        attachment = self._attachment(container_id)
        left = [one for one in attachment.endpoints if one.network_id != network.id]
        gone = [one for one in attachment.endpoints if one.network_id == network.id]
        if not gone:
            raise Forbidden(f"container {container_id} is not connected to network {network.name}")
        if network.driver != "bridge":
            raise Conflict(f"container cannot be disconnected from {network.name} network")
        shrunk = attachment.with_endpoints(left)
        self._datapath.unplug(gone)
        self.networks.disconnect(container_id, network.id)
        self.networks.keep(shrunk)
        if where is not None:
            self._kernel("reroute", lambda: plug.reroute(where, shrunk))
        self._rules()
        return shrunk

    def serve(self, container_id: str, serving: bool) -> None:
        """Puts a container into, or takes it out of, the sets of its published ports and its service's name."""
        attachment = self._attachment(container_id)
        if attachment.serving != serving:
            self.networks.keep(replace(attachment, serving=serving))
            self._rules()

    def withdraw(self, container_id: str) -> None:
        """Out of balance for good, its shared ports free for another group: the container is about to stop."""
        attachment = self.networks.attachments.get(container_id)
        if attachment is not None:
            own = tuple(port for port in attachment.ports if port.group is None)
            self.networks.keep(replace(attachment, serving=False, ports=own))
            self._rules()
            self.ledger.release(container_id, shared_only=True)

    def detach(self, container_id: str) -> None:
        """Rules, ports and leases of a container, gone, its links retired; nothing when there are none."""
        attachment = self.networks.attachments.get(container_id)
        if attachment is None:
            return
        self._datapath.retire(attachment.endpoints)
        self.networks.forget(container_id)
        self._rules()
        self.ledger.release(container_id)

    def sweep(self) -> None:
        """Removes what is left of the links of detached containers."""
        networks, attachments = self.networks.networks.values(), self.networks.attachments.values()
        self._kernel("network", lambda: self._datapath.sweep(networks, attachments))

    def reconcile(self, live: Mapping[str, int | str]) -> list[str]:
        """After a restart: ``live`` is every container that runs, with its pid or namespace path.

        The others are detached; links that a live one lacks are made again. Returns what could not be repaired.
        """
        for container_id in [one for one in self.networks.attachments if one not in live]:
            self.detach(container_id)
        failures = []
        missing = set(self._sync())
        for container_id, where in live.items():
            attachment = self.networks.attachments.get(container_id)
            lacking = [one for one in attachment.endpoints if one.host_link in missing] if attachment else []
            if attachment is None or not lacking:
                continue
            try:
                self._datapath.plug(where, attachment, self.networks.networks.values(), lacking)
            except OSError as error:
                failures.append(f"container {container_id}: {error}")
        return failures

    def statistics(self, container_id: str) -> dict[str, dict[str, int]]:
        return self._datapath.statistics(self._attachment(container_id))

    def teardown(self) -> None:
        """Everything this node has in the kernel, gone; records of networks stay."""
        for container_id in list(self.networks.attachments):
            self.networks.forget(container_id)
            self.ledger.release(container_id)
        self._datapath.teardown()

    def _attachment(self, container_id: str) -> Attachment:
        attachment = self.networks.attachments.get(container_id)
        if attachment is None:
            raise NotFound(f"container {container_id} has no network attachment; reserve one first")
        return attachment

    def _sync(self) -> list[str]:
        """Links, then rules; the missing host links."""
        networks, attachments = self.networks.networks.values(), self.networks.attachments.values()
        missing: list[str] = []
        self._kernel("network", lambda: missing.extend(self._datapath.links(networks, attachments)))
        self._rules()
        return missing

    def _rules(self) -> None:
        known = self.networks
        self._kernel(
            "network",
            lambda: self._datapath.rules(known.networks.values(), known.attachments.values(), known.exposed.values()),
        )

    def _bridge(self, attachment: Attachment) -> None:
        """All links are looked through only when a bridge that this container needs is not there."""
        used = {endpoint.network_id for endpoint in attachment.endpoints}
        if not self._datapath.bridged([self.networks.networks[network_id] for network_id in used]):
            self._sync()

    def _kernel(self, what: str, function: Callable[[], None]) -> None:
        """Runs a kernel step; a failure is told with what the kernel lacks, if that is the cause."""
        try:
            function()
        except NameTaken as error:
            raise Conflict(str(error)) from error
        except (OSError, NftError) as error:
            words = remedy(error) if isinstance(error, OSError) else ""
            problems = [] if words else kernel_problems()
            raise Internal(f"{what}: {error}{words}" + (f"; {'; '.join(problems)}" if problems else "")) from error

    @staticmethod
    def _try(function: Callable[[], object]) -> None:
        try:
            function()
        except Exception as error:
            log.debug("while taking back: %s", error)


def _one_bridge(attachment: Attachment) -> bool:
    return len(attachment.endpoints) == 1 and attachment.endpoints[0].driver == "bridge"


def _next_interface(endpoints: Sequence[Endpoint]) -> str:
    used = {one.interface for one in endpoints}
    return next(name for name in (f"eth{number}" for number in range(len(used) + 1)) if name not in used)
