"""One pass: decisions that follow each other on one snapshot, each on the world as the ones before it want it. Pure.

It decides what a pass writes: each key once, as the last decision left it; what one decision wants written together stays
together. A new task thus enters the store once, with its addresses and its node. It must not know who runs it, nor when:
``steps`` stops between any two pieces of work, so that whoever runs it can turn to others meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from covey.model.objects import Task
from scheduler import allocate, overlay, verify
from scheduler.placement import place
from scheduler.plan import Plan
from scheduler.reconcile import decide as reconcile
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot
from scheduler.writes import Group, Write, groups

Made = TypeVar("Made")

#: So many groups are drawn in one step, and from one decision of a pass: the rest is decided anew by the next.
SLICE = 1000
MAX_GROUPS = 10_000


class Stage(NamedTuple):
    """One decision of a pass, with its stops, and the name it is counted under.

    ``again``: it takes so much at a time, and its plan says by waking at once that there is more.
    """

    name: str
    parts: Callable[[Snapshot, float, Settings], Generator[None, None, Plan]]
    again: bool = False


#: How tasks come to be and to their nodes.
TASKS = (
    Stage("reconcile", reconcile.parts),
    Stage("allocate", allocate.parts),
    Stage("placement", place.parts, again=True),
)


class Pass:
    """Exhaust ``steps``, then read the rest: ``wake_at`` as in Plan; ``more``: another pass is due once this one is written.

    That is so when a decision wanted more than one pass writes, or what no speculative snapshot shows.
    """

    def __init__(self, snapshot: Snapshot, now: float, settings: Settings, stages: Sequence[Stage]) -> None:
        self._world = snapshot
        self._now = now
        self._settings = settings
        self._stages = stages
        self._batch = _Batch()
        self._room = MAX_GROUPS
        self._dark = False
        self.refusals: list[verify.Refusal] = []
        self.causes: list[str] = []
        self.wake_at: float | None = None
        self.more = False

    def __bool__(self) -> bool:
        return bool(self.causes)

    @property
    def groups(self) -> list[Group]:
        """What is to be written, new tasks last and those of one node together: it is told of them together."""
        return self._batch.groups()

    def steps(self) -> Iterator[str]:
        """Do the pass piece by piece; the name of what was just done."""
        for at, stage in enumerate(self._stages):
            self._room = MAX_GROUPS
            while (yield from self._ask(stage, last=at + 1 == len(self._stages))):
                pass
            if self._dark:
                break

    def _ask(self, stage: Stage, last: bool) -> Generator[str, None, bool]:
        """One decision; whether it is to be asked again at once."""
        plan = yield from self._decide(stage)
        yield stage.name
        again = stage.again and bool(plan) and plan.wake_at is not None and plan.wake_at <= self._now
        if plan.wake_at is not None and not again:
            self.wake_at = plan.wake_at if self.wake_at is None else min(plan.wake_at, self.wake_at)
        if not plan:
            return False
        self.causes.append(plan.cause)
        accepted, refused = yield from _named("verify", verify.parts(plan, self._world, self._settings))
        self.refusals += refused
        yield "verify"
        drawn = yield from self._draw(accepted)
        if again and not self._room:
            self.more, again = True, False
        if last and not again:
            return False
        self._dark = not overlay.shows(drawn)
        if self._dark:
            self.more = True
            return False
        self._world = yield from _named("overlay", overlay.parts(self._world, drawn, self._settings.nominal))
        yield "overlay"
        return again

    def _decide(self, stage: Stage) -> Generator[str, None, Plan]:
        return (yield from _named(stage.name, stage.parts(self._world, self._now, self._settings)))

    def _draw(self, plan: Plan) -> Generator[str, None, list[Group]]:
        rows = groups(plan, self._world, self._now)
        drawn: list[Group] = []
        while piece := list(islice(rows, min(SLICE, self._room))):
            drawn += piece
            self._room -= len(piece)
            self._batch.add(piece)
            yield "draw"
        self.more = self.more or next(rows, None) is not None
        return drawn


def _named(name: str, work: Generator[None, None, Made]) -> Generator[str, None, Made]:
    """``work``, each stop of it called ``name``."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            made: Made = done.value
            return made
        yield name


class _Batch:
    """Groups, and where each key is in them."""

    def __init__(self) -> None:
        self._groups: list[Group | None] = []
        self._where: dict[tuple[str, str], int] = {}

    def add(self, more: Iterable[Group]) -> None:
        """Take in groups; one that touches what others wrote is joined with them."""
        where = self._where
        for group in more:
            touched = {at for write in group.writes if (at := where.get(write[:2])) is not None}
            if touched:
                group = self._join(sorted(touched), group)
            at = len(self._groups)
            self._groups.append(group)
            for write in group.writes:
                where[write[:2]] = at

    def _join(self, touched: Sequence[int], group: Group) -> Group:
        """The groups at ``touched`` and ``group`` as one; of each key its last value and the version first expected."""
        first = self._groups[touched[0]]
        if len(touched) == len(group.writes) == 1 and first is not None and len(first.writes) == 1 and not group.absent:
            self._groups[touched[0]] = None
            kind, key, expected, _ = first.writes[0]
            return Group((Write(kind, key, expected, group.writes[0].value),), group.cause, first.absent)
        writes: dict[tuple[str, str], Write] = {}
        absent: dict[tuple[str, str], None] = {}
        for one in (*(self._groups[at] for at in touched), group):
            assert one is not None, "a group that was joined holds no key"
            for write in one.writes:
                earlier = writes.get(write[:2], write)
                writes[write[:2]] = write._replace(expected_version=earlier.expected_version)
            absent.update(dict.fromkeys(one.absent))
        for at in touched:
            self._groups[at] = None
        return Group(tuple(writes.values()), group.cause, tuple(absent))

    def groups(self) -> list[Group]:
        others: list[Group] = []
        fresh: list[tuple[str, Group]] = []
        for group in self._groups:
            if group is None:
                continue
            value = group.writes[0].value
            if len(group.writes) == 1 and isinstance(value, Task) and not group.writes[0].expected_version:
                fresh.append((value.node_id, group))
            else:
                others.append(group)
        fresh.sort(key=lambda entry: entry[0])
        return [*others, *(group for _, group in fresh)]
