"""A whole manager over a memory store in this process, reached as users reach it: its private socket and its cluster port."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fake_worker import FakeWorker, join

from covey.engine_api.aio import Client
from covey.engine_api.proxy import connect_unix
from covey.tls import Identity, make_key_and_request
from manager.main import Process
from manager.options import ManagerOptions
from manager.store.memory import MemoryStore
from manager.store.mvcc import Database


async def wait_until(what: str, condition: Callable[[], Awaitable[Any]], seconds: float = 8.0) -> Any:
    """The first true value of ``condition``; fails with what it last was."""
    deadline, last = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        last = await condition()
        if last:
            return last
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}; last seen {last!r}")


class Cluster:
    """``database`` may be shared by several: then they are several managers of one cluster."""

    def __init__(self, database: Database | None = None, directory: Path | None = None, listen: str = "127.0.0.1:0") -> None:
        self.database = database or Database()
        self.directory = directory or Path(tempfile.mkdtemp(prefix="covey-test-", dir="/tmp"))
        self._own = directory is None
        self.store = MemoryStore(self.database)
        options = ManagerOptions(
            data_root=self.directory / "data", exec_root=self.directory / "run", listen=listen, profile="test"
        )
        self.options = options
        self.process = Process(options, self.store)
        self.client = Client(connect_unix(str(options.socket_path)), name="the manager")
        self.identity: Identity
        self.node_id = ""
        self._stop = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()
        self._serving: asyncio.Task[None]

    async def __aenter__(self) -> Cluster:
        await self._stack.__aenter__()
        await self._stack.enter_async_context(self.process)
        self._serving = asyncio.create_task(self.process.serve_until(self._stop), name="manager under test")
        await wait_until("the private socket", self._answers)
        return self

    async def __aexit__(self, *fault: object) -> None:
        self._stop.set()
        try:
            async with asyncio.timeout(10):
                await self._serving
        finally:
            await self._stack.aclose()
            if self._own:
                shutil.rmtree(self.directory, ignore_errors=True)

    async def _answers(self) -> bool:
        assert not self._serving.done(), self._serving
        try:
            return await self.client.call("system_ping") == "OK"
        except Exception:
            return False

    @property
    def address(self) -> str:
        return self.process.address

    async def bootstrap(self, **body: Any) -> dict[str, Any]:
        key, request = make_key_and_request()
        reply: dict[str, Any] = await self.client.call("covey_bootstrap", json={"RequestPEM": request, **body})
        self.identity = Identity(key, reply["CertificatePEM"], reply["CAPEM"])
        self.node_id = reply["NodeID"]
        return reply

    async def token(self, role: str = "Worker") -> str:
        return str((await self.client.call("swarm_inspect"))["JoinTokens"][role])

    async def join(self, hostname: str) -> FakeWorker:
        """A worker that has joined and has no session yet."""
        identity, reply = await join(self.address, await self.token(), hostname)
        return FakeWorker(self.address, identity, reply.node_id, hostname)

    @contextlib.asynccontextmanager
    async def workers(self, number: int) -> Any:
        """Joined workers with sessions, ready."""
        async with contextlib.AsyncExitStack() as stack:
            found = [await stack.enter_async_context(await self.join(f"w{index}")) for index in range(number)]
            await wait_until("workers ready", lambda: self.are_ready(found))
            yield found

    async def are_ready(self, workers: list[FakeWorker]) -> bool:
        states = {node["ID"]: node["Status"]["State"] for node in await self.client.call("node_list")}
        return all(states.get(worker.node_id) == "ready" for worker in workers)

    async def create(self, name: str, replicas: int = 1, **more: Any) -> str:
        spec = service_spec(name, replicas, **more)
        return str((await self.client.call("service_create", json=spec))["ID"])

    async def running(self, service: str) -> list[dict[str, Any]]:
        """The service's tasks that are wanted and run."""
        tasks = await self.client.call("task_list", query={"filters": f'{{"service":["{service}"]}}'})
        return [task for task in tasks if task["DesiredState"] == "running" and task["Status"]["State"] == "running"]

    async def wait_running(self, service: str, number: int, seconds: float = 8.0) -> list[dict[str, Any]]:
        async def enough() -> Any:
            found = await self.running(service)
            return found if len(found) == number else []

        return await wait_until(f"{number} of {service} running", enough, seconds)


def service_spec(name: str, replicas: int = 1, **more: Any) -> dict[str, Any]:
    """A small valid spec."""
    container = {"Image": "busybox", **more.pop("container", {})}
    template = {"ContainerSpec": container, **more.pop("template", {})}
    return {"Name": name, "TaskTemplate": template, "Mode": {"Replicated": {"Replicas": replicas}}, **more}
