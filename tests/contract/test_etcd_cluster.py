"""The store on three etcd members: the leader dies under load, nothing acknowledged is lost, no event twice."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest

from manager.store.etcd.connection import Timing
from manager.store.etcd.store import EtcdStore
from manager.store.interface import OutcomeUnknown, Put, StoreUnavailable, absent

pytestmark = [pytest.mark.asyncio, pytest.mark.root, pytest.mark.long]


class Members:
    """Three members on loopback ports."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="covey-etcd-", dir="/tmp")
        held = [socket.create_server(("127.0.0.1", 0)) for _ in range(6)]
        ports = [each.getsockname()[1] for each in held]
        for each in held:
            each.close()
        self.endpoints = [f"127.0.0.1:{port}" for port in ports[:3]]
        peers = [f"http://127.0.0.1:{port}" for port in ports[3:]]
        cluster = ",".join(f"m{i}={peer}" for i, peer in enumerate(peers))
        self.processes = {
            endpoint: subprocess.Popen(
                [
                    "etcd",
                    f"--name=m{i}",
                    f"--data-dir={self.directory}/m{i}",
                    f"--listen-client-urls=http://{endpoint}",
                    f"--advertise-client-urls=http://{endpoint}",
                    f"--listen-peer-urls={peers[i]}",
                    f"--initial-advertise-peer-urls={peers[i]}",
                    f"--initial-cluster={cluster}",
                ],
                env=os.environ,
                stderr=subprocess.DEVNULL,
            )
            for i, endpoint in enumerate(self.endpoints)
        }

    def end(self, endpoint: str) -> None:
        process = self.processes.pop(endpoint)
        process.kill()
        process.wait(10)

    def close(self) -> None:
        for endpoint in list(self.processes):
            self.end(endpoint)
        shutil.rmtree(self.directory)


@pytest.fixture
def members() -> Iterator[Members]:
    three = Members()
    try:
        yield three
    finally:
        three.close()


async def leader_of(members: Members) -> str:
    for endpoint in members.endpoints:
        async with EtcdStore([endpoint]) as one:
            if (await one.status()).leader:
                return endpoint
    raise AssertionError("three members and no leader")


async def test_the_leader_dies_under_load(members: Members) -> None:
    async with EtcdStore(members.endpoints, timing=Timing(connect=10, total=20)) as store:
        start = await store.revision() + 1
        leader = await leader_of(members)
        acknowledged: list[str] = []
        unknown: list[str] = []
        times = [time.monotonic()]
        stop = asyncio.Event()

        async def write(writer: int) -> None:
            for i in range(1_000_000):
                key = f"/w/{writer}/{i}"
                try:
                    assert (await store.txn([absent(key)], [Put(key, b"")])).ok
                    acknowledged.append(key)
                    times.append(time.monotonic())
                except OutcomeUnknown:
                    unknown.append(key)
                except StoreUnavailable as error:
                    pytest.fail(error.message)
                if stop.is_set():
                    return

        async def watch(seen: list[str], until: asyncio.Event) -> None:
            async with store.watch(["/w/"], start) as running:
                async for batch in running:
                    seen += [event.item.key for event in batch.events]
                    if until.is_set() and set(acknowledged) <= set(seen):
                        return

        seen: list[str] = []
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(watch(seen, stop))
            writers = [group.create_task(write(i)) for i in range(8)]
            await asyncio.sleep(1)
            await asyncio.to_thread(members.end, leader)
            killed = time.monotonic()
            while times[-1] < killed + 1:
                await asyncio.sleep(0.05)
            stop.set()
            await asyncio.wait(writers)
            await store.txn([], [Put("/w/last", b"")])
        gap = max(later - earlier for earlier, later in itertools.pairwise(times))
        print(f"{len(acknowledged)} acknowledged, {len(unknown)} unknown, longest gap {gap:.2f} s")
        assert len(seen) == len(set(seen)), "an event came twice"
        present: set[str] = set()
        page = await store.keys("/w/", limit=100_000)
        present.update(key for key, _ in page.items)
        assert set(acknowledged) <= present, "an acknowledged write was lost"
        assert present - set(acknowledged) - {"/w/last"} <= set(unknown), "a write nobody claims"
