"""Clients that do to their containers whatever a user may, at random, and remember what must have come of it.

Each has containers of its own, so that what it must be is known; twins of a request race each other now and then.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.worker.containers.endurance.model import (
    CREATED,
    DOWN,
    FAILED_START,
    GONE,
    KILL,
    MOMENT,
    NOW,
    TERM,
    UNTIL,
    UP,
    USR1,
    Thing,
    Wrong,
    compare,
)
from tests.worker.containers.endurance.world import TAG, World, wait_dead
from tests.worker.containers.states_and_verbs import Answer
from worker.kernel import process

CUT = Answer(0, "the daemon went away")
SIGNALS = {TERM: "TERM", USR1: "USR1", KILL: "KILL"}
HELD = 4
PATIENCE = 20.0


class Gate:
    """Clients pass it for each operation; while it is closed they wait, and ``closed`` returns when all do."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._open = True
        self._inside = 0

    def __enter__(self) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._open)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()

    def shut(self) -> None:
        with self._condition:
            self._open = False

    def wait_empty(self) -> None:
        with self._condition:
            if not self._condition.wait_for(lambda: not self._inside, 60):
                raise Wrong("a request is not answered within 60 s of the daemon's death")

    def open(self) -> None:
        with self._condition:
            self._open = True
            self._condition.notify_all()


class Tally:
    """What was done, over all clients; ``wanted`` starts, and as many times of lack as ``lacks``, end the run."""

    def __init__(self, wanted: int, lacks: int = 0) -> None:
        self.wanted = wanted
        self.lacks = lacks
        self.counts: dict[str, int] = {}
        self.refusals: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, what: str) -> None:
        with self._lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def refused(self, words: str) -> None:
        with self._lock:
            words = re.sub(r"[0-9a-f]{12,64}|/proc/\d+", "ID", words)
            self.refusals[words] = self.refusals.get(words, 0) + 1

    @property
    def over(self) -> bool:
        return not self.wanted or (self.counts.get("start", 0) >= self.wanted and self.counts.get("lack", 0) >= self.lacks)


