"""Stores to hold to the contract: the memory store, and a real etcd on a Unix socket in a directory of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import pytest_asyncio

from covey.etcd import EtcdChild
from manager.store.etcd.connection import Timing
from manager.store.etcd.store import EtcdStore
from manager.store.interface import DeleteRange, Store, Watch, WatchBatch, WatchEvent
from manager.store.memory import MemoryStore

QUICK = Timing(connect=1.0, attempt=2.0, total=8.0, stall=1.5)


class EtcdServer:
    """One etcd that a test may kill and start again on the same data."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="covey-etcd-", dir="/tmp")
        self.child = EtcdChild(self.directory)
        self.log = open(f"{self.directory}/log", "ab")  # noqa: SIM115 (closed by close)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.child.prepare()
        self.process = subprocess.Popen(
            self.child.argv(), cwd=self.directory, env={**os.environ, **self.child.environment()}, stderr=self.log
        )
        process = self.process
        self.child.wait_ready(20, alive=lambda: process.poll() is None)

    def end(self, how: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(10)
            self.process = None

    def close(self) -> None:
        self.end()
        self.log.close()
        shutil.rmtree(self.directory)


@pytest.fixture(scope="session")
def shared_etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def own_etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest_asyncio.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.root)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An empty store of each kind; of etcd, one that is emptied."""
    if request.param == "memory":
        async with MemoryStore() as memory:
            yield memory
        return
    server: EtcdServer = request.getfixturevalue("shared_etcd")
    async with EtcdStore([server.child.endpoint()], timing=QUICK) as etcd:
        await etcd.txn([], [DeleteRange("/")])
        yield etcd


@pytest.fixture
def quick() -> Timing:
    return QUICK


Collect = Callable[[Watch, int], Awaitable[list[WatchEvent]]]


@pytest.fixture
def collect() -> Collect:
    """Reads batches until ``count`` events came; fails after 15 s with what had come."""

    async def run(watch: Watch, count: int) -> list[WatchEvent]:
        events: list[WatchEvent] = []
        batches: list[WatchBatch] = []
        try:
            async with asyncio.timeout(15):
                while len(events) < count:
                    batches.append(await watch.__anext__())
                    events.extend(batches[-1].events)
        except TimeoutError:
            pytest.fail(f"{len(events)} of {count} events in 15 s, batches {batches}")
        return events

    return run


Until = Callable[[str, Callable[[], object]], Awaitable[None]]


@pytest.fixture
def until() -> Until:
    """Waits up to 10 s for a condition to hold; fails with its name."""

    async def run(what: str, holds: Callable[[], object]) -> None:
        deadline = asyncio.get_running_loop().time() + 10
        while not holds():
            assert asyncio.get_running_loop().time() < deadline, f"not within 10 s: {what}"
            await asyncio.sleep(0.01)

    return run
