"""Jobs that run by a schedule: which runs there are, when the next begins, and which are forgotten.

A run is an execution of the job whose number is the second it was due, so the same decision makes the same tasks, and all
that must be remembered stands in them: the last run is the newest that has tasks. A run that was missed, because nobody led,
or because another went on that forbids it, is made up for up to ``catch_up`` of them; without, one that is a minute late is
not begun any more.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable

from covey.model.cron import Cron
from covey.model.objects import Service, Task
from covey.model.schedule import UTC, next_after
from covey.model.task_states import TaskState
from scheduler.reconcile import jobs
from scheduler.reconcile.slots import Work
from scheduler.settings import Settings
from scheduler.snapshot import Snapshot

LATE = 60.0
_WINDOWS = (3600.0, 86400.0, 32 * 86400.0, 400 * 86400.0)
"""How far back missed runs are looked for, the nearest first: there may be very many."""


def decide(work: Work) -> Generator[None]:
    """Begin what is due, go on with what has begun, forget what is old. Stops now and then."""
    cron = work.spec.cron
    if cron is None:
        return
    runs = {n: _run(work, n) for n in sorted({task.job_iteration for task in work.snapshot.tasks_of(work.service.id)})}
    for run in runs.values():
        yield from run.gather()
    live = [number for number, run in runs.items() if not _ended(run) and not _over(run)]
    begin = _due(work, cron, max(runs, default=0), busy=bool(live))
    if begin and cron.overlap == "replace":
        for number in live:
            tasks = jobs.unfinished(work, _tasks(runs[number]))
            work.shut_down(tasks, f"the run due at {begin[-1]} replaces it", TaskState.REMOVE)
        live = []
    for number in (*live, *begin):
        yield from jobs.MODES[work.spec.mode](_run(work, number))
    _forget(work, cron, runs)


def _run(work: Work, number: int) -> Work:
    return Work(work.snapshot, work.service, work.now, work.settings, work.draft, number, work.leaving, work.effort)


def _tasks(run: Work) -> Iterable[Task]:
    return (task for slot in run.slots.values() for task in slot.tasks())


def _ended(run: Work) -> bool:
    """Whether the run was replaced, or is to be forgotten."""
    return any(task.desired >= TaskState.REMOVE for task in _tasks(run))


def _over(run: Work) -> bool:
    """Whether every slot is complete or given up."""
    settled = sum(1 for slot in run.slots.values() if jobs.completed(slot) or (jobs.given_up(run, slot) and not slot.active))
    wanted = run.spec.replicas if run.spec.mode == "replicated-job" else len(run.slots)
    return settled >= wanted


def virtual(service: Service, settings: Settings, at: float) -> float:
    """The schedule's time: it runs ``cron_speed`` times as fast as the clock, so that tests need not wait for minutes."""
    return service.created_at + (at - service.created_at) * settings.cron_speed


def _due(work: Work, cron: Cron, last: int, *, busy: bool) -> list[int]:
    """The runs to begin now; wakes for the next."""
    service, settings = work.service, work.settings
    now = virtual(service, settings, work.now)
    since = max(float(last), virtual(service, settings, service.executed_at))
    offsets = service.offsets or UTC
    following = next_after(cron.schedule, max(now, since), offsets)
    if following is not None:
        work.draft.wake(service.created_at + (following - service.created_at) / settings.cron_speed)
    missed = _missed(cron, since, now, service)
    wanted = max(cron.catch_up, 1 if missed and now - missed[-1] <= LATE else 0)
    chosen = missed[-wanted:] if wanted else []
    if cron.overlap == "forbid":
        return [] if busy else chosen[:1]
    return chosen[-1:] if cron.overlap == "replace" else chosen


def _missed(cron: Cron, since: float, now: float, service: Service) -> list[int]:
    """The runs due after ``since`` and not later than ``now``, at least the last ``catch_up`` of them."""
    found: list[int] = []
    for window in _WINDOWS:
        begin = max(since, now - window)
        found, at = [], begin
        while (due := next_after(cron.schedule, at, service.offsets or UTC)) is not None and due <= now:
            found.append(int(due))
            at = due
        if begin == since or len(found) >= max(cron.catch_up, 1):
            break
    return found


def _forget(work: Work, cron: Cron, runs: dict[int, Work]) -> None:
    """Runs beyond those kept; the newest stays, as the next counts on from it."""
    kept = {True: cron.history, False: cron.failed_history}
    for number in sorted(runs, reverse=True):
        run = runs[number]
        if _ended(run) or not _over(run):
            continue
        succeeded = all(jobs.completed(slot) for slot in run.slots.values())
        if kept[succeeded] > 0:
            kept[succeeded] -= 1
        elif number != max(runs):
            work.shut_down(_tasks(run), f"older runs of job {work.service.id} than are kept", TaskState.REMOVE)


def last_run(snapshot: Snapshot, service: Service) -> int:
    """The execution that is shown: of a job by schedule the newest run (0: none yet), of another the last."""
    spec = snapshot.service_specs[service.id]
    if spec.cron is None:
        return service.job_iteration
    return max((task.job_iteration for task in snapshot.tasks_of(service.id)), default=0)
