"""What a container must be, by what was asked of it: the test's own memory, with which the node's is compared.

A request that its daemon's death cut has more than one possible outcome; comparing settles which it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.worker.containers.conftest import wait_until
from tests.worker.containers.endurance.world import IMAGE, World, catches
from worker.kernel import process

GONE, CREATED, UP, DOWN = "gone", "created", "up", "down"
PHASES = {"created": CREATED, "running": UP, "paused": UP, "exited": DOWN}
NOW, MOMENT, UNTIL = "now", "moment", "until"
TERM, USR1, KILL = 15, 10, 9
FAILED_START = 128

_PROGRAMS = {
    NOW: "printf x >> /out/{name}; exit {code} #{name}",
    MOMENT: "printf x >> /out/{name}; sleep 0.2; exit {code} #{name}",
    UNTIL: "printf x >> /out/{name}; trap 'exit {usr1}' USR1; trap 'exit {code}' TERM; "
    "sleep 1000 & while :; do wait; done #{name}",
}


class Wrong(Exception):
    """A container is not what it must be."""


@dataclass
class Thing:
    """One container. ``may``: the phases it can be in; ``codes``: the exit codes when down. ``acked`` starts have happened,
    ``possible`` ones perhaps. ``identity``: (pid, start time) of the run under way, once seen.
    """

    name: str
    kind: str
    code: int
    usr1: int
    auto: bool = False
    ident: str = ""
    may: set[str] = field(default_factory=lambda: {GONE})
    codes: set[int] = field(default_factory=set)
    paused: set[bool] = field(default_factory=lambda: {False})
    acked: int = 0
    possible: int = 0
    identity: tuple[int, int] | None = None
    error: str = ""

    def body(self, world: World) -> dict[str, Any]:
        """ContainerCreate."""
        program = _PROGRAMS[self.kind].format(name=self.name, code=self.code, usr1=self.usr1)
        settings = {"Binds": [f"{world.out_directory}:/out"], "AutoRemove": self.auto}
        return {"Image": IMAGE, "Cmd": ["sh", "-c", program], "HostConfig": settings}

    @property
    def phase(self) -> str:
        """The one phase it is in (or was last seen in; programs end by themselves)."""
        if len(self.may) != 1:
            raise Wrong(f"{self.name} may be {sorted(self.may)}: the test must compare first")
        return next(iter(self.may))

    def began(self) -> None:
        self.may, self.codes, self.paused, self.identity, self.error = {UP}, {self.code}, {False}, None, ""
        self.acked += 1

    def perhaps_began(self) -> None:
        self.may.add(UP)
        self.codes.add(self.code)
        self.identity = None
        self.possible += 1

    def may_have_failed(self, code: int) -> None:
        """A start was refused, which may be on record in place of how it ended before."""
        self.codes.add(code)
        self.error = ""

    def ended(self, *codes: int, error: str = "") -> None:
        self.may, self.codes, self.paused, self.error = {DOWN}, set(codes), {False}, error

    def perhaps_ended(self, *codes: int) -> None:
        if UP in self.may:
            self.may.add(DOWN)
            self.codes |= set(codes)
            self.paused |= {False}

    def ready(self, world: World) -> int:
        """Waits until its program, which runs, has said so and handles its signals; the pid."""
        state = inspect(world, self.name)["State"]
        pid = int(state["Pid"])
        if self.kind == UNTIL and not state["Paused"]:
            wait_until(lambda: catches(pid, TERM), f"{self.name}, process {pid}, handles SIGTERM")
        wait_until(lambda: world.runs(self.name) >= self.acked, f"{self.name} has begun {self.acked} times")
        return pid


def inspect(world: World, name: str) -> dict[str, Any]:
    found: dict[str, Any] = world.api.must("GET", f"/containers/{name}/json")
    return found


def compare(world: World, thing: Thing) -> None:
    """The container is one of the things it may be, to its processes; afterwards it may be that alone. Raises Wrong."""
    found = _settled(world, thing)
    if found is None:
        _compare_gone(world, thing)
        return
    state = found["State"]
    phase = PHASES.get(state["Status"])
    allowed = set(thing.may)
    if UP in allowed and thing.kind != UNTIL:
        allowed.add(DOWN)
    told = f"{thing.name} ({thing.ident[:12]}) is {state['Status']} {state['ExitCode']} {state['Error']!r}, may be"
    if phase not in allowed or (thing.ident and found["Id"] != thing.ident):
        raise Wrong(f"{told} {sorted(allowed)}")
    if phase == DOWN and state["ExitCode"] not in thing.codes:
        raise Wrong(f"{told} down with {sorted(thing.codes)}")
    if phase == DOWN and thing.error and state["Error"] != thing.error:
        raise Wrong(f"{told} down with the words {thing.error!r}")
    if phase == UP:
        _compare_running(world, thing, state)
    thing.ident, thing.may = found["Id"], {phase}
    if phase == DOWN:
        thing.paused, thing.identity = {False}, None
        if state["ExitCode"] != FAILED_START:
            # That of a start which failed for want of room is not on record; the next daemon tells the one before.
            thing.codes = {state["ExitCode"]}
    _compare_runs(world, thing)


def _settled(world: World, thing: Thing) -> dict[str, Any] | None:
    """What the node says of it when its own program and its removal have come to an end; None when it is gone."""

    def look() -> dict[str, Any] | bool:
        answer = world.api.call("GET", f"/containers/{thing.name}/json")
        if answer.status == 404:
            return True
        if answer.status != 200:
            raise Wrong(f"inspect of {thing.name}: {answer}")
        found: dict[str, Any] = json.loads(answer.text)
        status = found["State"]["Status"]
        if status == "dead" and GONE in thing.may:
            # A removal that was refused half-way is asked for again.
            world.api.call("DELETE", f"/containers/{thing.name}?force=1")
            return False
        moving = status == "removing" or (thing.auto and status == "exited")
        moving = moving or (thing.kind != UNTIL and status == "running")
        # Its end is certain, and the daemon may not have heard of it yet.
        moving = moving or (status in ("running", "paused") and not thing.may & {UP, CREATED})
        return False if moving else found

    found = wait_until(look, f"{thing.name} comes to rest")
    return None if found is True else dict(found)


def _compare_gone(world: World, thing: Thing) -> None:
    ends = thing.auto and (DOWN in thing.may or (UP in thing.may and thing.kind != UNTIL))
    if GONE not in thing.may and not ends:
        raise Wrong(f"{thing.name} ({thing.ident[:12]}) is lost, may be {sorted(thing.may)}")
    if GONE in thing.may and thing.may != {GONE}:
        thing.possible += thing.acked
        thing.acked = 0
    thing.may = {GONE}
    _compare_runs(world, thing)


def _compare_running(world: World, thing: Thing, state: dict[str, Any]) -> None:
    if state["Paused"] not in thing.paused:
        raise Wrong(f"{thing.name} is {state['Status']}, paused may be {thing.paused}")
    pid = int(state["Pid"])
    started = process.start_time(pid)
    if started is None or not process.is_alive(pid, started):
        raise Wrong(f"{thing.name} is {state['Status']}, its process {pid} is not there: a phantom")
    if thing.identity is not None and thing.identity != (pid, started):
        raise Wrong(f"{thing.name} was process {thing.identity}, is {(pid, started)}")
    thing.identity, thing.paused = (pid, started), {state["Paused"]}
    if not state["Paused"]:
        wait_until(lambda: catches(pid, TERM), f"{thing.name}, process {pid}, handles SIGTERM")


def _compare_runs(world: World, thing: Thing) -> None:
    count = world.runs(thing.name)
    if not thing.acked <= count <= thing.acked + thing.possible:
        raise Wrong(f"{thing.name} has begun {count} times, told {thing.acked} times, perhaps {thing.possible} more")
    thing.acked, thing.possible = count, 0


def compare_all(world: World, things: list[Thing]) -> None:
    """Every container, the list of them, and the processes of the machine. Nothing may be asked of the node meanwhile."""
    for thing in things:
        compare(world, thing)
    there = [thing for thing in things if thing.phase != GONE]
    listed = [one["Names"][0].removeprefix("/") for one in world.api.must("GET", "/containers/json?all=1")]
    if sorted(listed) != sorted(thing.name for thing in there):
        raise Wrong(f"listed are {sorted(listed)}, and there are {sorted(thing.name for thing in there)}")
    expected = {thing.name: [thing.identity[0]] for thing in there if thing.phase == UP and thing.identity}

    def processes_right() -> bool:
        return world.first_processes() == expected

    try:
        wait_until(processes_right, "processes", 3.0)
    except BaseException:
        raise Wrong(f"first processes are {world.first_processes()}, must be {expected}") from None
