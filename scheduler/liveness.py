"""Which nodes are alive. Decides from session records and time; a node that is down or gone loses its tasks.

A node whose session record has vanished is ``unknown`` while a grace runs (nothing new goes there), then ``down``. The
grace is doubled when the leader is new, or when many nodes vanish together: then the trouble is more likely ours. How
late this very pass is (``late``, seconds) is no node's fault: the verdict is put off by as much.
"""

from __future__ import annotations

from collections.abc import Generator

import msgspec

from covey.ids import tie_break
from covey.model.objects import NodeStatus
from covey.model.task_states import TaskState, is_terminal
from scheduler.draft import Draft
from scheduler.plan import Plan, PutNodeStatus
from scheduler.settings import Settings
from scheduler.snapshot import NodeView, Snapshot
from scheduler.steps import Effort, whole

_HASHES = float(1 << 64)
#: So many nodes, and tasks of lost ones, are looked at without a stop.
PART = 10_000
#: However late the passes are, a silent node is down after this many graces.
_MOST_GRACES = 4


def decide(snapshot: Snapshot, now: float, settings: Settings, late: float = 0.0) -> Plan:
    """Verdicts on nodes and what follows for tasks; wakes when the next grace ends."""
    return whole(parts(snapshot, now, settings, late))


def parts(snapshot: Snapshot, now: float, settings: Settings, late: float = 0.0) -> Generator[None, None, Plan]:
    """The same decision, stopping now and then; the snapshot must not change meanwhile."""
    draft = Draft()
    effort = Effort(PART)
    many = _many_missing(snapshot, settings)
    for view in snapshot.nodes.values():
        if view.session is not None:
            _present(view, now, draft)
        elif view.status is not None and view.status.state != "down":
            _absent(snapshot, view, now, settings, late, many, draft)
        if effort.due():
            yield
    yield from _orphan(snapshot, draft, effort)
    return draft.plan(snapshot.revision, "liveness")


def _many_missing(snapshot: Snapshot, settings: Settings) -> bool:
    alive = [view for view in snapshot.nodes.values() if view.status is not None and view.status.state != "down"]
    missing = sum(1 for view in alive if view.session is None)
    return missing >= settings.mass_count and missing >= settings.mass_share * len(alive)


def _present(view: NodeView, now: float, draft: Draft) -> None:
    session = view.session.session_id if view.session is not None else ""
    held = view.status
    if held is not None and held.state == "ready" and held.session == session:
        return
    since = held.since if held is not None and held.state == "ready" else now
    status = NodeStatus(id=view.id, state="ready", since=since, session=session)
    draft.add(PutNodeStatus(status, f"node {view.id} opened session {session}"))


def _absent(snapshot: Snapshot, view: NodeView, now: float, settings: Settings, late: float, many: bool, draft: Draft) -> None:
    held = view.status
    assert held is not None
    missing_since = held.missing_since or now
    share = tie_break(view.id, held.session) / _HASHES
    unmet_since = _unmet_since(snapshot, held, missing_since, settings)
    grace = settings.grace(share) * (2 if many or unmet_since else 1)
    down_at = max(held.down_at, max(missing_since, unmet_since) + grace)
    if late > settings.heartbeat / 5:
        down_at = max(down_at, min(now + min(late, grace), missing_since + _MOST_GRACES * grace))
    if now >= down_at:
        message = f"not heard of since its session ended {now - missing_since:.1f} s ago"
        status = NodeStatus(id=view.id, state="down", since=now, message=message, session=held.session)
        draft.add(PutNodeStatus(status, f"node {view.id} is down: {message}"))
        return
    draft.wake(down_at)
    if held.state != "unknown" or not held.missing_since or down_at > held.down_at + settings.heartbeat / 10:
        status = msgspec.structs.replace(
            held,
            state="unknown",
            since=missing_since,
            message="its session ended",
            missing_since=missing_since,
            down_at=down_at,
        )
        draft.add(PutNodeStatus(status, f"node {view.id}: session {held.session} ended"))


def _unmet_since(snapshot: Snapshot, held: NodeStatus, missing_since: float, settings: Settings) -> float:
    """When the leader took office, if it is new and the node has not been ready under it, else 0.

    Such a node may still be looking for a manager; it may even have been back while nobody led, and nobody knows.
    """
    leader = snapshot.leader
    if leader is None or held.since > leader.elected_at or missing_since >= leader.elected_at + settings.new_leader:
        return 0.0
    return leader.elected_at


def _orphan(snapshot: Snapshot, draft: Draft, effort: Effort) -> Generator[None]:
    """Tasks on nodes that are down, or gone from the cluster, are nobody's."""
    for node_id, ids in snapshot.by_node.items():
        if effort.due():
            yield
        view = snapshot.nodes.get(node_id)
        if view is None:
            cause = f"node {node_id} is removed"
        elif view.session is None and view.status is not None and view.status.state == "down":
            cause = f"node {node_id} is down"
        else:
            continue
        lost = [
            task.id
            for task in snapshot.tasks_on(node_id)
            if task.state == TaskState.ASSIGNED and not is_terminal(snapshot.state(task))
        ]
        draft.move(lost, cause, state=TaskState.ORPHANED, message=cause)
        if effort.due(len(ids)):
            yield
