"""What the index counts of tasks so that placement need not walk them: who waits, and what each service has where.

Kept up to date change by change. It decides which tasks wait, which count as a replica and which as a failure; it must not
know nodes, capacity or what is made of the counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

from covey.model.objects import Task, TaskStatus
from covey.model.task_states import TaskState, is_terminal, shown
from scheduler.waiting import Waiting


class Failure(NamedTuple):
    """A task of a service version that failed or was refused on a node, by the worker's clock (seconds)."""

    node_id: str
    at: float


class _Counted(NamedTuple):
    """As what a task that has a node was counted: replica or failed; ``at`` as far as it applies."""

    what: str
    service_id: str
    spec_version: int
    node_id: str
    at: float = 0.0


class Tally:
    """Waiting tasks, replicas by service and node, failures by service, version and task.

    A replica is a task that is wanted, has its node and is not over. Mappings are lent: they must not be changed.
    """

    def __init__(self) -> None:
        self.waiting = Waiting()
        self.replicas: dict[str, dict[str, int]] = {}
        self.failures: dict[tuple[str, int], dict[str, Failure]] = {}
        self._counted: dict[str, _Counted] = {}

    def count(self, task_id: str, task: Task | None, status: TaskStatus | None) -> None:
        """Bring the counts up to date with what a task is now."""
        if task is not None and waits(task):
            self.waiting.put(task)
        else:
            self.waiting.drop(task_id)
        self._settle(task_id, self._counted.get(task_id), _classify(task, status))

    def _settle(self, task_id: str, old: _Counted | None, new: _Counted | None) -> None:
        """What was counted as ``old`` counts as ``new``."""
        if old == new:
            return
        if old is not None:
            self._forget(task_id, old)
            del self._counted[task_id]
        if new is not None:
            self._counted[task_id] = new
            self._take(task_id, new)

    def __iter__(self) -> Iterator[object]:
        """Everything counted, for checksums."""
        yield (self.waiting.ids, list(self.waiting.numbers), list(self.waiting.created), list(self.waiting.slots))
        yield (self.waiting.names, self.waiting.queues)
        yield from self.replicas.items()
        yield from self.failures.items()

    def _take(self, task_id: str, new: _Counted) -> None:
        if new.what == "replica":
            nodes = self.replicas.setdefault(new.service_id, {})
            nodes[new.node_id] = nodes.get(new.node_id, 0) + 1
        else:
            failures = self.failures.setdefault((new.service_id, new.spec_version), {})
            failures[task_id] = Failure(new.node_id, new.at)

    def _forget(self, task_id: str, old: _Counted) -> None:
        if old.what == "replica":
            nodes = self.replicas[old.service_id]
            nodes[old.node_id] -= 1
            if not nodes[old.node_id]:
                del nodes[old.node_id]
            if not nodes:
                del self.replicas[old.service_id]
        else:
            failures = self.failures[old.service_id, old.spec_version]
            del failures[task_id]
            if not failures:
                del self.failures[old.service_id, old.spec_version]


class Branch(Tally):
    """Counts that go their own way from others that stay as they are: what is changed is copied first."""

    def __init__(
        self,
        waiting: Waiting,
        replicas: Mapping[str, Mapping[str, int]],
        failures: Mapping[tuple[str, int], Mapping[str, Failure]],
    ) -> None:
        super().__init__()
        self.waiting = self._lent = waiting
        self.replicas = cast("dict[str, dict[str, int]]", dict(replicas))
        self.failures = cast("dict[tuple[str, int], dict[str, Failure]]", dict(failures))
        self._own: set[tuple[str, str, int]] = set()

    def change(
        self, task_id: str, old: Task | None, old_status: TaskStatus | None, new: Task | None, new_status: TaskStatus | None
    ) -> None:
        """A task, each time named once, was ``old`` and is ``new``; None: it is not there."""
        before, after = _classify(old, old_status), _classify(new, new_status)
        for counted in (before, after):
            if counted is not None and counted[:3] not in self._own:
                self._copy(counted)
        if before is not None:
            self._counted[task_id] = before
        if self.waiting is self._lent and ((new is not None and waits(new)) or task_id in self.waiting):
            self.waiting = self.waiting.copy()
        self.count(task_id, new, new_status)

    def _copy(self, counted: _Counted) -> None:
        what, service_id, spec_version = counted[:3]
        self._own.add((what, service_id, spec_version))
        if what == "replica":
            # One mapping for all versions of the service: copying it again for another costs time only.
            if service_id in self.replicas:
                self.replicas[service_id] = dict(self.replicas[service_id])
        elif (name := (service_id, spec_version)) in self.failures:
            self.failures[name] = dict(self.failures[name])


def waits(task: Task) -> bool:
    """Whether ``task`` is there to be placed."""
    return task.state == TaskState.PENDING and task.desired <= TaskState.COMPLETE


def _classify(task: Task | None, status: TaskStatus | None) -> _Counted | None:
    if task is None or task.state < TaskState.ASSIGNED or not task.node_id:
        return None
    state = shown(task.state, status.state if status is not None else None)
    if not is_terminal(state):
        wanted = task.desired < TaskState.SHUTDOWN
        return _Counted("replica", task.service_id, task.spec_version, task.node_id) if wanted else None
    if state in (TaskState.FAILED, TaskState.REJECTED) and status is not None:
        return _Counted("failed", task.service_id, task.spec_version, task.node_id, status.at)
    return None
