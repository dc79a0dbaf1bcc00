"""A run: clients at work, and somebody who kills the daemon, the zygote, shims and sandboxes at random moments.

After each death of the daemon everything is compared with what it must be, and at the end that nothing is left.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.worker.containers.conftest import PATIENCE, Node, zygote_of
from tests.worker.containers.endurance.clients import Client, Gate, Tally, clear, elapsed
from tests.worker.containers.endurance.model import DOWN, GONE, UNTIL, UP, Thing, Wrong, compare_all
from tests.worker.containers.endurance.world import TAG, World, catches, wait_dead
from worker.kernel import process

CLIENTS = "abcd"


class Run:
    """``starts``, ``lacks``: how many end it. ``every``: seconds between two deaths, at most. ``faulty``: see Client."""

    def __init__(
        self,
        world: World,
        seed: str,
        starts: int,
        every: float = 2.0,
        faulty: Callable[[], bool] = lambda: False,
        lacks: int = 0,
    ) -> None:
        self.world = world
        self.random = random.Random(f"{seed}-chaos")
        self.gate = Gate()
        self.tally = Tally(starts, lacks)
        self.every = every
        self.clients = [Client(world, letter, seed, self.gate, self.tally, faulty) for letter in CLIENTS]
        self.faults: list[tuple[str, BaseException]] = []

    @property
    def things(self) -> list[Thing]:
        return [thing for client in self.clients for thing in client.all]

    def go(self, deaths: bool = True, meanwhile: Callable[[], None] | None = None) -> None:
        """``meanwhile``: called again and again, in place of what kills. Fails with all that the node knew."""
        threads = [threading.Thread(target=self._guarded, args=(client,)) for client in self.clients]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads) and not self.faults:
                if meanwhile is not None:
                    meanwhile()
                if deaths:
                    time.sleep(self.random.uniform(0, self.every))
                    self.random.choices((self.kill_daemon, self.kill_zygote, self.hurt_sandbox), (6, 2, 2))[0]()
        except BaseException as fault:
            self.faults.append(("chaos", fault))
        finally:
            if self.faults:
                self.tally.wanted = 0
            self.gate.open()
            for thread in threads:
                thread.join(90)
        self.judge()

    def judge(self) -> None:
        """Fails if somebody was wrong, with the story of the containers it was about."""
        if not self.faults:
            return
        words = "\n".join(f"{where}: {type(fault).__name__}: {fault}" for where, fault in self.faults)
        named = sorted(set(re.findall(rf"{TAG}\w+", words)))
        story = self.world.story(*named)
        pytest.fail(f"{words}\n\n{story}\n\n{words}\n{self.tally.counts}", pytrace=False)

    def _guarded(self, client: Client) -> None:
        try:
            client.run()
        except BaseException as fault:
            self.faults.append((f"client {client.letter}, {client.last}", fault))
            self.tally.wanted = 0

    def finish(self) -> None:
        """All right, and nothing left when all is removed; the daemon runs on."""
        try:
            compare_all(self.world, self.things)
            clear(self.world, self.things)
        except BaseException as fault:
            self.faults.append(("at the end", fault))
        self.judge()

    def kill_daemon(self) -> None:
        """SIGKILL, then perhaps more deaths before the next daemon comes; then all is compared."""
        self.tally.add("daemon killed")
        self.gate.shut()
        self.world.kill(signal.SIGKILL)
        self.gate.wait_empty()
        for mischief, chance in ((self.kill_zygote, 0.2), (self.hurt_sandbox, 0.3), (self.end_one, 0.5), (self.kill_shim, 0.3)):
            if self.random.random() < chance:
                mischief()
        time.sleep(self.random.choice((0, 0, 0.3)))
        if self.random.random() < 0.3:
            self.tally.add("daemon killed while it starts")
            self.world.launch()
            time.sleep(self.random.uniform(0.2, 0.8))
            self.world.kill(signal.SIGKILL)
        self.world.start()
        compare_all(self.world, self.things)
        self.gate.open()

    def kill_zygote(self) -> None:
        pid = zygote_of(self.world.seen(self.world.root))
        if pid:
            self.tally.add("zygote killed")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def hurt_sandbox(self) -> None:
        """The shim of an idle sandbox, or its process, or both."""
        found = self.world.sandboxes()
        if not found:
            return
        _, shim, started = self.random.choice(found)
        processes = children(shim)
        if processes and self.random.random() < 0.5:
            self.tally.add("sandbox process killed")
            with contextlib.suppress(ProcessLookupError):
                os.kill(processes[0], signal.SIGKILL)
        else:
            self.tally.add("sandbox shim killed")
            process.kill_verified(shim, started, signal.SIGKILL)

    def _running(self) -> list[Thing]:
        return [thing for thing in self.things if thing.may == {UP} and thing.kind == UNTIL and thing.identity]

    def end_one(self) -> None:
        """While there is no daemon a container's program is told to end, and does."""
        for thing in self._running():
            assert thing.identity is not None
            if thing.paused == {False} and catches(thing.identity[0], signal.SIGTERM):
                self.tally.add("ended unseen")
                process.kill_verified(*thing.identity, signal.SIGTERM)
                wait_dead(*thing.identity, f"the process of {thing.name}, told to end,")
                thing.ended(thing.code)
                thing.may = {DOWN, GONE} if thing.auto else {DOWN}
                return

    def kill_shim(self) -> None:
        """While there is no daemon a shim dies, and its container with it."""
        for thing in self._running():
            found = self.world.shim(thing.ident)
            if found is None:
                raise Wrong(f"{thing.name} runs, and its shim has left no record")
            assert thing.identity is not None
            self.tally.add("shim killed")
            process.kill_verified(*found, signal.SIGKILL)
            if thing.paused == {False}:
                # A frozen one dies when somebody thaws it: the next daemon.
                wait_dead(*thing.identity, f"the process of {thing.name}, whose shim was killed,", 2.0)
            thing.ended(137, error="shim died")
            thing.may = {DOWN, GONE} if thing.auto else {DOWN}
            return


def children(pid: int) -> list[int]:
    """The pids of its child processes."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(one) for one in file.read().split()]
    except OSError:
        return []


def end_node(world: World) -> None:
    """Ends daemon and zygote, and demands that nothing of theirs is left."""
    Node.clear(world)
    world.kill(signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE
    while left := world.sandbox_leftovers():
        if time.monotonic() > deadline:
            pytest.fail(f"the pool has left {left}\n{world.story()}", pytrace=False)
        time.sleep(0.1)


@contextlib.contextmanager
def a_world(root: object, archive: bytes, pool: int, prepared: Callable[[World], None] = lambda _: None) -> Iterator[World]:
    """A node that serves; at its end nothing of it is left. ``prepared``: changes its mounts before the daemon starts."""
    world = World(root, archive, pool)  # type: ignore[arg-type]
    try:
        prepared(world)
        world.begin()
        yield world
        end_node(world)
    finally:
        world.close()


def report(name: str, seed: str, began: float, run: Run) -> None:
    counts = ", ".join(f"{what} {count}" for what, count in sorted(run.tally.counts.items()))
    print(f"\n{name}: seed {seed}, {elapsed(began)}: {counts}")
    for words, count in sorted(run.tally.refusals.items()):
        print(f"  refused {count} times: {words[:300]}")
