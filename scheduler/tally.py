"""What the index counts of tasks so that placement need not walk them: who waits, and what each service has where.

Kept up to date change by change. It decides which tasks are alike, which count as a replica and which as a failure; it
must not know nodes, capacity or what is made of the counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

from covey.model.objects import Task, TaskStatus
from covey.model.task_states import TaskState, is_terminal, shown


class Alike(NamedTuple):
    """What tasks that are placed together share.

    ``node_id`` is "" unless they are bound to a node (global services); ``avoid`` are the nodes on which their slot crashed.
    """

    service_id: str
    spec_version: int
    node_id: str
    avoid: tuple[str, ...] = ()


class Failure(NamedTuple):
    """A task of a service version that failed or was refused on a node, by the worker's clock (seconds)."""

    node_id: str
    at: float


class Waiting:
    """Pending tasks that are alike, in the order in which they were made: (created_at, slot, id)."""

    __slots__ = ("_in_order", "_last", "tasks")

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self._last = _order(None)
        self._in_order = True

    def add(self, task: Task) -> None:
        order = _order(task)
        self._in_order = self._in_order and order > self._last and task.id not in self.tasks
        self._last = max(order, self._last)
        self.tasks[task.id] = task

    def copy(self) -> Waiting:
        """The same tasks, to be changed apart."""
        other = Waiting()
        other.tasks, other._last, other._in_order = dict(self.tasks), self._last, self._in_order
        return other

    def ordered(self) -> Mapping[str, Task]:
        """The tasks by id, the longest waiting first."""
        if not self._in_order:
            self.tasks = {task.id: task for task in sorted(self.tasks.values(), key=_order)}
            self._in_order = True
        return self.tasks

    def first(self) -> Task:
        """The longest waiting."""
        return next(iter(self.ordered().values()))


def _order(task: Task | None) -> tuple[float, int, str]:
    return (task.created_at, task.slot, task.id) if task is not None else (-1.0, -1, "")


class _Counted(NamedTuple):
    """As what a task was counted: waiting, replica or failed; ``where`` and ``at`` as far as they apply."""

    what: str
    alike: Alike
    at: float = 0.0


class Tally:
    """Waiting tasks by what makes them alike, and how many such groups a service has; replicas by service and node; failures
    by service, version and task.

    A replica is a task that is wanted, has its node and is not over. Mappings are lent: they must not be changed.
    """

    def __init__(self) -> None:
        self.waiting: dict[Alike, Waiting] = {}
        self.queues: dict[str, int] = {}
        self.replicas: dict[str, dict[str, int]] = {}
        self.failures: dict[tuple[str, int], dict[str, Failure]] = {}
        self._counted: dict[str, _Counted] = {}

    def count(self, task_id: str, task: Task | None, status: TaskStatus | None) -> None:
        """Bring the counts up to date with what a task is now."""
        self._settle(task_id, self._counted.get(task_id), _classify(task, status) if task is not None else None, task)

    def _settle(self, task_id: str, old: _Counted | None, new: _Counted | None, task: Task | None) -> None:
        """What was counted as ``old`` counts as ``new``."""
        if old != new:
            if old is not None:
                self._forget(task_id, old)
                del self._counted[task_id]
            if new is not None:
                self._counted[task_id] = new
        if new is not None and task is not None:
            self._take(task, new, old == new)

    def __iter__(self) -> Iterator[object]:
        """Everything counted, for checksums."""
        for alike, waiting in self.waiting.items():
            yield (alike, sorted(waiting.tasks))
        yield from self.replicas.items()
        yield from self.failures.items()

    def _take(self, task: Task, new: _Counted, known: bool) -> None:
        alike = new.alike
        if new.what == "waiting":
            waiting = self.waiting.get(alike)
            if waiting is None:
                waiting = self.waiting[alike] = Waiting()
                self.queues[alike.service_id] = self.queues.get(alike.service_id, 0) + 1
            if known:
                waiting.tasks[task.id] = task
            else:
                waiting.add(task)
        elif known:
            return
        elif new.what == "replica":
            nodes = self.replicas.setdefault(alike.service_id, {})
            nodes[alike.node_id] = nodes.get(alike.node_id, 0) + 1
        else:
            failures = self.failures.setdefault((alike.service_id, alike.spec_version), {})
            failures[task.id] = Failure(alike.node_id, new.at)

    def _forget(self, task_id: str, old: _Counted) -> None:
        alike = old.alike
        if old.what == "waiting":
            waiting = self.waiting[alike]
            del waiting.tasks[task_id]
            if not waiting.tasks:
                del self.waiting[alike]
                self.queues[alike.service_id] -= 1
                if not self.queues[alike.service_id]:
                    del self.queues[alike.service_id]
        elif old.what == "replica":
            nodes = self.replicas[alike.service_id]
            nodes[alike.node_id] -= 1
            if not nodes[alike.node_id]:
                del nodes[alike.node_id]
            if not nodes:
                del self.replicas[alike.service_id]
        else:
            failures = self.failures[alike.service_id, alike.spec_version]
            del failures[task_id]
            if not failures:
                del self.failures[alike.service_id, alike.spec_version]


