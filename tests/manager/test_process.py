"""A manager process over a real etcd, with scripted workers: it converges, dies, stalls and comes back without harm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_worker import FakeWorker
from harness import Cluster, service_spec, wait_until

from covey.etcd import EtcdChild
from covey.tls import Identity, make_key_and_request

pytestmark = [pytest.mark.root, pytest.mark.asyncio]

START = (
    "import sys; from pathlib import Path; from manager.main import run; from manager.options import ManagerOptions;"
    "d = Path(sys.argv[1]); sys.exit(run(ManagerOptions(data_root=d / 'data', exec_root=d / 'run',"
    " listen=sys.argv[2], store=(sys.argv[3],), profile='test')))"
)


class Real(Cluster):
    """The harness' Cluster, whose manager and etcd are processes of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.etcd = EtcdChild(directory=str(self.directory / "etcd"))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._listen = "127.0.0.1:0"
        self._known = ""

    @property
    def address(self) -> str:
        return self._known

    async def __aenter__(self) -> Real:
        self.start_etcd()
        await self.start_manager()
        return self

    async def __aexit__(self, *fault: object) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start_etcd(self) -> None:
        self.etcd.prepare()
        with (self.directory / "etcd.log").open("ab") as log:
            self.processes["etcd"] = subprocess.Popen(
                self.etcd.argv(), cwd=self.etcd.directory, env={**os.environ, **self.etcd.environment()}, stderr=log
            )

    async def start_manager(self) -> None:
        argv = [sys.executable, "-P", "-c", START, str(self.directory), self._listen, self.etcd.endpoint()]
        with (self.directory / "manager.log").open("ab") as log:
            self.processes["manager"] = subprocess.Popen(argv, stderr=log)
        await wait_until("the manager's socket", self._pings, 15)

    async def _pings(self) -> bool:
        assert self.processes["manager"].poll() is None, self.log()
        with contextlib.suppress(Exception):
            return await self.client.call("system_ping") == "OK"
        return False

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        process = self.processes[name]
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait()

    def log(self) -> str:
        return (self.directory / "manager.log").read_text()

    async def begin(self) -> None:
        reply = await self.bootstrap()
        self._known = self._listen = reply["Managers"][0]


@contextlib.asynccontextmanager
async def three_running() -> AsyncIterator[tuple[Real, list[FakeWorker], set[str]]]:
    """A cluster of three workers that run three replicas; the ids of their tasks."""
    async with Real() as real:
        await real.begin()
        async with real.workers(3) as workers:
            await real.create("web", 3)
            yield real, workers, {task["ID"] for task in await real.wait_running("web", 3)}


async def still_running(real: Real, ids: set[str]) -> bool:
    try:
        return {task["ID"] for task in await real.running("web")} == ids
    except Exception:
        return False


async def test_a_killed_manager_comes_back_to_the_same_cluster() -> None:
    async with three_running() as (real, workers, ids):
        nodes = {task["NodeID"] for task in await real.running("web")}
        assert nodes == {worker.node_id for worker in workers}
        real.kill("manager")
        await asyncio.sleep(0.5)
        started = time.monotonic()
        await real.start_manager()
        await wait_until("the tasks as they were", lambda: still_running(real, ids), 10)
        await wait_until("every node", lambda: real.are_ready(workers), 10)
        assert time.monotonic() - started < 8
        version = (await real.client.call("service_inspect", {"id": "web"}))["Version"]["Index"]
        await real.client.call("service_update", {"id": "web"}, {"version": str(version)}, json=service_spec("web", 5))
        grown = {task["ID"] for task in await real.wait_running("web", 5)}
        assert ids < grown


async def test_a_stalled_manager_blames_no_node() -> None:
    async with three_running() as (real, workers, ids):
        real.kill("manager", signal.SIGSTOP)
        await asyncio.sleep(5.0)  # the stall itself: 8 times the time after which a node is down, and past the lease
        real.kill("manager", signal.SIGCONT)

        async def leads_again() -> Any:
            with contextlib.suppress(Exception):
                return (await real.client.call("covey_statistics"))["candidate"]["leading"]

        await wait_until("an office", leads_again, 10)
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            states = {node["ID"]: node["Status"]["State"] for node in await real.client.call("node_list")}
            assert all(states[worker.node_id] != "down" for worker in workers), real.log()
            await asyncio.sleep(0.05)
        assert await still_running(real, ids), real.log()
        await wait_until("every node", lambda: real.are_ready(workers), 10)


async def test_a_killed_etcd_costs_nothing_that_was_acknowledged() -> None:
    async with three_running() as (real, workers, ids):
        real.kill("etcd")
        await asyncio.sleep(0.5)
        real.start_etcd()
        await wait_until("the tasks as they were", lambda: still_running(real, ids), 15)
        await wait_until("every node", lambda: real.are_ready(workers), 15)
        assert await still_running(real, ids), real.log()
        service = (await real.client.call("service_inspect", {"id": "web"}))["ID"]
        await real.client.call("service_delete", {"id": service})

        async def gone() -> bool:
            return not any(worker.tasks for worker in workers)

        await wait_until("nothing left on the workers", gone, 10)


async def test_a_missing_etcd_is_said_once_and_waited_for() -> None:
    real = Real()
    try:
        await real.start_manager()

        async def said() -> bool:
            return "the store does not answer" in real.log()

        await wait_until("one clear line", said, 15)
        real.start_etcd()
        key, request = make_key_and_request()
        reply = await real.client.call("covey_bootstrap", json={"RequestPEM": request})
        assert Identity(key, reply["CertificatePEM"], reply["CAPEM"])
        assert real.log().count("the store does not answer") <= 2, real.log()
        real.kill("manager", signal.SIGTERM)
        assert real.processes["manager"].wait(10) == 0, real.log()
    finally:
        await real.__aexit__()
