"""What every cluster route needs: a view as new as the request, a transaction, words for what is not there.

It decides how objects are found by what users call them (id, name, the beginning of an id) and how a lost write is said. It
must not know what any route does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from covey.clock import Clock
from covey.engine_api.call import Duplex
from covey.errors import Conflict, InvalidArgument, NotFound, Unavailable
from covey.model.objects import Cluster, Name, Service, Stored
from manager.ca.authority import trust_info
from manager.images.fanout import Fanout
from manager.store.codec import encode
from manager.store.interface import Compare, Operation, OutcomeUnknown, Put, Store, TxnResult, absent
from manager.store.keys import Keys
from manager.store.mirror import Mirror
from scheduler.settings import Settings
from scheduler.snapshot import NodeView, Snapshot

Item = TypeVar("Item", bound=Stored)


class Dials(Protocol):
    """Connections to workers."""

    async def connect(self, node_id: str, cause: str = "") -> Duplex: ...


@dataclass(frozen=True, slots=True)
class Door:
    """``store`` writes as the API (manager.store.writer). ``node_id`` and ``address`` are this manager's."""

    store: Store
    mirror: Mirror
    keys: Keys
    clock: Clock
    settings: Settings
    node_id: str
    address: str
    dials: Dials
    images: Fanout
    statistics: Callable[[], Mapping[str, Any]]
    _trust: dict[str, dict[str, str]] = field(default_factory=dict)

    async def view(self) -> Snapshot:
        """A snapshot that has everything the store had when this was called, lent until the next await."""
        await self.mirror.wait_current()
        return self.mirror.snapshot()

    def cluster(self) -> Cluster:
        """The cluster object."""
        cluster = self.mirror.snapshot().cluster
        if cluster is None:
            raise Unavailable("there is no cluster yet: `cluster init` makes one")
        return cluster

    def trust(self) -> dict[str, str]:
        """TLSInfo of the cluster's root; read once for each root."""
        certificate = self.cluster().ca_certificate
        if certificate not in self._trust:
            self._trust[certificate] = trust_info(certificate)
        return self._trust[certificate]

    async def commit(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> TxnResult:
        """One transaction; its result, lost or not, is in the mirror when this returns."""
        try:
            result = await self.store.txn(compares, operations)
        except OutcomeUnknown as error:
            raise Unavailable(
                f"the store did not say whether the change was made ({error.message}): look before trying again"
            ) from error
        await self.mirror.wait_revision(result.revision)
        return result

    def reserve(self, kind: str, name: str, owner: str) -> tuple[Compare, Operation]:
        """What makes ``name`` unique among ``kind``: a compare and a put for the transaction that creates ``owner``."""
        key = self.keys.name(kind, name)
        return absent(key), Put(key, encode(Name(id=owner)))


def find(held: Mapping[str, Stored], kind: str, reference: str) -> Any:
    """The object users mean by ``reference``: a whole id, a name, or the beginning of an id that only one has.

    Raises NotFound, or InvalidArgument when several have it, in Docker's words.
    """
    if (exact := held.get(reference)) is not None:
        return exact
    named = [item for item in held.values() if name_of(item) == reference]
    begun = named or [item for key, item in held.items() if reference and key.startswith(reference)]
    if len(begun) > 1:
        raise InvalidArgument(f"{kind} {reference} is ambiguous ({len(begun)} matches found)")
    if not begun:
        raise NotFound(f"{kind} {reference} not found")
    return begun[0]


def name_of(item: Stored) -> str:
    """What users call ``item``, "" for what has no name."""
    spec = getattr(item, "spec", None)
    return str(spec.get("Name", "")) if isinstance(spec, dict) else ""


def find_node(snapshot: Snapshot, reference: str) -> NodeView:
    """The node users mean: id, host name, given name, or the beginning of an id; ``self`` is for the caller to know."""
    if (exact := snapshot.nodes.get(reference)) is not None:
        return exact
    views = snapshot.nodes.values()
    named = [view for view in views if reference and reference in (view.hostname, view.node.name)]
    begun = named or [view for view in views if reference and view.id.startswith(reference)]
    if len(begun) > 1:
        raise InvalidArgument(f"node {reference} is ambiguous ({len(begun)} matches found)")
    if not begun:
        raise NotFound(f"node {reference} not found")
    return begun[0]


def find_service(snapshot: Snapshot, reference: str) -> Service:
    """The service users mean by id, name or the beginning of an id."""
    return cast("Service", find(snapshot.services, "service", reference))


def out_of_sequence(kind: str, name: str, version: int, asked: int) -> Conflict:
    """The object changed since the client read it."""
    return Conflict(
        f"update out of sequence: {kind} {name} is at version {version}, the request is for {asked}: read it again, then update"
    )


def matches_labels(labels: Mapping[str, Any] | None, wanted: Sequence[str]) -> bool:
    """Whether ``labels`` have every ``key`` or ``key=value`` of ``wanted``."""
    held = labels or {}
    for entry in wanted:
        key, equals, value = entry.partition("=")
        if key not in held or (equals and str(held[key]) != value):
            return False
    return True


def matches_id(key: str, wanted: Sequence[str]) -> bool:
    """Whether ``key`` begins with one of ``wanted``; none wanted is any."""
    return not wanted or any(key.startswith(prefix) for prefix in wanted)


def matches_name(name: str, wanted: Sequence[str]) -> bool:
    """Whether ``name`` begins with one of ``wanted``, as SwarmKit filters; none wanted is any."""
    return not wanted or any(name.startswith(prefix) for prefix in wanted)