class Branch(Tally):
    """Counts that go their own way from others that stay as they are: what is changed is copied first."""

    def __init__(
        self,
        waiting: Mapping[Alike, Waiting],
        queues: Mapping[str, int],
        replicas: Mapping[str, Mapping[str, int]],
        failures: Mapping[tuple[str, int], Mapping[str, Failure]],
    ) -> None:
        super().__init__()
        self.waiting = dict(waiting)
        self.queues = dict(queues)
        self.replicas = cast("dict[str, dict[str, int]]", dict(replicas))
        self.failures = cast("dict[tuple[str, int], dict[str, Failure]]", dict(failures))
        self._own: set[tuple[str, Alike]] = set()

    def change(
        self, task_id: str, old: Task | None, old_status: TaskStatus | None, new: Task | None, new_status: TaskStatus | None
    ) -> None:
        """A task, each time named once, was ``old`` and is ``new``; None: it is not there."""
        before = _classify(old, old_status) if old is not None else None
        after = _classify(new, new_status) if new is not None else None
        for counted in (before, after):
            if counted is not None and (counted.what, counted.alike) not in self._own:
                self._copy(counted)
        if before is not None:
            self._counted[task_id] = before
        self._settle(task_id, before, after, new)

    def _copy(self, counted: _Counted) -> None:
        alike = counted.alike
        self._own.add((counted.what, alike))
        if counted.what == "waiting":
            if alike in self.waiting:
                self.waiting[alike] = self.waiting[alike].copy()
        elif counted.what == "replica":
            # One group for all nodes of the service: copying it again for another node costs time only.
            if alike.service_id in self.replicas:
                self.replicas[alike.service_id] = dict(self.replicas[alike.service_id])
        elif (name := (alike.service_id, alike.spec_version)) in self.failures:
            self.failures[name] = dict(self.failures[name])


def _classify(task: Task, status: TaskStatus | None) -> _Counted | None:
    alike = Alike(task.service_id, task.spec_version, task.node_id)
    if task.state < TaskState.ASSIGNED:
        wanted = task.state == TaskState.PENDING and task.desired <= TaskState.COMPLETE
        return _Counted("waiting", alike._replace(avoid=task.avoid) if task.avoid else alike) if wanted else None
    if not task.node_id:
        return None
    state = shown(task.state, status.state if status is not None else None)
    if not is_terminal(state):
        return _Counted("replica", alike) if task.desired < TaskState.SHUTDOWN else None
    if state in (TaskState.FAILED, TaskState.REJECTED) and status is not None:
        return _Counted("failed", alike, status.at)
    return None
