"""The index: what it counts by row equals what a recount finds, and what it lends is not to be changed."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.model.objects import Node, NodeDescription, NodeInfo, NodeStatus, Session, Stored, Task, TaskStatus
from covey.model.resources import NOMINAL, Resources
from covey.model.task_states import TaskState as S
from scheduler.index import Index, holds_place
from scheduler.snapshot import Snapshot
from scheduler.tally import Failure
from scheduler.waiting import Alike
from tests.scheduler.apply import World

NODES = st.sampled_from([f"n{number}" for number in range(12)])
TASKS = st.sampled_from([f"t{number}" for number in range(6)])
AMOUNTS = st.integers(0, 3)


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, str, Stored | None]:
    kind = draw(st.sampled_from(["node", "node_info", "node_status", "session", "task", "task", "task_status"]))
    key = draw(TASKS if kind.startswith("task") else NODES)
    if draw(st.integers(0, 4)) == 0:
        return kind, key, None
    amount, node = draw(AMOUNTS), draw(st.one_of(st.just(""), NODES))
    resources = Resources(nano_cpus=amount, memory_bytes=amount * 7)
    spec = {"Resources": {"Reservations": {"NanoCPUs": amount, "MemoryBytes": amount * 3}}} if amount else {}
    made: dict[str, Stored] = {
        "node": Node(id=key, availability=draw(st.sampled_from(["active", "pause"]))),
        "node_info": NodeInfo(id=key, description=NodeDescription(resources=resources)),
        "node_status": NodeStatus(id=key, state=draw(st.sampled_from(["ready", "down"]))),
        "session": Session(id=key, session_id="s", manager_id="m"),
        "task": Task(
            id=key,
            service_id=f"s{draw(AMOUNTS)}",
            node_id=node,
            spec=spec,
            spec_version=amount,
            state=draw(st.sampled_from([S.PENDING, S.PENDING, S.ASSIGNED, S.ORPHANED])),
            desired=draw(st.sampled_from([S.RUNNING, S.RUNNING, S.SHUTDOWN])),
            slot=draw(AMOUNTS),
            created_at=float(draw(AMOUNTS)),
        ),
        "task_status": TaskStatus(id=key, node_id=node, state=draw(st.sampled_from([S.RUNNING, S.FAILED]))),
    }
    return kind, key, made[kind]


@settings(max_examples=60, deadline=None)
@given(st.lists(changes(), max_size=60))
def test_columns_equal_a_recount_after_any_changes(steps: list[tuple[str, str, Stored | None]]) -> None:
    index = Index()
    for revision, step in enumerate(steps, 1):
        index.apply([step], revision)
    snapshot = index.snapshot()
    columns = snapshot.columns
    assert {columns.ids[view.row]: view.row for view in snapshot.nodes.values()} == {
        node_id: row for row, node_id in enumerate(columns.ids) if node_id
    }
    for row, node_id in enumerate(columns.ids):
        view = snapshot.nodes.get(node_id)
        assert columns.ready[row] == (view is not None and view.ready)
        held = [
            t for t in snapshot.tasks.values() if view and t.node_id == node_id and holds_place(t, snapshot.statuses.get(t.id))
        ]
        asked = [snapshot.task_specs[task.id].reservations for task in held]
        assert columns.tasks[row] == len(held)
        assert columns.used_cpus[row] == sum(a.nano_cpus for a in asked)
        assert columns.used_memory[row] == sum(a.memory_bytes for a in asked)
        assert columns.nominal_cpus[row] == sum((a or NOMINAL).nano_cpus for a in asked)
        total = view.info.description.resources if view and view.info else Resources()
        assert (columns.total_cpus[row], columns.total_memory[row]) == (total.nano_cpus, total.memory_bytes)
    by_service = {s: set(ids) for s, ids in snapshot.by_service.items()}
    assert by_service == {s: {t.id for t in snapshot.tasks.values() if t.service_id == s} for s in by_service}
    assert sum(map(len, by_service.values())) == len(snapshot.tasks)
    assert set(snapshot.task_specs) == set(snapshot.tasks)
    check_tally(snapshot)


def check_tally(snapshot: Snapshot) -> None:
    """Who waits, replicas and failures, counted anew."""
    waiting: dict[Alike, list[Task]] = {}
    replicas: dict[str, dict[str, int]] = {}
    failures: dict[tuple[str, int], dict[str, Failure]] = {}
    for task in snapshot.tasks.values():
        status = snapshot.statuses.get(task.id)
        if task.state == S.PENDING and task.desired <= S.COMPLETE:
            waiting.setdefault(Alike(task.service_id, task.spec_version, task.node_id), []).append(task)
        elif task.node_id and holds_place(task, status) and task.desired < S.SHUTDOWN:
            nodes = replicas.setdefault(task.service_id, {})
            nodes[task.node_id] = nodes.get(task.node_id, 0) + 1
        elif task.node_id and task.state >= S.ASSIGNED and status is not None and snapshot.state(task) == S.FAILED:
            failed = failures.setdefault((task.service_id, task.spec_version), {})
            failed[task.id] = Failure(task.node_id, status.at)
    for tasks in waiting.values():
        tasks.sort(key=lambda task: (task.created_at, task.slot, task.id))
    grouped = snapshot.waiting.grouped()
    assert {alike: [snapshot.tasks[task_id] for task_id in ids] for alike, ids in grouped} == waiting
    firsts = [(waiting[alike][0].created_at, alike) for alike, _ in grouped]
    assert firsts == sorted(firsts), "that of the longest waiting first"
    assert len(snapshot.waiting) == sum(map(len, waiting.values()))
    assert all((task_id in snapshot.waiting) == any(task_id in ids for _, ids in grouped) for task_id in snapshot.tasks)
    assert snapshot.waiting.queues == Counter(alike.service_id for alike in waiting)
    assert snapshot.replicas == replicas
    assert snapshot.failures == failures


def test_tasks_of_a_version_share_one_parsed_spec() -> None:
    world = World()
    world.service("web", replicas=3)
    world.run()
    assert len({id(view) for view in world.snapshot.task_specs.values()}) == 1


def test_a_borrower_that_changes_the_world_is_found_out() -> None:
    world = World()
    world.node("n1")
    with pytest.raises(AssertionError, match="was changed"), world.index.freeze_check() as snapshot:
        snapshot.columns.used_cpus[0] += 1
