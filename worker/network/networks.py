"""The network noun of a node: which networks there are, their subnets, and which endpoint holds which address on them.

Synchronous, on disk and in memory; it makes no link and no rule (datapath.py does, from what is here). What the node's
own routes occupy is told to it. Errors are Docker's, in Docker's words.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from covey.entropy import container_id as random_id
from covey.errors import Conflict, Forbidden, InvalidArgument, NotFound, NotImplementedYet
from worker.network import records
from worker.network.endpoint import Attachment, Endpoint, EndpointRequest, Subnet
from worker.network.ipam import AnyNetwork, Pool, checked_subnet, choose_subnet, default_subnets, ula_subnets
from worker.network.network import BRIDGE_NAME, MTU, PREDEFINED, Network

DEFAULT_BRIDGE = "covey0"
DRIVERS = {"bridge": "bridge", "host": "host", "none": "null", "null": "null", "": "bridge"}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_LINK_NAME = re.compile(r"[^\s/:]{1,15}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True)
class Occupied:
    """What the node itself uses: ``routes`` are avoided by chosen subnets, ``connected`` also refused to users."""

    routes: Sequence[AnyNetwork] = ()
    connected: Sequence[AnyNetwork] = ()


class Networks:
    """Networks (under ``data_dir``) and attachments (under ``run_dir``) of a node; one thread uses it."""

    def __init__(self, data_dir: Path, default_bridge: str = DEFAULT_BRIDGE, *, run_dir: Path | None = None) -> None:
        self._networks_dir = data_dir / "networks"
        self._attachments_dir = (run_dir or data_dir) / "attachments"
        for directory in (self._networks_dir, self._attachments_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._default_bridge = default_bridge
        self._ula = int(hashlib.sha256(f"{records.boot_id()}{data_dir}".encode()).hexdigest()[:10], 16)
        self.networks: dict[str, Network] = {}
        self.attachments: dict[str, Attachment] = {}
        self.exposed: dict[str, Attachment] = {}
        """Of these, those that have names or ports on the node: what is served is worked out anew at each change, from
        them alone."""
        self._pools: dict[str, list[Pool]] = {}

    def load(self, occupied: Occupied) -> None:
        """Reads the records and makes the predefined networks that are missing; leases come back with their owners."""
        for record in records.read_all(self._networks_dir):
            self._adopt(Network.from_json(record))
        for name in PREDEFINED:
            if not any(network.name == name for network in self.networks.values()):
                self._make_predefined(name, occupied)
        boot = records.boot_id()
        for record in records.read_all(self._attachments_dir):
            attachment = Attachment.from_json(record)
            if attachment.boot != boot:
                records.remove(self._attachment_path(attachment.container_id))
                continue
            self._remember(attachment)
            for endpoint in attachment.endpoints:
                for pool in self._pools.get(endpoint.network_id, []):
                    address = endpoint.ipv4 if pool.subnet.version == 4 else endpoint.ipv6
                    if address:
                        pool.restore(attachment.container_id, address)

    def _make_predefined(self, name: str, occupied: Occupied) -> None:
        subnets: tuple[Subnet, ...] = ()
        if name == "bridge":
            subnet = choose_subnet(default_subnets(), [*self._subnets(), *occupied.routes])
            subnets = (Subnet(str(subnet), str(subnet[1])),)
        self._save(
            Network(
                id=random_id(),
                name=name,
                driver=DRIVERS[name],
                created=_now(),
                subnets=subnets,
                bridge=self._default_bridge if name == "bridge" else "",
            )
        )

    def create(
        self,
        name: str,
        driver: str = "bridge",
        ipam: Sequence[Subnet] = (),
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        *,
        internal: bool = False,
        attachable: bool = False,
        enable_ipv6: bool = False,
        network_id: str | None = None,
        scope: str = "local",
        occupied: Occupied | None = None,
    ) -> Network:
        """A new network; ``network_id`` and ``scope`` are for networks of the cluster that are bridges on each node.

        Raises InvalidArgument, Conflict (name exists), Forbidden (predefined, overlap), NotFound (driver).
        """
        options = dict(options or {})
        self._check(name, driver, options)
        network_id = network_id or random_id()
        if network_id in self.networks:
            raise Conflict(f"network with id {network_id} already exists")
        bridge = options.get(BRIDGE_NAME) or f"cv-{network_id[:12]}"
        for other in self.networks.values():
            if other.bridge == bridge:
                raise Forbidden(
                    f"cannot create network {network_id} ({bridge}): conflicts with network {other.id} ({bridge}): "
                    "networks have same bridge name"
                )
        subnets = self._settle(ipam, enable_ipv6, occupied or Occupied())
        network = Network(
            id=network_id,
            name=name,
            driver="bridge",
            created=_now(),
            scope=scope,
            subnets=subnets,
            bridge=bridge,
            internal=internal,
            attachable=attachable,
            enable_ipv6=enable_ipv6,
            options=options,
            labels=dict(labels or {}),
            configured=bool(ipam),
        )
        self._save(network)
        return network

    def _check(self, name: str, driver: str, options: Mapping[str, str]) -> None:
        if not _NAME.fullmatch(name):
            raise InvalidArgument(f'invalid network name "{name}": only [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed')
        if name in (*PREDEFINED, "default"):
            raise Forbidden(f"operation is not permitted on predefined {name} network")
        if driver == "overlay":
            raise NotImplementedYet(f"network {name}: the overlay driver is not there yet; use --driver bridge")
        if driver not in DRIVERS:
            raise NotFound(f'plugin "{driver}" not found: network {name} can have the driver bridge')
        if DRIVERS[driver] != "bridge":
            raise Forbidden(f'only one instance of "{driver}" network is allowed')
        if any(network.name == name for network in self.networks.values()):
            raise Conflict(f"network with name {name} already exists")
        if BRIDGE_NAME in options and not _LINK_NAME.fullmatch(options[BRIDGE_NAME]):
            raise InvalidArgument(f'invalid option {BRIDGE_NAME}="{options[BRIDGE_NAME]}": 1 to 15 characters of a link name')
        if MTU in options and not (options[MTU].isdigit() and 68 <= int(options[MTU]) <= 65535):
            raise InvalidArgument(f'invalid option {MTU}="{options[MTU]}": a number from 68 to 65535')

    def _settle(self, given: Sequence[Subnet], enable_ipv6: bool, occupied: Occupied) -> tuple[Subnet, ...]:
        """The subnets of a new network: the user's, and chosen ones for each family that has none."""
        settled: list[Subnet] = []
        for one in given:
            mine = [ipaddress.ip_network(other.subnet) for other in settled]
            settled.append(checked_subnet(one, [*self._subnets(), *mine], occupied.connected))
        versions = {ipaddress.ip_network(one.subnet).version for one in settled}
        if len(versions) < len(settled):
            raise InvalidArgument("bridge driver doesn't support multiple subnets of one address family on a network")
        if 6 in versions and not enable_ipv6:
            raise InvalidArgument("an IPv6 subnet needs EnableIPv6; create the network with --ipv6")
        taken = [*self._subnets(), *occupied.routes]
        candidates: dict[int, Callable[[], Iterable[AnyNetwork]]] = {4: default_subnets}
        if enable_ipv6:
            candidates[6] = lambda: ula_subnets(self._ula)
        for version, source in candidates.items():
            if version not in versions:
                subnet = choose_subnet(source(), taken)
                settled.append(Subnet(str(subnet), str(subnet[1])))
        return tuple(sorted(settled, key=lambda one: ipaddress.ip_network(one.subnet).version))

    def _subnets(self) -> list[AnyNetwork]:
        return [pool.subnet for pools in self._pools.values() for pool in pools]

    def find(self, reference: str) -> Network:
        """By full id, name, or id prefix, in this order. Raises NotFound, or InvalidArgument for an ambiguous prefix."""
        reference = "bridge" if reference in ("", "default") else reference
        if reference in self.networks:
            return self.networks[reference]
        for match in (
            [one for one in self.networks.values() if one.name == reference],
            [one for one in self.networks.values() if one.id.startswith(reference)],
        ):
            if len(match) > 1:
                raise InvalidArgument(f"network {reference} is ambiguous ({len(match)} matches found); give the full id")
            if match:
                return match[0]
        raise NotFound(f"network {reference} not found")

    def inspect(self, reference: str) -> dict[str, Any]:
        return self.find(reference).inspect(self.attachments.values())

    def members(self, network_id: str) -> list[tuple[Attachment, Endpoint]]:
        """Who is on the network, with which endpoint."""
        return [
            (attachment, endpoint)
            for attachment in self.attachments.values()
            for endpoint in attachment.endpoints
            if endpoint.network_id == network_id
        ]

    def remove(self, reference: str) -> Network:
        """Raises Forbidden (403) for predefined networks and those in use, NotFound."""
        network = self.find(reference)
        if network.name in PREDEFINED:
            raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
        members = self.members(network.id)
        if members:
            names = ", ".join(f'name:"{attachment.name}" id:"{endpoint.id[:12]}"' for attachment, endpoint in members)
            raise Forbidden(
                f"error while removing network: network {network.name} id {network.id} has active endpoints ({names})"
            )
        records.remove(self._networks_dir / f"{network.id}.json")
        del self.networks[network.id], self._pools[network.id]
        return network

    def connect(self, container_id: str, request: EndpointRequest, interface: str) -> Endpoint:
        """An endpoint with its addresses leased; nothing is leased when it raises."""
        network = self.find(request.network)
        self._check_request(network, request)
        endpoint_id = random_id()
        common: dict[str, Any] = {
            "id": endpoint_id,
            "network_id": network.id,
            "network_name": network.name,
            "driver": network.driver,
            "aliases": tuple(dict.fromkeys(request.aliases)),
            "links": tuple(request.links),
            "service": request.service,
            "gw_priority": request.gw_priority,
            "requested_ipv4": request.ipv4 or "",
            "requested_ipv6": request.ipv6 or "",
            "internal": network.internal,
            "resolver": network.subnets[0].gateway if network.user_defined else "",
        }
        if network.driver != "bridge":
            return Endpoint(**common)
        leased: dict[int, tuple[str, int, str]] = {4: ("", 0, ""), 6: ("", 0, "")}
        try:
            for pool in self._pools[network.id]:
                version = pool.subnet.version
                address = pool.lease(container_id, request.ipv4 if version == 4 else request.ipv6)
                leased[version] = (str(address), pool.subnet.prefixlen, "" if network.internal else str(pool.gateway))
        except BaseException:
            self.disconnect(container_id, network.id)
            raise
        mac = request.mac or "02:42:" + ipaddress.IPv4Address(leased[4][0]).packed.hex(":")
        return Endpoint(
            **common,
            interface=interface,
            host_link=f"cv{endpoint_id[:11]}",
            mac=mac,
            ipv4=leased[4][0],
            ipv4_prefix=leased[4][1],
            gateway4=leased[4][2],
            ipv6=leased[6][0],
            ipv6_prefix=leased[6][1],
            gateway6=leased[6][2],
        )

    def _check_request(self, network: Network, request: EndpointRequest) -> None:
        if (request.ipv4 or request.ipv6) and not network.user_defined:
            raise InvalidArgument(
                f"network {network.name}: user specified IP address is supported on user defined networks only"
            )
        if (request.ipv4 or request.ipv6) and not network.configured:
            raise InvalidArgument(
                f"network {network.name}: user specified IP address is supported only when connecting to networks with "
                "user configured subnets"
            )
        if request.ipv6 and not network.enable_ipv6:
            raise InvalidArgument(f"network {network.name} has no IPv6 subnet for address {request.ipv6}")
        if request.mac is not None and not _MAC.fullmatch(request.mac.lower()):
            raise InvalidArgument(f"invalid MAC address: {request.mac}; give six hexadecimal pairs like 02:42:ac:11:00:02")

    def disconnect(self, container_id: str, network_id: str) -> None:
        """Frees the container's leases on the network; nothing when there are none."""
        for pool in self._pools.get(network_id, []):
            pool.release(container_id)

    def keep(self, attachment: Attachment) -> None:
        """Writes the attachment (the journal of its leases) and remembers it."""
        records.write(self._attachment_path(attachment.container_id), attachment, sync=False)
        self._remember(attachment)

    def hold(self, attachment: Attachment) -> None:
        """Remembers an attachment of which nothing is in the kernel yet: it means nothing to another life of the daemon."""
        self._remember(attachment)

    def _remember(self, attachment: Attachment) -> None:
        self.attachments[attachment.container_id] = attachment
        networks = (self.networks.get(one.network_id) for one in attachment.endpoints)
        if attachment.ports or any(network is not None and network.user_defined for network in networks):
            self.exposed[attachment.container_id] = attachment
        else:
            self.exposed.pop(attachment.container_id, None)

    def forget(self, container_id: str) -> Attachment | None:
        """Frees all leases of a container and removes its record; None when it had none."""
        attachment = self.attachments.pop(container_id, None)
        self.exposed.pop(container_id, None)
        if attachment is not None:
            for endpoint in attachment.endpoints:
                self.disconnect(container_id, endpoint.network_id)
            records.remove(self._attachment_path(container_id))
        return attachment

    def leases(self, reference: str) -> dict[str, str]:
        """Address to container id on one network."""
        found: dict[str, str] = {}
        for pool in self._pools[self.find(reference).id]:
            found.update(pool.leases())
        return found

    def _attachment_path(self, container_id: str) -> Path:
        return self._attachments_dir / f"{container_id}.json"

    def _save(self, network: Network) -> None:
        records.write(self._networks_dir / f"{network.id}.json", network.to_json(), sync=True)
        self._adopt(network)

    def _adopt(self, network: Network) -> None:
        self.networks[network.id] = network
        self._pools[network.id] = [Pool(network.name, one) for one in network.subnets]


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
