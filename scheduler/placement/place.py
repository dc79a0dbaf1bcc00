"""Gives pending tasks their nodes. Decides in the order in which tasks were made, spending capacity as it goes.

Tasks that are alike (one service, one spec version, one place bound or free) are decided together. A task that fits
nowhere gets the reason as its message; the message is written when it changes and not otherwise. Which way a group is
placed (small groups, large ones, with preferences) never changes where its tasks go, only how fast that is found.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from types import MappingProxyType

from covey.model.objects import Task
from covey.model.task_states import TaskState
from scheduler.draft import Draft
from scheduler.placement import together
from scheduler.placement.bonds import Bonds
from scheduler.placement.capacity import Capacity, Rows
from scheduler.placement.feasible import fits_one, refusals, suitable
from scheduler.placement.levels import place_group
from scheduler.placement.lists import in_order, pack_list
from scheduler.placement.preempt import Preemption
from scheduler.placement.rank import DISTINCT, strategy_of
from scheduler.placement.request import Request, request_of
from scheduler.placement.singles import SMALL, Singles
from scheduler.placement.tree import place_under_preferences
from scheduler.plan import Plan
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot
from scheduler.steps import Effort, whole
from scheduler.waiting import Alike, Group

ASSIGNED_MESSAGE = "scheduler assigned task to node"

#: From so many groups on, small ones are worth a sorted list of nodes.
_MANY = 64
#: So many requests that found no room are remembered, for those that ask for no less.
_REMEMBERED = 32
#: So many groups at the most are told why they wait in one pass.
_TOLD = 1000
#: Without a stop so many small groups are placed; looking at every ``_SWEPT`` nodes counts as one, telling why as some more.
STEP = 1000
_SWEPT = 256
_TELLING = 4


def decide(snapshot: Snapshot, now: float, settings: Settings) -> Plan:
    """Nodes for pending tasks that have a suitable one, at most ``settings.pass_tasks`` of them: the rest at once after."""
    return whole(parts(snapshot, now, settings))


def parts(snapshot: Snapshot, now: float, settings: Settings) -> Generator[None, None, Plan]:
    """The same decision, stopping now and then; the snapshot must not change meanwhile."""
    draft = Draft()
    if snapshot.waiting:
        yield from _Pass(snapshot, now, settings, draft).run()
    return draft.plan(snapshot.revision, "placement")


class _Pass:
    """One pass over everything that waits."""

    def __init__(self, snapshot: Snapshot, now: float, settings: Settings, draft: Draft) -> None:
        self.now = now
        self.snapshot = snapshot
        self.draft = draft
        self.capacity = Capacity(snapshot, settings)
        self.bonds = Bonds(self.capacity)
        self.preemption = Preemption(self.capacity)
        self.left = settings.pass_tasks
        self.together: set[str] = set()
        self.singles: dict[str, Singles] = {}
        self.refused: list[tuple[Sequence[Task], Request]] = []
        self.hopeless: dict[int, list[tuple[int, int]]] = {}
        self.waiting: Sequence[Group] = ()
        self.queues = snapshot.waiting.queues
        self.effort = Effort(STEP)
        #: What looking at every node costs, beside what any group does.
        self.sweep = len(self.capacity.ids) // _SWEPT

    def run(self) -> Generator[None]:
        """Place everything there is room for, then say why of the rest: asked earlier it would change meanwhile."""
        self.waiting = yield from self.snapshot.waiting.grouping()
        effort = self.capacity.settings.pack_effort
        for singly, packed in (yield from in_order(self.waiting, self.capacity)):
            yield from self._place_all(singly)
            improved = (yield from self._improved(packed, effort)) if effort and len(packed) > 1 else {}
            yield from self._place_all(packed, improved)
        if self.left <= 0:
            self.draft.wake(self.now)
        yield from self._tell()

    def _place_all(
        self, groups: Iterable[Group], improved: Mapping[Alike, Sequence[int]] = MappingProxyType({})
    ) -> Generator[None]:
        for group in groups:
            if self.left <= 0:
                return
            self._place(group, improved.get(group.alike, ()) if improved else ())
            if self.effort.due():
                yield

    def _tell(self) -> Generator[None]:
        """Those that were never told come first; of very many, the rest keep what they were told last."""
        self.refused.sort(key=lambda group: bool(group[0][0].message))
        for tasks, request in self.refused[:_TOLD]:
            message = str(refusals(self.capacity, request, only=tasks[0].node_id))
            self.draft.move((task.id for task in tasks if task.message != message), message, message=message)
            if self.effort.due(1 + _TELLING * self.sweep):
                yield
        if any(not tasks[0].message for tasks, _ in self.refused[_TOLD:]):
            self.draft.wake(self.now)

    def _improved(self, packed: Sequence[Group], effort: int) -> Generator[None, None, dict[Alike, list[int]]]:
        """Rows from the improver for the tasks of the groups it knows how to place; they are spent."""
        wanted = [(group.alike, self._request(group), len(group.ids)) for group in packed]
        plain = [each for each in wanted if each[1].plain and not each[0].node_id and not each[1].spec.placement.spread]
        found = yield from pack_list(self.capacity, [(request, count) for _, request, count in plain], effort)
        rows: dict[Alike, list[int]] = {}
        left = self.left
        for (alike, request, _), part in zip(plain, found, strict=True):
            rows[alike] = part[:left]
            left -= len(rows[alike])
            for row in rows[alike]:
                self.capacity.spend_one(row, request)
        return rows

    def _request(self, group: Group) -> Request:
        shared = self.queues[group.alike.service_id] > 1
        return request_of(self.snapshot.tasks[group.ids[0]], self.capacity, self.now, self.bonds, shared=shared)

    def _place(self, group: Group, rows: Sequence[int]) -> None:
        """Place a group, of whose first tasks ``rows`` have been found and spent already."""
        alike, ids = group
        count = min(len(ids), self.left)
        request = self._request(group)
        name = together.group_of(self.snapshot, alike.service_id)
        if name and not together.begun(self.snapshot, name):
            self._place_together(name)
            return
        strategy = strategy_of(request, self.capacity)
        rows = list(rows[:count])
        rows += self._rows(request, strategy, alike.node_id, count - len(rows))
        if rows:
            self._assign(ids, rows, request, f"placement: {strategy}")
        if len(rows) < count:
            refused = [self.snapshot.tasks[task_id] for task_id in ids[len(rows) : count]]
            self.refused.append((refused, request))
            if request.spec.placement.priority:
                self._preempt(refused, request)

    def _assign(self, ids: Sequence[str], rows: Sequence[int], request: Request, cause: str) -> None:
        """The first of ``ids`` get the nodes of ``rows``."""
        names = self.capacity.ids
        given = [self.capacity.give(row, request) for row in rows] if request.generic else ()
        self.draft.assign(ids[: len(rows)], [names[row] for row in rows], cause, ASSIGNED_MESSAGE, given)
        self.left -= len(rows)

    def _place_together(self, name: str) -> None:
        """Every waiting task of the services of a group, or none: also beyond what a pass places otherwise."""
        if name in self.together:
            return
        self.together.add(name)
        members = together.members(self.snapshot, self.waiting, name)
        if lacking := together.lacking(self.snapshot, name):
            self._refuse_together(members, lacking)
            return
        restore = self.capacity.saved()
        found: list[tuple[Group, list[int], Request]] = []
        for group in members:
            request = self._request(group)
            rows = self._rows(request, strategy_of(request, self.capacity), group.alike.node_id, len(group.ids))
            if len(rows) < len(group.ids):
                why = str(refusals(self.capacity, request, only=group.alike.node_id))
                restore()
                # What was concluded from less than there is again, is not so any more.
                self.singles, self.hopeless = {}, {}
                self._refuse_together(members, f"group {name} has no place for all of its tasks together: {why}")
                return
            found.append((group, rows, request))
        self._assign_together(found, f"placement: group {name}")

    def _assign_together(self, found: Sequence[tuple[Group, list[int], Request]], cause: str) -> None:
        """All of them get the nodes of their rows, all or none where one transaction can hold them."""
        names, tasks, nodes = self.capacity.ids, list[str](), list[str]()
        given: list[Mapping[str, tuple[str, ...]]] = []
        for group, rows, request in found:
            tasks += group.ids
            nodes += [names[row] for row in rows]
            given += [self.capacity.give(row, request) for row in rows] if request.generic else [{}] * len(rows)
        at_once = together.fits_at_once(self.snapshot, (group for group, _, _ in found))
        self.draft.assign(tasks, nodes, cause, ASSIGNED_MESSAGE, given if any(given) else (), at_once)
        self.left -= len(tasks)

    def _refuse_together(self, members: Sequence[Group], message: str) -> None:
        tasks = (self.snapshot.tasks[task_id] for _, ids in members for task_id in ids)
        self.draft.move((task.id for task in tasks if task.message != message), message, message=message)

    def _preempt(self, tasks: Sequence[Task], request: Request) -> None:
        """Make room for tasks that have none; they are placed when it is there."""
        for task in tasks:
            promise = self.preemption.promise(request, task.node_id)
            if promise is None:
                return
            cause = f"preempted by task {task.id} of priority {request.spec.placement.priority}"
            self.draft.move(promise.victims, cause, desired=TaskState.SHUTDOWN)

    def _rows(self, request: Request, strategy: str, bound: str, count: int) -> list[int]:
        """The rows of the first of ``count`` tasks, which are spent."""
        capacity = self.capacity
        if not count:
            return []
        if bound:
            row = capacity.rows.get(bound)
            placed: list[int] = []
            while row is not None and len(placed) < count and fits_one(capacity, request, row):
                capacity.spend_one(row, request)
                placed.append(row)
            return placed
        if request.spec.placement.spread:
            self.effort.add(self.sweep + count)
            return _numbers(place_under_preferences(capacity, request, strategy, count))
        if self.hopeless and request.plain and self._hopeless(request):
            return []
        if count <= SMALL and request.plain and strategy in DISTINCT and len(self.queues) >= _MANY:
            singles = self.singles.get(strategy)
            if singles is None:
                singles = self.singles[strategy] = Singles(capacity, strategy)
            if singles.usable and (found := singles.find(request, count)) is not None:
                for row in found:
                    capacity.spend_one(row, request)
                return found
        self.effort.add(self.sweep)
        rows = place_group(capacity, request, strategy, count)
        if not len(rows) and request.plain:
            refused = self.hopeless.setdefault(id(suitable(capacity, request)), [])
            if len(refused) < _REMEMBERED:
                refused.append((request.cpus, request.memory))
        return _numbers(rows)

    def _hopeless(self, request: Request) -> bool:
        """Whether one that asked for no more, of the same nodes, was refused by all of them in this pass."""
        refused = self.hopeless.get(id(suitable(self.capacity, request)), ())
        return any(request.cpus >= cpus and request.memory >= memory for cpus, memory in refused)


def _numbers(rows: Rows) -> list[int]:
    numbers: list[int] = rows.tolist()
    return numbers
