"""How quick the store on etcd is; prints figures and fails only when one is an order of magnitude off."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import pytest

from manager.store.etcd.store import EtcdStore
from manager.store.interface import Put, absent

pytestmark = [pytest.mark.asyncio, pytest.mark.root, pytest.mark.long]

VALUE = bytes(500)
IN_FLIGHT = 64


async def test_transactions_and_watch(own_etcd: Any) -> None:
    async with EtcdStore([own_etcd.child.endpoint()]) as store:
        alone = []
        for i in range(300):
            began = time.perf_counter()
            await store.txn([absent(f"/one/{i}")], [Put(f"/one/{i}", VALUE)])
            alone.append(time.perf_counter() - began)
        start = await store.revision() + 1
        names = iter(range(3000))

        async def write() -> None:
            for i in names:
                await store.txn([absent(f"/many/{i}")], [Put(f"/many/{i}", VALUE)])

        began = time.perf_counter()
        await asyncio.gather(*(write() for _ in range(IN_FLIGHT)))
        rate = 3000 / (time.perf_counter() - began)
        cpu, seen = time.process_time(), 0
        async with store.watch(["/many/"], start) as watch:
            while seen < 3000:
                seen += len((await watch.__anext__()).events)
        event = (time.process_time() - cpu) / 3000
    median = statistics.median(alone)
    print(f"put p50 {median * 1e3:.2f} ms, {rate:.0f} txn/s at {IN_FLIGHT} in flight, {event * 1e6:.1f} us CPU an event")
    assert median < 0.05
    assert rate > 200
