"""What would become of a proposal: per service the fields that change, and slot by slot what happens to its tasks.

Pure: it compares the world as it is with the one a Course ends in, and decides what to call the difference. It must not know
any rule by which tasks come and go. Ids of new tasks are not told: they depend on the revision at which the change is made.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass

from covey.model.objects import Network, Service, Task
from covey.model.task_states import TaskState, is_terminal
from scheduler.draft import Draft
from scheduler.placement.explain import Explanation, explain
from scheduler.preview.advice import advise
from scheduler.preview.course import EXPLAINED, Course
from scheduler.preview.difference import Edit, differences
from scheduler.reconcile.slots import SlotKey, Work
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Step:
    """One slot: ``action`` is create, replace, keep or destroy.

    ``slot`` and ``node_id`` are the slot's key (a global service's slot is its node). ``task_id`` is the task that fills it
    now, ``from_node`` where that is; ``to_node`` where the new one goes, "" with ``message`` where it waits and why.
    ``batch`` counts from 1, 0: not in any that was seen; ``after`` are seconds of delays before it.
    """

    action: str
    slot: int
    node_id: str = ""
    task_id: str = ""
    from_node: str = ""
    to_node: str = ""
    batch: int = 0
    after: float = 0.0
    message: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One service: ``action`` is create, update, remove or none; ``job``: its slots are shown as counted from 0.

    ``explained``: of a task that finds no node, else of the first new one, what placement has against each node; ``advice``:
    what would make it fit.
    """

    service_id: str
    name: str
    action: str
    edits: tuple[Edit, ...]
    steps: tuple[Step, ...]
    order: str = ""
    parallelism: int = 0
    job: bool = False
    explained: Explanation | None = None
    advice: tuple[str, ...] = ()

    def count(self, action: str) -> int:
        """How many slots have ``action``."""
        return sum(step.action == action for step in self.steps)

    @property
    def waiting(self) -> int:
        """How many new tasks find no node."""
        seen = [step for step in self.steps if step.action == "create" or (step.action == "replace" and step.batch)]
        return sum(not step.to_node for step in seen)


@dataclass(frozen=True, slots=True)
class Displaced:
    """A task of a service that is not part of the proposal, and yet is stopped; ``place`` is its slot as users see it."""

    task_id: str
    service_name: str
    place: str
    node_id: str
    cause: str


