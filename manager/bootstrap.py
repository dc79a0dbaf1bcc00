"""The first moment of a cluster: its object, its CA, its tokens and its first node, in one transaction.

It decides nothing about a cluster that exists, but gives its first node its certificate again when asked by the daemon of
that node, whose earlier request may have been cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from covey.clock import Clock
from covey.entropy import object_id
from covey.errors import Conflict, InvalidArgument
from covey.model.objects import Cluster, Node
from manager.ca.authority import make_root, sign_node
from manager.ca.tokens import fresh_secrets
from manager.store.codec import encode
from manager.store.interface import Put, Store, absent
from manager.store.keys import Keys
from manager.store.mirror import Mirror

AVAILABILITIES = ("active", "pause", "drain")


def read_node_id(path: Path) -> str:
    """The node this manager is, "" for none yet."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def write_node_id(path: Path, node_id: str) -> None:
    """Remember the node; before the cluster knows it, so that a crash between the two leaves no orphan."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(node_id + "\n")
    temporary.replace(path)


async def bootstrap(
    body: Mapping[str, Any], store: Store, mirror: Mirror, keys: Keys, clock: Clock, path: Path, managers: Sequence[str]
) -> dict[str, Any]:
    """Answer of ``POST /covey/bootstrap``. Raises InvalidArgument, or Conflict when there is a cluster of somebody else's."""
    request_pem = str(body.get("RequestPEM") or "")
    if not request_pem:
        raise InvalidArgument("RequestPEM is required: a certificate request (PKCS #10) of this node in PEM")
    await mirror.wait_current()
    cluster = cast("Cluster | None", mirror.objects("cluster").get("cluster"))
    if cluster is not None:
        node = cast("Node | None", mirror.objects("node").get(read_node_id(path)))
        if node is None:
            raise Conflict(
                f"the store holds cluster {cluster.id}, which this node is no part of: join it, or use another store"
            )
        return _reply(cluster, node, request_pem, clock.now(), managers)
    now = clock.now()
    cluster, node = _first_objects(body, now)
    reply = _reply(cluster, node, request_pem, now, managers)
    write_node_id(path, node.id)
    cluster_key, node_key = keys.key("cluster"), keys.key("node", node.id)
    result = await store.txn(
        [absent(cluster_key), absent(node_key)], [Put(cluster_key, encode(cluster)), Put(node_key, encode(node))]
    )
    if not result.ok:
        raise Conflict("another manager has made a cluster in this store at the same moment: join that one")
    await mirror.wait_revision(result.revision)
    return reply


def _first_objects(body: Mapping[str, Any], now: float) -> tuple[Cluster, Node]:
    ca_key, ca_certificate = make_root(now)
    defaults = Cluster(id="")
    cluster = Cluster(
        id=object_id(),
        spec=dict(body.get("Spec") or {}),
        created_at=now,
        updated_at=now,
        ca_certificate=ca_certificate,
        ca_key=ca_key,
        tokens=fresh_secrets(),
        address_pools=tuple(body.get("DefaultAddrPool") or ()) or defaults.address_pools,
        subnet_size=int(body.get("SubnetSize") or 0) or defaults.subnet_size,
        data_path_port=int(body.get("DataPathPort") or 0) or defaults.data_path_port,
    )
    availability = body.get("Availability") or "active"
    if availability not in AVAILABILITIES:
        raise InvalidArgument(f"Availability: {availability!r} is none of {', '.join(AVAILABILITIES)}")
    return cluster, Node(id=object_id(), role="manager", availability=availability, created_at=now, updated_at=now)


def _reply(cluster: Cluster, node: Node, request_pem: str, now: float, managers: Sequence[str]) -> dict[str, Any]:
    certificate = sign_node(cluster.ca_key, cluster.ca_certificate, request_pem, node.id, node.role, cluster.id, now)
    return {
        "NodeID": node.id,
        "Role": node.role,
        "CertificatePEM": certificate,
        "CAPEM": cluster.ca_certificate,
        "ClusterID": cluster.id,
        "Managers": list(managers),
    }
