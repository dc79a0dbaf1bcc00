"""Jobs by schedule: when they run, also where clocks change, what overlaps, what was missed and what is kept."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from covey.model.cron import parse_cron
from covey.model.schedule import next_after, parse_schedule
from covey.model.task_states import TaskState as S
from covey.zones import offsets
from tests.scheduler.apply import World


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def runs(schedule: str, after: str, count: int, zone: str = "UTC") -> list[str]:
    """The next ``count`` runs, in UTC."""
    table = offsets(zone, at(after))
    moment, found = at(after), []
    for _ in range(count):
        following = next_after(parse_schedule(schedule), moment, table)
        assert following is not None
        moment = following
        found.append(datetime.fromtimestamp(moment, UTC).strftime("%m-%d %H:%M"))
    return found


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        ("*/15 * * * *", "2026-01-01T00:07:00", ["01-01 00:15", "01-01 00:30", "01-01 00:45", "01-01 01:00"]),
        ("0 9-17/4 * * mon-fri", "2026-01-02T12:00:00", ["01-02 13:00", "01-02 17:00", "01-05 09:00"]),
        ("@daily", "2026-02-27T23:59:59", ["02-28 00:00", "03-01 00:00"]),
        ("30 6 29 feb *", "2026-01-01T00:00:00", ["02-29 06:30"]),
        ("0 0 13 * 5", "2026-02-01T00:00:00", ["02-06 00:00", "02-13 00:00", "02-20 00:00"]),
        ("0 0 * * 7", "2026-01-01T00:00:00", ["01-04 00:00"]),
        ("5,10 0 1 1,7 *", "2026-01-01T00:05:00", ["01-01 00:10", "07-01 00:05"]),
    ],
)
def test_when_it_runs(schedule: str, after: str, expected: list[str]) -> None:
    assert runs(schedule, after, len(expected)) == expected


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        # Clocks go from 02:00 to 03:00 at 01:00 UTC on 2026-03-29, and back from 03:00 to 02:00 at 01:00 UTC on 2026-10-25.
        ("30 2 * * *", "2026-03-28T00:00:00", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        ("30 2 * * *", "2026-10-24T12:00:00", ["10-25 00:30", "10-26 01:30"]),
        ("0 * * * *", "2026-03-28T23:30:00", ["03-29 00:00", "03-29 01:00", "03-29 02:00"]),
        ("0 * * * *", "2026-10-24T23:30:00", ["10-25 00:00", "10-25 01:00", "10-25 02:00"]),
        ("0 12 * * *", "2026-03-28T12:00:00", ["03-29 10:00", "03-30 10:00"]),
    ],
)
def test_where_clocks_change(schedule: str, after: str, expected: list[str]) -> None:
    assert runs(schedule, after, len(expected), "Europe/Berlin") == expected


def test_every_zone_runs_a_daily_job_once_a_day() -> None:
    for zone in ("America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Africa/Casablanca"):
        moments, moment = [], at("2026-01-01T12:00:00")
        table = offsets(zone, moment)
        for _ in range(365):
            following = next_after(parse_schedule("30 2 * * *"), moment, table)
            assert following is not None
            moment = following
            moments.append(moment)
        assert all(22 * 3600 <= later - before <= 26 * 3600 for before, later in pairwise(moments)), zone


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("* * * *", "has 4 fields"),
        ("60 * * * *", "minute '60' is not from 0 to 59"),
        ("* * * * 9", "day of week '9'"),
        ("* 5-3 * * *", "the range ends before it begins"),
        ("*/0 * * * *", "minute '0' is not from 1"),
        ("0 0 31 feb,4 *", "never comes"),
    ],
)
def test_schedules_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_schedule(text)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"Mode": {"Cron": {}}}, "needs a schedule"),
        ({"Mode": {"Cron": {"Schedule": "@daily"}}}, "goes with a job"),
        ({"Mode": {"GlobalJob": {}, "Cron": {"Schedule": "@daily", "Zone": "x"}}}, "Mode.Cron.Zone is unknown"),
        ({"Mode": {"GlobalJob": {}}, "Labels": {"covey.cron.sched": "x"}}, "covey.cron.sched is unknown"),
        ({"Mode": {"GlobalJob": {}}, "Labels": {"covey.cron.schedule": "@daily", "covey.cron.overlap": "x"}}, "overlap 'x'"),
        ({"Mode": {"GlobalJob": {}}, "Labels": {"covey.cron.schedule": "@daily", "covey.cron.history": "-1"}}, "history '-1'"),
    ],
)
def test_specs_that_cannot_be(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_cron(spec)


def cron(world: World, **labels: Any) -> None:
    """A job every ten minutes, made at :05."""
    given = {f"covey.cron.{key.replace('_', '-')}": str(value) for key, value in labels.items()}
    world.now = at("2026-01-01T00:05:00")
    policy = {"RestartPolicy": {"Condition": "none"}, "ContainerSpec": {"Image": "x"}}
    labels_of = {"covey.cron.schedule": "*/10 * * * *", **given}
    world.service("job", Mode={"ReplicatedJob": {}}, Labels=labels_of, template=policy)
    world.settle()


def cluster() -> World:
    world = World()
    world.node("n1", cpus=100)
    return world


def go(world: World, minutes: float) -> None:
    world.now += minutes * 60
    for node_id in world.snapshot.nodes:
        if world.snapshot.nodes[node_id].session is None:
            world.session(node_id)
    world.settle()


def shown(world: World) -> list[tuple[str, str]]:
    """(time of the run, state) of every task that is not to be removed."""
    tasks = sorted(world.tasks("job"), key=lambda task: (task.job_iteration, task.attempt))
    return [
        (datetime.fromtimestamp(task.job_iteration, UTC).strftime("%H:%M"), world.snapshot.state(task).label)
        for task in tasks
        if task.desired < S.REMOVE
    ]


def end(world: World, state: S = S.COMPLETE) -> None:
    """What runs ends."""
    for task in world.tasks("job"):
        if world.snapshot.state(task) <= S.RUNNING and task.state >= S.ASSIGNED:
            world.report(task.id, S.SHUTDOWN if task.desired >= S.SHUTDOWN else state)
    world.settle()


def test_a_run_begins_when_it_is_due_and_the_leader_wakes_for_it() -> None:
    world = cluster()
    cron(world)
    assert shown(world) == []
    assert world.decide("reconcile").wake_at == at("2026-01-01T00:10:00")
    go(world, 5)
    assert shown(world) == [("00:10", "assigned")]
    end(world)
    assert world.decide("reconcile").wake_at == at("2026-01-01T00:20:00")
    go(world, 10)
    assert shown(world) == [("00:10", "complete"), ("00:20", "assigned")]


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ("allow", [("00:10", "assigned"), ("00:20", "assigned")]),
        ("forbid", [("00:10", "assigned")]),
        ("replace", [("00:20", "assigned")]),
    ],
)
def test_what_overlaps(overlap: str, expected: list[tuple[str, str]]) -> None:
    world = cluster()
    cron(world, overlap=overlap)
    go(world, 5)
    go(world, 10)
    assert shown(world) == expected


def test_a_run_that_another_forbade_comes_after_it_if_it_may_catch_up() -> None:
    for catch_up, expected in ((1, ["00:10", "00:30"]), (0, ["00:10"]), (5, ["00:10", "00:20"])):
        world = cluster()
        cron(world, catch_up=catch_up)
        go(world, 5)
        go(world, 22)
        end(world)
        assert [when for when, _ in shown(world)] == expected


@pytest.mark.parametrize(
    ("catch_up", "expected"), [(0, []), (1, ["09:00"]), (3, ["08:40", "08:50", "09:00"])]
)  # fmt: skip
def test_runs_that_nobody_began_are_made_up_for_within_limits(catch_up: int, expected: list[str]) -> None:
    world = cluster()
    cron(world, catch_up=catch_up, overlap="allow")
    go(world, 9 * 60)
    assert [when for when, _ in shown(world)] == expected


def test_history_of_successes_and_failures() -> None:
    world = cluster()
    cron(world, history=2, failed_history=1)
    go(world, 5)
    for state in (S.COMPLETE, S.FAILED, S.COMPLETE, S.FAILED, S.COMPLETE, S.COMPLETE):
        end(world, state)
        go(world, 10)
    end(world)
    assert shown(world) == [("00:40", "failed"), ("01:00", "complete"), ("01:10", "complete")]


def test_the_newest_run_is_never_forgotten() -> None:
    world = cluster()
    cron(world, history=0, failed_history=0)
    go(world, 5)
    end(world)
    assert shown(world) == [("00:10", "complete")]
    go(world, 1)
    assert shown(world) == [("00:10", "complete")]


def test_another_leader_at_any_point_decides_the_same() -> None:
    world = cluster()
    cron(world)
    go(world, 5)
    ids = {task.id for task in world.tasks("job")}
    other = cluster()
    cron(other)
    go(other, 5.5)
    assert {task.id for task in other.tasks("job")} == ids, "the same run is the same task, whoever begins it and when"


def test_a_run_in_a_time_zone() -> None:
    world = cluster()
    cron(world, schedule="0 2 * * *", timezone="Europe/Berlin")
    service = world.snapshot.services["job"]
    world.put(msgspec.structs.replace(service, offsets=offsets("Europe/Berlin", service.created_at)))
    assert world.decide("reconcile").wake_at == at("2026-01-01T01:00:00")


def test_a_virtual_minute() -> None:
    world = cluster()
    world.settings = msgspec.structs.replace(world.settings, cron_speed=30.0)
    cron(world)
    assert world.decide("reconcile").wake_at == world.now + 10
    go(world, 10 / 60)
    assert shown(world) == [("00:10", "assigned")]
