"""The node's life in a cluster: join, leave, taking up again; what fails leaves nothing half-done."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from covey import tunnel
from covey.clock import SystemClock
from covey.errors import CoveyError, InvalidArgument, Unavailable
from covey.model.objects import NodeDescription
from covey.wire.messages import Heartbeat, JoinReply
from worker.agent.vocabulary import Found
from worker.cluster_life import ClusterLife, LifeOptions

sys.path.insert(0, str(Path(__file__).parent))

from scripted_manager import CLUSTER, Authority, Peer, port

AUTHORITY = Authority()
MANAGER = AUTHORITY.identity("m1", "manager")


class Containers:
    """A runtime whose node has one container of a task."""

    def __init__(self) -> None:
        self.removed: list[str] = []

    async def describe(self) -> NodeDescription:
        return NodeDescription(hostname="w1")

    async def found(self) -> Sequence[Found]:
        return [] if self.removed else [Found(task_id="t1", container_id="c1", state="exited")]

    async def stop(self, container_id: str, grace: float) -> None:
        raise RuntimeError("already stopped")

    async def remove(self, task_id: str, container_id: str) -> None:
        self.removed.append(task_id)

    async def events(self) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield


class Node:
    """A ClusterLife with its directory; ``ids`` are the node ids it took, one after the other."""

    def __init__(self, directory: Path, etcd: str = "/nowhere/etcd") -> None:
        self.directory = directory
        self.containers = Containers()
        self.ids: list[str] = []
        options = LifeOptions(
            data_root=directory / "data",
            exec_root=directory / "run",
            hostname="w1",
            software="test",
            manager_argv=("/nowhere/manager",),
            etcd_binary=etcd,
        )
        runtime: Any = self.containers
        self.life = ClusterLife(options, runtime, SystemClock(), self._serve, self.ids.append)

    async def _serve(self) -> tunnel.Duplex:
        raise ConnectionRefusedError

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ClusterLife]:
        run = asyncio.create_task(self.life.run())
        await asyncio.sleep(0)
        try:
            yield self.life
        finally:
            run.cancel()
            with suppress(asyncio.CancelledError):
                await run

    def kept(self) -> list[str]:
        """Files that speak of a cluster."""
        names = (
            "data/node.json",
            "data/certificates",
            "data/agent",
            "data/etcd",
            "data/manager",
            "run/etcd.json",
            "run/manager.json",
        )
        return [name for name in names if (self.directory / name).exists()]


class Cluster:
    """A scripted manager that takes in who joins, with a role, and holds sessions."""

    def __init__(self, role: str = "worker") -> None:
        self.role = role
        self.sessions: list[Peer] = []
        self.address = ""

    async def script(self, peer: Peer) -> None:
        if peer.hello.purpose == "session":
            await peer.open("s1", heartbeat=0.1)
            self.sessions.append(peer)
            while True:
                await peer.receive()
                await peer.send(Heartbeat())
        await peer.welcome(AUTHORITY.certificate)
        request = await peer.receive()
        reply = JoinReply(
            node_id="w1",
            role=self.role,
            certificate_pem=AUTHORITY.sign(request.request_pem, "w1"),
            ca_pem=AUTHORITY.certificate,
            cluster_id=CLUSTER,
            managers=(self.address,),
        )
        await peer.send(reply)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[dict[str, Any]]:
        """Yields the body of a join."""
        async with port(MANAGER, self.script) as self.address:
            yield {"RemoteAddrs": [self.address], "JoinToken": AUTHORITY.token}


async def wait(condition: Callable[[], bool], what: str, state: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"waited 10 s for {what}: {state()}"
        await asyncio.sleep(0.005)


@pytest.mark.asyncio
async def test_a_node_joins_opens_a_session_and_takes_it_up_again_after_a_restart(tmp_path: Path) -> None:
    cluster = Cluster()
    async with cluster.serving() as body:
        first = Node(tmp_path)
        async with first.running() as life:
            assert life.swarm_info()["LocalNodeState"] == "inactive"
            await life.join(body)
            await wait(lambda: len(cluster.sessions) == 1, "a session", life.statistics)
            info = life.swarm_info()
            assert (info["NodeID"], info["LocalNodeState"], info["ControlAvailable"]) == ("w1", "active", False)
            assert (info["NodeAddr"], info["RemoteManagers"]) == ("127.0.0.1", [{"NodeID": "", "Addr": cluster.address}])
            assert first.ids == ["w1"]
            with pytest.raises(Unavailable, match="already part of a swarm"):
                await life.join(body)
            with pytest.raises(Unavailable, match="already part of a swarm"):
                await life.init({})
        second = Node(tmp_path)
        async with second.running() as life:
            await wait(lambda: len(cluster.sessions) == 2, "the session again", life.statistics)
            assert second.ids == ["w1"]
    assert second.containers.removed == []


@pytest.mark.asyncio
async def test_leaving_removes_tasks_containers_and_every_trace(tmp_path: Path) -> None:
    cluster = Cluster()
    node = Node(tmp_path)
    async with cluster.serving() as body, node.running() as life:
        await life.join(body)
        await wait(lambda: bool(cluster.sessions), "a session", life.statistics)
        assert node.kept()
        await life.leave(force=False)
        assert node.containers.removed == ["t1"]
        assert node.kept() == []
        assert node.ids == ["w1", ""]
        assert life.swarm_info()["LocalNodeState"] == "inactive"
        with pytest.raises(Unavailable, match="not part of a swarm"):
            await life.leave(force=True)


@pytest.mark.asyncio
async def test_a_manager_s_token_is_refused_and_the_node_stays_as_it_was(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with Cluster("manager").serving() as body, node.running() as life:
        with pytest.raises(InvalidArgument, match="runs one manager"):
            await life.join(body)
        assert life.membership is None
    assert node.kept() == []


@pytest.mark.asyncio
async def test_without_etcd_init_says_so_at_once_and_can_be_tried_again(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node.running() as life:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(CoveyError, match="/nowhere/etcd: No such file or directory") as refusal:
                await life.init({"AdvertiseAddr": "127.0.0.1"})
            assert refusal.value.status == 503
            assert time.monotonic() - began < 5
            assert life.membership is None
            assert node.kept() == []
            assert life.statistics()["children"] == {}


@pytest.mark.asyncio
async def test_when_the_manager_cannot_be_started_its_etcd_goes_too(tmp_path: Path) -> None:
    script = tmp_path / "etcd"
    script.write_text(f"#!/bin/sh\necho $$ >>{tmp_path}/pids\nexec sleep 1000\n")
    script.chmod(0o755)
    node = Node(tmp_path / "node", etcd=str(script))

    async def answers(etcd: Any) -> None:
        await asyncio.sleep(0)

    node.life._etcd_answers = answers  # type: ignore[method-assign]
    async with node.running() as life:
        with pytest.raises(CoveyError, match="/nowhere/manager: No such file or directory"):
            await life.init({"AdvertiseAddr": "127.0.0.1"})
    for pid in (tmp_path / "pids").read_text().split():
        assert not Path("/proc", pid).exists() or "Z" in Path("/proc", pid, "status").read_text().split("State:")[1][:4]
    assert node.kept() == []


@pytest.mark.asyncio
async def test_a_lost_certificate_is_said_and_does_not_end_the_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster()
    async with cluster.serving() as body:
        async with Node(tmp_path).running() as life:
            await life.join(body)
        (tmp_path / "data" / "certificates" / "node.crt").unlink()
        async with Node(tmp_path).running() as life:
            await wait(lambda: "is gone: leave the cluster and join again" in caplog.text, "the complaint", lambda: caplog.text)
            assert life.swarm_info()["LocalNodeState"] == "active"
