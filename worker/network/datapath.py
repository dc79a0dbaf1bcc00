"""Brings the kernel of one network namespace to what the networks and attachments say: links, sysctls, nft table.

Synchronous; everything is made and used by one thread. It compares and applies; what is wanted is told to it. It is lazy:
a node without bridge networks in use has neither table nor bridge nor forwarding changed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import secrets
from collections.abc import Collection, Iterable
from dataclasses import replace

from worker.kernel.conntrack import forget_flows
from worker.kernel.netlink import Netlink
from worker.kernel.netlink_codec import delete_link, link_local
from worker.kernel.nft import Nft, NftError
from worker.network import balance, bridge, ports, topology
from worker.network.endpoint import Attachment, Endpoint
from worker.network.network import ICC, MASQUERADE, Network
from worker.network.networks import Occupied
from worker.network.plug import Port, plug, unplug
from worker.network.spare import Spare, adopt, prewire

log = logging.getLogger(__name__)


class Datapath:
    """Links and rules of one Covey node; ``table`` names its nft table and with ``owner`` its link group."""

    def __init__(self, table: str, owner: str) -> None:
        self._table = table
        self._group = int.from_bytes(hashlib.sha256(f"{table}\0{owner}".encode()).digest()[:4]) >> 1 | 1
        self._netlink = Netlink()
        self._nft: Nft | None = None
        self._applied: ports.Flat | None = None
        self._made: set[str] = set()
        self._retired: set[str] = set()
        self._spares: set[str] = set()
        self._udp: dict[balance.Key, tuple[ports.Backend, ...]] = {}

    def close(self) -> None:
        """Lets go of the kernel's sockets; links and rules stay, as the containers do."""
        self._netlink.close()
        if self._nft is not None:
            self._nft.close()

    def occupied(self, bridges: Collection[str]) -> Occupied:
        """Routes and connected subnets of the namespace, without those of our own ``bridges``."""
        names = {link.index: link.name for link in self._netlink.links()}
        foreign = [route for route in self._netlink.routes() if names.get(route.index) not in bridges]
        routes = [route.destination for route in foreign if not route.destination.is_link_local]
        connected = [
            one.address.network
            for one in self._netlink.addresses()
            if names.get(one.index) not in bridges and not one.address.ip.is_link_local
        ]
        return Occupied([*routes, *connected], connected)

    def links(self, networks: Iterable[Network], attachments: Collection[Attachment]) -> list[str]:
        """Makes the bridges and sets the ports right; returns host links that are missing. Raises OSError, NameTaken."""
        seen = bridge.observe(self._netlink, self._group)
        self._made |= seen.owned
        wanted = _wanted(self._in_use(networks, attachments), attachments)
        if not wanted.bridges and not seen.owned:
            return []
        self._retired &= seen.ports.keys()
        self._spares &= seen.ports.keys()
        spared = replace(seen, owned=seen.owned - self._retired - self._spares)
        bridge.apply(self._netlink, topology.operations(wanted, spared), self._group)
        for name in wanted.bridges:
            bridge.localize(name)
        self._made |= wanted.bridges.keys()
        if wanted.bridges:
            bridge.sysctl("ipv4/ip_forward", "1")
        if any(one.version == 6 for made in wanted.bridges.values() for one in made.addresses):
            bridge.sysctl("ipv6/conf/all/forwarding", "1")
        return topology.missing_ports(wanted, seen)

    def bridged(self, networks: Iterable[Network]) -> bool:
        """True if the bridge of each bridge network is there and known to the rules."""
        names = [one.bridge for one in networks if one.driver == "bridge"]
        return all(name in self._made and self._netlink.index(name) is not None for name in names)

    def rules(self, networks: Iterable[Network], attachments: Collection[Attachment], exposed: Collection[Attachment]) -> None:
        """Brings the nft table up to date: by its difference, whole when that is unknown or refused. Raises NftError.

        ``exposed``: those of the attachments that may have ports.
        """
        bridges = [_bridge_rules(network) for network in self._in_use(networks, attachments)]
        sets = balance.backends(exposed)
        flat = ports.flatten(bridges, balance.published(sets))
        if self._nft is None:
            if not bridges:
                self._drop_stale_table()
                return
            self._nft = Nft()
        if self._applied is None:
            self._nft.run(ports.render(self._table, flat))
        else:
            commands = ports.changes(self._table, self._applied, flat)
            try:
                if commands:
                    self._nft.run(commands)
            except NftError as error:
                log.warning("nft table %s was changed by someone else (%s); it is written anew", self._table, error)
                self._nft.run(ports.render(self._table, flat))
        self._applied = flat
        self._forget_flows(sets)

    def _forget_flows(self, sets: dict[balance.Key, tuple[ports.Backend, ...]]) -> None:
        """UDP flows to ports of this node whose server is no longer, or not yet, the one that answers there."""
        udp = {key: held for key, held in sets.items() if key[0] == "udp"}
        before, self._udp = self._udp, udp
        changed = {key[2] for key, held in before.items() if set(held) - set(udp.get(key, ()))}
        changed |= {key[2] for key, held in udp.items() if held and not before.get(key)}
        if not changed:
            return
        local = {one.address.ip for one in self._netlink.addresses()}
        allowed: dict[int, set[object]] = {port: set() for port in changed}
        for (_, _, port), held in udp.items():
            allowed.setdefault(port, set()).update(address for address, _ in held)
        try:
            forget_flows(
                lambda flow: flow.port in changed and flow.destination in local and flow.server not in allowed[flow.port]
            )
        except OSError as error:
            log.warning("UDP flows of ports %s keep their old way until they fall silent: %s", sorted(changed), error)

    def _in_use(self, networks: Iterable[Network], attachments: Collection[Attachment]) -> list[Network]:
        """Bridge networks that need a link: every user-defined one, the default one from its first container on."""
        bridged = [one for one in networks if one.driver == "bridge"]
        if all(one.user_defined or one.bridge in self._made for one in bridged):
            return bridged
        members = {endpoint.network_id for attachment in attachments for endpoint in attachment.endpoints}
        return [one for one in bridged if one.user_defined or one.id in members or one.bridge in self._made]

    def _drop_stale_table(self) -> None:
        """What a daemon that never came to clean up left; a node without nftables has nothing to drop."""
        try:
            with Nft() as nft:
                if f"table inet {self._table}\n" in nft.run("list tables") + "\n":
                    nft.run(ports.delete(self._table))
        except NftError as error:
            log.debug("no nft table to drop: %s", error)

    def plug(
        self,
        where: int | str,
        attachment: Attachment,
        networks: Iterable[Network],
        only: Collection[Endpoint] | None = None,
    ) -> None:
        """Links of the attachment's endpoints into the namespace of a pid or path. Raises OSError."""
        made = {one.id: _port(one) for one in networks if one.driver == "bridge"}
        plug(self._netlink, where, attachment, made, self._group, None if only is None else list(only))

    def prewire(self, where: int | str, network: Network) -> Spare | None:
        """A pair on the network's bridge for whoever needs one; None while that bridge is not in use. Raises OSError."""
        if network.bridge not in self._made:
            return None
        host_link = f"cv{secrets.token_hex(6)[:11]}"
        spare = prewire(self._netlink, where, host_link, _port(network), self._group)
        self._spares.add(host_link)
        return spare

    def adopt(self, spare: Spare, attachment: Attachment, network: Network) -> None:
        """The spare becomes the link of the attachment's only endpoint. Raises OSError."""
        self._spares.discard(spare.host_link)
        adopt(self._netlink, spare, attachment, _port(network))

    def unplug_spare(self, spare: Spare) -> None:
        """Takes the pair out of a namespace that shall have other links."""
        self._spares.discard(spare.host_link)
        spare.inside.close()
        self._netlink.run(delete_link(spare.host_link))

    def discard(self, spare: Spare) -> None:
        """A spare that nobody takes; its namespace may be gone already, and the pair with it."""
        spare.inside.close()
        self._spares.discard(spare.host_link)
        self._retired.add(spare.host_link)

    def retire(self, endpoints: Iterable[Endpoint]) -> None:
        """Leaves links of an ended container to the kernel, which removes them with its namespace.

        To remove one takes the kernel tens of milliseconds, and in its own clean-up it takes many at once. `links` spares
        them until `sweep`.
        """
        self._retired |= {one.host_link for one in endpoints if one.host_link}

    def sweep(self, networks: Iterable[Network], attachments: Collection[Attachment]) -> None:
        """Removes the retired links that are still there: someone holds their namespace."""
        if self._retired:
            self._retired.clear()
            self.links(networks, attachments)

    def unplug(self, endpoints: Iterable[Endpoint]) -> None:
        for one in endpoints:
            unplug(self._netlink, one)

    def statistics(self, attachment: Attachment) -> dict[str, dict[str, int]]:
        """Counters of each interface as the container sees them (the host's side, swapped), in Docker's names."""
        found = {link.name: link.statistics for link in self._netlink.links()}
        swapped = {"rx": "tx", "tx": "rx"}
        return {
            one.interface: {f"{swapped[key[:2]]}{key[2:]}": value for key, value in found[one.host_link].items()}
            for one in attachment.endpoints
            if one.host_link in found
        }

    def teardown(self) -> None:
        """Removes every link of ours and the table. Forwarding stays on: others may have come to rely on it."""
        self._made.clear()
        self._retired.clear()
        seen = bridge.observe(self._netlink, self._group)
        bridge.apply(self._netlink, topology.operations(topology.Wanted({}, {}), seen), self._group)
        if self._nft is not None:
            self._nft.run(ports.delete(self._table))
            self._applied = None
        else:
            self._drop_stale_table()


def _wanted(used: Collection[Network], attachments: Collection[Attachment]) -> topology.Wanted:
    names = {network.id: network.bridge for network in used}
    bridges = {one.bridge: topology.Bridge(one.mac, one.mtu, _gateways(one)) for one in used}
    plugged = [one for one in attachments if one.plugged]
    links = {one.host_link: names[one.network_id] for held in plugged for one in held.endpoints if one.host_link}
    return topology.Wanted(bridges, links)


def _gateways(network: Network) -> frozenset[topology.Interface]:
    """A bridge's addresses: its gateways, and with IPv6 the link-local address it asks its neighbours from."""
    found = {ipaddress.ip_interface(f"{one.gateway}/{one.subnet.partition('/')[2]}") for one in network.subnets}
    return frozenset(found | {link_local(network.mac)} if network.enable_ipv6 else found)


def _port(network: Network) -> Port:
    return Port(network.bridge, network.mtu, not network.flag(ICC))


def _bridge_rules(network: Network) -> ports.BridgeRules:
    subnets = tuple(ipaddress.ip_network(one.subnet) for one in network.subnets)
    return ports.BridgeRules(network.bridge, subnets, network.internal, network.flag(MASQUERADE))
