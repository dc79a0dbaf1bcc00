"""A manager in the simulation: the real mirror, lease, election, dispatcher, committer and loops over one memory store.

It is manager.member without TLS, HTTP and processes of its own; every manager shares the database, as on one etcd.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from covey.errors import CoveyError
from covey.wire.messages import Refused
from manager import loops
from manager.committer import Committer
from manager.dispatcher.dispatcher import Dispatcher
from manager.dispatcher.link import Closed
from manager.dispatcher.port import TooMany
from manager.lateness import Lateness
from manager.leader import Candidate, Term
from manager.lease import Claim
from manager.store.keys import Writer
from manager.store.memory import Fail, MemoryStore, Verdict
from manager.store.mirror import Mirror
from manager.store.writer import WriterStore
from tests.sim.clock import SimClock
from tests.sim.loop import Process
from tests.sim.net import End

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

FOREVER = 1e9
LATENESS_PERIOD = 0.3


class Controller:
    """One manager: its process, and what stands between it and the store."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self.sim = sim
        self.name = name
        self.process = Process(f"{name}.0")
        self.process.alive = False
        self.starts = 0
        self.mirror: Mirror | None = None
        self.candidate: Candidate | None = None
        self.dispatcher: Dispatcher | None = None
        self.view_lag = 0.0
        self.cut_off = False
        self.excused_until = 0.0
        self.resumed_at = 0.0
        self.asked: dict[asyncio.Task[Any] | None, float] = {}

    @property
    def up(self) -> bool:
        return self.process.alive and not self.process.stopped

    def boot(self) -> None:
        """Start the process, unless it runs."""
        if self.process.alive:
            return
        self.starts += 1
        self.mirror = self.candidate = self.dispatcher = None
        self.asked.clear()
        process = self.process = Process(f"{self.name}.{self.starts}")
        self.sim.by_process[process] = self
        self.sim.loop.start(process, self._guarded(process), "manager")

    def kill(self) -> None:
        """SIGKILL."""
        if self.process.alive:
            self.sim.loop.kill(self.process)
            self.sim.net.process_died(self.name, notice=True)

    def disturb(self, *, view_lag: float = 0.0, cut_off: bool = False, seconds: float) -> None:
        """For ``seconds`` what it sees of the store is late, or it does not reach the store at all."""
        sim = self.sim
        self.view_lag, self.cut_off = max(view_lag, self.view_lag), cut_off or self.cut_off
        self.excused_until = max(self.excused_until, sim.loop.time() + seconds + view_lag + 1)
        sim.later(seconds, self.settle)

    def stall(self, seconds: float) -> bool:
        """SIGSTOP, and SIGCONT later; whether there was anything to stop."""
        if not self.up:
            return False
        self.sim.loop.stop(self.process)
        self.sim.later(seconds, self.go_on)
        return True

    def go_on(self) -> None:
        """SIGCONT."""
        if self.process.stopped:
            self.resumed_at = self.sim.loop.time()
            self.sim.loop.go_on(self.process)

    def writes_late(self) -> bool:
        """Whether the transaction of this step was under way when the process was stopped: what it says was right then."""
        return self.asked.get(asyncio.current_task(), self.resumed_at) < self.resumed_at

    def settle(self) -> None:
        """It sees the store as it should."""
        self.view_lag, self.cut_off = 0.0, False

    def faults(self, call: str, keys: tuple[str, ...]) -> Verdict:
        """What becomes of one call to the store; made by the process itself."""
        sim, rng = self.sim, self.sim.rng
        if not self.process.alive:
            return Verdict(before=FOREVER)
        if call == "watch":
            return Verdict(before=rng.random() * max(self.view_lag, 0.01), fail=Fail.BEFORE if self.cut_off else Fail.NO)
        if self.cut_off:
            return Verdict(before=rng.random() * 0.5, fail=rng.choice((Fail.BEFORE, Fail.AFTER)))
        if call != "txn":
            return Verdict(before=rng.random() * 0.004 if call == "revision" else 0.0)
        self.asked[asyncio.current_task()] = sim.loop.time()
        for when in ("before", "after"):
            if sim.crashes_now(self.name, f"store, {when}"):
                sim.loop.call_soon(self._crash, context=sim.context.copy())
                sim.loop.kill(self.process)
                return Verdict(before=FOREVER) if when == "before" else Verdict(after=FOREVER)
        if sim.crashes_now(self.name, "store, stalled"):
            self.stall(rng.uniform(5, 12))
            return Verdict(before=0.001)
        if rng.random() < sim.trouble.store_fails:
            sim.cover("store answers lost")
            return Verdict(before=rng.random() * 0.05, fail=rng.choice((Fail.BEFORE, Fail.AFTER)))
        return Verdict(before=rng.random() * 0.01, after=rng.random() * 0.005)

    def _crash(self) -> None:
        self.sim.net.process_died(self.name, notice=True)
        self.sim.later(self.sim.rng.uniform(0.5, 8), self.boot)

    async def _guarded(self, process: Process) -> None:
        """A manager never ends by itself; what makes it end is a fault of ours."""
        try:
            await self._run(process)
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                self.sim.oracles.broken("a manager ended", f"{self.name}: {error!r} {_leaves(error)}")
            raise

    async def _run(self, process: Process) -> None:
        sim = self.sim
        clock = SimClock(sim.loop, sim.skew[self.name])
        store = MemoryStore(sim.database, clock, self.faults)
        keys, settings = sim.keys, sim.settings
        async with Mirror(store, keys, clock=clock, resync=settings.resync) as mirror:
            await mirror.wait_listed()
            self.mirror = mirror
            claim = Claim(store, settings.lease_ttl, clock)
            lateness = Lateness(clock, LATENESS_PERIOD, settings.session_silence)
            self.dispatcher = Dispatcher(
                WriterStore(store, Writer.DISPATCHER, keys),
                mirror,
                claim,
                keys,
                clock,
                settings,
                self.name,
                f"{self.name}:2377",
                lambda: [f"{name}:2377" for name in sim.manager_names],
            )

            async def lead(term: Term) -> None:
                sim.cover("terms")
                committer = Committer(WriterStore(store, Writer.LEADER, keys), mirror, keys, clock, term.fence)
                await loops.Office(committer, mirror, clock, settings, lateness).lead()

            self.candidate = Candidate(
                WriterStore(store, Writer.ELECTION, keys), mirror, claim, keys, clock, self.name, f"{self.name}:2377", lead
            )
            parts = (claim.hold(), lateness.watch(), self.dispatcher.run(), self.candidate.campaign())
            running = [asyncio.ensure_future(part) for part in parts]
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()

    async def serve(self, end: End) -> None:
        """A worker has connected: what the cluster port does, without TLS."""
        try:
            if self.dispatcher is None:
                return
            await self.dispatcher.serve(end)  # type: ignore[arg-type]
        except (Closed, TimeoutError):
            pass
        except CoveyError as error:
            later = error.retry_after if isinstance(error, TooMany) else 0.0
            try:
                await end.send(Refused(status=error.status, message=error.message, retry_after=later))
            except Closed:
                pass
        finally:
            self.sim.later(0.05, end.close)


def _leaves(error: BaseException) -> list[Any]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
