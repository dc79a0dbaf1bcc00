"""The mirror on a real etcd that is killed, emptied and shared with strangers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from covey.model.objects import Service
from manager.store.codec import encode
from manager.store.etcd.connection import Timing
from manager.store.etcd.store import EtcdStore
from manager.store.interface import Put
from manager.store.keys import Keys
from manager.store.mirror import Mirror

pytestmark = [pytest.mark.asyncio, pytest.mark.root]

KEYS = Keys()
Until = Callable[[str, Callable[[], object]], Awaitable[None]]
Server = Any


async def write(store: EtcdStore, id: str) -> int:
    return (await store.txn([], [Put(KEYS.key("service", id), encode(Service(id=id, spec={"Name": id})))])).revision


async def test_it_outlives_etcd(own_etcd: Server, quick: Timing, until: Until) -> None:
    async with EtcdStore([own_etcd.child.endpoint()], timing=quick) as store, Mirror(store, KEYS) as mirror:
        await mirror.wait_listed()
        await write(store, "before")
        own_etcd.end()
        own_etcd.start()
        await write(store, "after")
        await mirror.wait_current()
        assert set(mirror.snapshot().services) == {"before", "after"}
        assert mirror.statistics()["lists"] == 1
        own_etcd.end()
        shutil.rmtree(Path(own_etcd.directory, "data"))
        own_etcd.start()
        await write(store, "anew")
        await until("the new store is believed", lambda: set(mirror.snapshot().services) == {"anew"})
    await until("nothing is left", lambda: asyncio.all_tasks() == {asyncio.current_task()})


async def test_strangers_in_the_same_etcd_do_not_hold_up_reads(own_etcd: Server, quick: Timing) -> None:
    async with EtcdStore([own_etcd.child.endpoint()], timing=quick) as store, Mirror(store, KEYS) as mirror:
        await mirror.wait_listed()
        await write(store, "ours")
        revision = (await store.txn([], [Put("/stranger", b"")])).revision
        await mirror.wait_current(5)
        assert mirror.snapshot().revision >= revision
        assert set(mirror.snapshot().services) == {"ours"}
        assert mirror.statistics()["repairs"] == 0