@dataclass(frozen=True, slots=True)
class Preview:
    """Made from the world at ``revision``. ``complete``: it was seen to its end, and not only its beginning."""

    revision: int
    complete: bool
    outcomes: tuple[Outcome, ...]
    displaced: tuple[Displaced, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything would change."""
        return any(outcome.action != "none" for outcome in self.outcomes)


def plan(
    snapshot: Snapshot,
    services: Mapping[str, Service | None],
    now: float,
    settings: Settings,
    networks: Iterable[Network] = (),
) -> Preview:
    """What would happen if ``services`` (id → as it would be stored, None: removed) were stored now.

    ``networks`` are those that would be made before.
    """
    looking = parts(snapshot, services, now, settings, networks)
    while True:
        try:
            next(looking)
        except StopIteration as done:
            seen: Preview = done.value
            return seen


def parts(
    snapshot: Snapshot,
    services: Mapping[str, Service | None],
    now: float,
    settings: Settings,
    networks: Iterable[Network] = (),
) -> Generator[None, None, Preview]:
    """As ``plan``, stopping now and then; ``snapshot`` must not change meanwhile."""
    course = Course(snapshot, services, now, settings, networks)
    for _ in course.steps():
        yield
    outcomes = []
    for service_id, service in services.items():
        outcomes.append(_outcome(snapshot, course, service_id, service, settings))
        yield
    displaced = tuple(_displaced(task) for task in course.displaced.values())
    return Preview(snapshot.revision, course.complete, tuple(outcomes), displaced)


def _outcome(snapshot: Snapshot, course: Course, service_id: str, new: Service | None, settings: Settings) -> Outcome:
    old = snapshot.services.get(service_id)
    edits = differences(old.spec if old else None, new.spec if new else None)
    steps = _steps(course, service_id, new, settings)
    named = new or old
    name = named.name if named else service_id
    if old is None or new is None:
        action = "none" if old is new else ("create" if old is None else "remove")
    else:
        action = "update" if edits or any(step.action != "keep" for step in steps) else "none"
    spec = course.world.service_specs[service_id] if new is not None else snapshot.service_specs[service_id]
    policy = spec.update if new is not None and not spec.is_job else None
    explained, advice = _explained(course, service_id, steps, settings)
    return Outcome(
        service_id,
        name,
        action,
        edits,
        steps,
        order=policy.order if policy else "",
        parallelism=policy.parallelism if policy else 0,
        job=spec.is_job,
        explained=explained,
        advice=advice,
    )


def _steps(course: Course, service_id: str, service: Service | None, settings: Settings) -> tuple[Step, ...]:
    before, after = course.base, course.world
    held = {key: task for key, tasks in _slots(before, service_id).items() if (task := _holder(before, tasks)) is not None}
    ends = _slots(after, service_id)
    made = {key: [task for task in tasks if task.id in course.made] for key, tasks in ends.items()}
    rounds = sorted({course.made[fresh[-1].id].round for key, fresh in made.items() if fresh and key in held})
    batches = {number: at for at, number in enumerate(rounds, start=1)}
    work = Work(after, service, course.now, settings, Draft()) if service is not None else None
    steps: list[Step] = []
    for key in sorted({*held, *(key for key, fresh in made.items() if fresh)}):
        old, fresh = held.get(key), made.get(key) or []
        if fresh and fresh[-1].desired < TaskState.SHUTDOWN:
            steps.append(_created(course, key, old, fresh[-1], batches))
        elif old is not None:
            steps.append(_kept(course, key, old, work))
    return tuple(steps)


def _slots(snapshot: Snapshot, service_id: str) -> dict[SlotKey, list[Task]]:
    slots: dict[SlotKey, list[Task]] = {}
    for task in sorted(snapshot.tasks_of(service_id), key=lambda task: task.attempt):
        slots.setdefault((task.slot, "" if task.slot else task.node_id), []).append(task)
    return slots


def _holder(snapshot: Snapshot, tasks: Iterable[Task]) -> Task | None:
    """The task that fills a slot: the newest that is wanted and not over."""
    active = [task for task in tasks if task.desired < TaskState.SHUTDOWN and not is_terminal(snapshot.state(task))]
    return active[-1] if active else None


def _created(course: Course, key: SlotKey, old: Task | None, new: Task, batches: Mapping[int, int]) -> Step:
    made = course.made[new.id]
    placed = new.state >= TaskState.ASSIGNED
    return Step(
        "replace" if old is not None else "create",
        *key,
        task_id=old.id if old is not None else "",
        from_node=old.node_id if old is not None else "",
        to_node=new.node_id if placed else "",
        batch=batches[made.round] if old is not None else 0,
        after=made.after,
        message="" if placed else new.message,
        cause=course.causes.get(new.id, ""),
    )


def _kept(course: Course, key: SlotKey, old: Task, work: Work | None) -> Step:
    """Of a slot without a new task: its task stays, is stopped, or is to be replaced after what was looked at."""
    now = course.world.tasks.get(old.id)
    if now is None or now.desired >= TaskState.SHUTDOWN:
        return Step("destroy", *key, task_id=old.id, from_node=old.node_id, cause=course.causes.get(old.id, ""))
    if work is not None and work.outdated(now):
        why = "follows once the batches before it are through"
        return Step("replace", *key, task_id=old.id, from_node=old.node_id, message=why)
    return Step("keep", *key, task_id=old.id, from_node=old.node_id, to_node=now.node_id, message=now.message)


def _explained(
    course: Course, service_id: str, steps: Iterable[Step], settings: Settings
) -> tuple[Explanation | None, tuple[str, ...]]:
    """Of a new task that waits in the end, or else of the first that was placed."""
    world = course.world
    waiting = [
        task
        for task in world.tasks_of(service_id)
        if task.id in course.made and task.state == TaskState.PENDING and task.desired < TaskState.SHUTDOWN
    ]
    if not waiting or len(world.nodes) > EXPLAINED:
        return course.seen.get(service_id), ()
    first = min(waiting, key=lambda task: (task.slot, task.node_id))
    return explain(world, first.id, course.now, settings), advise(world, first.id, course.now, settings)


def _displaced(task: Task) -> Displaced:
    return Displaced(task.id, task.service_name or task.service_id, task.place, task.node_id, task.cause)