class Client:
    """``faulty()``: whether the machine lacks something just now, so that a request may be refused with an error."""

    def __init__(
        self, world: World, letter: str, seed: str, gate: Gate, tally: Tally, faulty: Callable[[], bool] = lambda: False
    ) -> None:
        self.world = world
        self.letter = letter
        self.random = random.Random(f"{seed}-{letter}")
        self.gate = gate
        self.tally = tally
        self.faulty = faulty
        self.things: list[Thing] = []
        self.all: list[Thing] = []
        self.twins = ThreadPoolExecutor(1)
        self.last = ""

    def run(self) -> None:
        """Until enough has been started."""
        while not self.tally.over:
            with self.gate:
                self.step()
        self.twins.shutdown()

    def step(self) -> None:
        """One operation on one container."""
        self.things = [thing for thing in self.things if thing.may != {GONE}]
        unclear = [thing for thing in self.things if len(thing.may) > 1]
        if unclear:
            self._note("compare", unclear[0])
            try:
                compare(self.world, unclear[0])
            except (OSError, http.client.HTTPException):
                pass
            except Wrong:
                # An answer may be refused now; when the lack is over it is asked again.
                if not self.faulty():
                    raise
            return
        if len(self.things) < HELD and self.random.random() < 0.5:
            self.create()
            return
        if not self.things:
            return
        thing = self.random.choice(self.things)
        if thing.phase in (CREATED, DOWN):
            chosen = self.random.choices((self.start, self.start_twice, self.restart, self.remove), (6, 1, 1, 2))[0]
        elif thing.kind == UNTIL:
            chosen = self.random.choices(
                (self.stop, self.kill, self.pause, self.restart, self.remove_forced, self.kill_shim, self.stop_twice),
                (4, 3, 2, 2, 1, 1, 1),
            )[0]
        else:
            chosen = self.random.choices((self.wait, self.stop, self.remove_forced), (5, 1, 1))[0]
        self._note(chosen.__name__, thing)
        chosen(thing)

    def _note(self, verb: str, thing: Thing) -> None:
        self.last = f"{verb} {thing.name} ({thing.kind}, {thing.may}, codes {thing.codes})"

    def call(self, method: str, path: str, body: object = None) -> Answer:
        """The answer, or CUT."""
        try:
            return self.world.api.call(method, path, body, patience=PATIENCE)
        except (OSError, http.client.HTTPException):
            return CUT

    def ask(self, verb: str, method: str, path: str, good: tuple[int, ...], body: object = None) -> Answer | None:
        """The answer if its status is in ``good`` or 0; None when a fault of the machine refused it. Raises Wrong."""
        faulty = self.faulty()
        answer = self.call(method, path, body)
        if answer.status in (0, *good):
            if answer.status:
                self.tally.add(verb)
            return answer
        if answer.status >= 500 and (faulty or self.faulty()):
            self.tally.refused(f"{verb}: {answer.text}")
            return None
        raise Wrong(f"client {self.letter}: {verb} {path}: {answer}; {self.last}")

    def create(self) -> None:
        number = len(self.all)
        kind = self.random.choices((NOW, MOMENT, UNTIL), (3, 2, 6))[0]
        code, usr1 = self.random.randrange(1, 100), self.random.randrange(101, 120)
        thing = Thing(f"{TAG}{self.letter}{number}", kind, code, usr1, auto=self.random.random() < 0.15)
        self._note("create", thing)
        self.things.append(thing)
        self.all.append(thing)
        answer = self.ask("create", "POST", f"/containers/create?name={thing.name}", (201,), thing.body(self.world))
        if answer is None:
            return
        if answer.status == 0:
            thing.may = {GONE, CREATED}
        else:
            thing.may, thing.ident = {CREATED}, json.loads(answer.text)["Id"]

    def start(self, thing: Thing) -> None:
        self._started(thing, self.ask("start", "POST", f"/containers/{thing.name}/start", (204,)))

    def _started(self, thing: Thing, answer: Answer | None) -> None:
        if answer is None:
            thing.possible += 1
            if thing.may == {DOWN}:
                thing.may_have_failed(FAILED_START)
            if thing.auto:
                thing.may.add(GONE)
        elif answer.status == 0:
            thing.perhaps_began()
            self._perhaps_refused(thing)
        else:
            thing.began()

    def _perhaps_refused(self, thing: Thing) -> None:
        """A start without an answer may have failed for what is lacked, and that be on record."""
        if self.faulty():
            thing.may_have_failed(FAILED_START)

    def start_twice(self, thing: Thing) -> None:
        """One starts it, the other finds it running (or, of a program that ends at once, starts it again)."""
        path = f"/containers/{thing.name}/start"
        # One that removes itself is gone, or going, when it has ended or could not be started.
        good = (204, 304, 404, 409) if thing.auto else (204, 304)
        other = self.twins.submit(self.ask, "start", "POST", path, good)
        answers = [self.ask("start", "POST", path, good), other.result()]
        told = [answer.status if answer else 500 for answer in answers]
        if thing.kind == UNTIL and told.count(204) > 1:
            raise Wrong(f"{thing.name} was started twice at once: {told}")
        if 204 in told:
            thing.began()
            thing.acked += told.count(204) - 1
            thing.possible += told.count(0) + told.count(500)
            if 500 in told and thing.kind != UNTIL:
                thing.codes.add(FAILED_START)
        elif 304 in told and not {0, 500} & set(told):
            raise Wrong(f"{thing.name} did not run, and was told to run already: {told}")
        else:
            for status in told:
                self._started(thing, CUT if status == 0 else None)

    def stop(self, thing: Thing) -> None:
        if self._ready(thing):
            self._stopped(thing, self.ask("stop", "POST", f"/containers/{thing.name}/stop?t=10", self._good(thing, 204, 304)))

    def _good(self, thing: Thing, *good: int) -> tuple[int, ...]:
        """404: a container that removes itself, whose program may have ended."""
        return (*good, 404) if thing.auto else good

    def _ready(self, thing: Thing) -> bool:
        """Whether its program has begun and handles signals; False when it has ended or the daemon has."""
        try:
            thing.ready(self.world)
        except (OSError, http.client.HTTPException):
            return False
        except (AssertionError, ValueError):
            # 404: it has ended and removed itself.
            if (thing.auto and thing.kind != UNTIL) or self.faulty():
                return False
            raise
        return True

    def _stopped(self, thing: Thing, answer: Answer | None) -> None:
        if answer is None or answer.status == 0:
            thing.perhaps_ended(thing.code, *([KILL + 128] if answer is None else []))
        elif answer.status == 304 and thing.kind == UNTIL:
            raise Wrong(f"{thing.name} ran, and was told not to: {answer}")
        else:
            self._ended(thing, thing.code)

    def _ended(self, thing: Thing, *codes: int, error: str = "") -> None:
        thing.ended(*codes, error=error)
        if thing.auto:
            thing.may = {DOWN, GONE}

    def stop_twice(self, thing: Thing) -> None:
        """Stop and kill at once: it ends by the one or the other."""
        if not self._ready(thing):
            return
        path, good = f"/containers/{thing.name}", self._good(thing, 204, 304, 409)
        other = self.twins.submit(self.ask, "kill", "POST", f"{path}/kill", good)
        answers = [self.ask("stop", "POST", f"{path}/stop?t=10", good), other.result()]
        if any(answer is not None and answer.status for answer in answers):
            self._ended(thing, thing.code, 137)
        else:
            thing.perhaps_ended(thing.code, 137)

    def kill(self, thing: Thing) -> None:
        if not self._ready(thing):
            return
        number = KILL if True in thing.paused else self.random.choice((TERM, USR1, KILL, KILL))
        code = {TERM: thing.code, USR1: thing.usr1, KILL: 137}[number]
        answer = self.ask(f"kill {SIGNALS[number]}", "POST", f"/containers/{thing.name}/kill?signal={number}", (204,))
        thing.perhaps_ended(code)
        if answer is None or answer.status == 0:
            return
        if number != KILL and not thing.auto:
            self._wait(thing, code)
        self._ended(thing, code)

    def _wait(self, thing: Thing, *codes: int) -> None:
        answer = self.ask("wait", "POST", f"/containers/{thing.name}/wait", self._good(thing, 200))
        if answer is not None and answer.status == 200:
            code = json.loads(answer.text)["StatusCode"]
            if code not in codes:
                raise Wrong(f"{thing.name} ended with {code}, told the waiter, must be {codes}")
            self._ended(thing, code)

    def wait(self, thing: Thing) -> None:
        self._wait(thing, thing.code)

    def pause(self, thing: Thing) -> None:
        if not self._ready(thing):
            return
        if True in thing.paused:
            # A pause that was refused for want of something may have been done, or not.
            good = (204,) if thing.paused == {True} else (204, 409)
            answer, wanted = self.ask("unpause", "POST", f"/containers/{thing.name}/unpause", good), False
        else:
            answer, wanted = self.ask("pause", "POST", f"/containers/{thing.name}/pause", (204,)), True
        thing.paused = {True, False} if answer is None or answer.status == 0 else {wanted}

    def restart(self, thing: Thing) -> None:
        runs = thing.phase == UP
        if thing.auto or (runs and not self._ready(thing)):
            return
        answer = self.ask("restart", "POST", f"/containers/{thing.name}/restart?t=10", (204,))
        if answer is not None and answer.status:
            self.tally.add("start")
            thing.began()
            return
        if answer is None:
            thing.perhaps_ended(thing.code, FAILED_START, 137)
            thing.codes.add(FAILED_START)
        else:
            thing.perhaps_ended(thing.code)
        thing.perhaps_began()
        self._perhaps_refused(thing)
        thing.paused.add(False)

    def remove(self, thing: Thing) -> None:
        self._removed(thing, self.ask("remove", "DELETE", f"/containers/{thing.name}", self._good(thing, 204)))

    def _removed(self, thing: Thing, answer: Answer | None) -> None:
        if answer is not None and answer.status:
            thing.may = {GONE}
        else:
            thing.may.add(GONE)

    def remove_forced(self, thing: Thing) -> None:
        if not self._ready(thing):
            return
        answer = self.ask("remove -f", "DELETE", f"/containers/{thing.name}?force=1", self._good(thing, 204, 409))
        if answer is not None and answer.status == 409:
            # Its own removal was under way.
            thing.may = {DOWN, GONE}
            return
        thing.perhaps_ended(thing.code, 137)
        self._removed(thing, answer)

    def kill_shim(self, thing: Thing) -> None:
        """Its container goes with it within two seconds, and that is said."""
        if not self._ready(thing):
            return
        found, identity = self.world.shim(thing.ident), thing.identity
        if found is None:
            raise Wrong(f"{thing.name} runs, and its shim has left no record")
        process.kill_verified(*found, KILL)
        self.tally.add("shim killed")
        if identity is not None:
            wait_dead(*identity, f"the process of {thing.name}, whose shim was killed,", 2.0)
        error = "" if self.faulty() else "shim died"
        self._ended(thing, 137, error=error)
        if not thing.auto:
            answer = self.call("POST", f"/containers/{thing.name}/wait")
            if answer.status == 200 and json.loads(answer.text)["StatusCode"] != 137:
                raise Wrong(f"{thing.name}, whose shim was killed, ended with {answer}")


def clear(world: World, things: list[Thing]) -> None:
    """Removes all that is there."""
    for thing in things:
        if thing.may != {GONE}:
            answer = world.api.call("DELETE", f"/containers/{thing.name}?force=1")
            if answer.status not in (204, 404):
                raise Wrong(f"removal of {thing.name}: {answer}")
    deadline = time.monotonic() + PATIENCE
    while left := world.leftovers():
        if time.monotonic() > deadline:
            raise Wrong(f"removed containers have left {left}")
        time.sleep(0.05)


def elapsed(since: float) -> str:
    return f"{time.monotonic() - since:.1f} s"
