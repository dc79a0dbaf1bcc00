"""The node's life in a cluster: init, join, leave; meanwhile the agent with its session, and on a manager its processes.

It decides what is started and in which order. Containers outlive all of it but ``leave``. Only one of init, join and
leave happens at a time; one that fails takes back what it had begun.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey import tls, tunnel
from covey.clock import Clock
from covey.engine_api.aio import Client
from covey.engine_api.proxy import connect_unix
from covey.errors import Conflict, CoveyError, Internal, InvalidArgument, Unavailable
from covey.etcd import EtcdChild
from worker import addresses, identity
from worker.agent.cluster_images import ClusterImages
from worker.agent.driver import Driver
from worker.agent.journal import Journal
from worker.agent.machine import AgentMachine
from worker.agent.registry_logins import RegistryLogins
from worker.agent.runtime import TaskRuntime
from worker.agent.session import Session
from worker.children import Child, ChildSpec
from worker.identity import Membership

log = logging.getLogger(__name__)

ALREADY = 'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
NOT_PART = "This node is not part of a swarm"
LAST_MANAGER = (
    "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager "
    "erases all current state of the swarm. Use `--force` to ignore this message."
)


@dataclass(frozen=True, slots=True)
class LifeOptions:
    """Where things are and how the manager is started (``manager_argv`` + options)."""

    data_root: Path
    exec_root: Path
    hostname: str
    software: str
    manager_argv: Sequence[str]
    profile: str = "default"
    etcd_binary: str = "etcd"
    log_level: str = "info"


class ClusterLife:
    """See the module's docstring. ``run`` goes on as long as the daemon."""

    def __init__(
        self,
        options: LifeOptions,
        runtime: TaskRuntime,
        clock: Clock,
        serve: Callable[[], Awaitable[tunnel.Duplex]],
        node_changed: Callable[[str], None] = lambda node_id: None,
        images: ClusterImages | None = None,
        logins: RegistryLogins | None = None,
    ) -> None:
        self._options = options
        self._runtime = runtime
        self._clock = clock
        self._serve = serve
        self._node_changed = node_changed
        self._images = images
        self._logins = logins
        self._path = options.data_root / "node.json"
        self._certificates = options.data_root / "certificates"
        self._lock = asyncio.Lock()
        self._group: asyncio.TaskGroup
        self._running: list[asyncio.Task[None]] = []
        self._children: list[Child] = []
        self._driver: Driver | None = None
        self._session: Session | None = None
        self.membership: Membership | None = None

    @property
    def manager_socket(self) -> Path:
        """Where this node's manager answers."""
        return self._options.exec_root / "manager.sock"

    @property
    def is_manager(self) -> bool:
        """Whether this node runs a manager."""
        return self.membership is not None and self.membership.role == "manager"

    async def run(self) -> None:
        """Take up the life the node had; until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            self.membership = identity.load(self._path)
            if self.membership is not None:
                self._begin(self.membership)
            await asyncio.Event().wait()

    def statistics(self) -> dict[str, Any]:
        """What runs, for people."""
        return {
            "agent": self._driver.statistics() if self._driver else None,
            "session": self._session.statistics() if self._session else None,
            "children": {child.spec.name: child.statistics() for child in self._children},
        }

    def swarm_info(self) -> dict[str, Any]:
        """The node's own part of /info's Swarm object."""
        member = self.membership
        if member is None:
            return {
                "NodeID": "",
                "NodeAddr": "",
                "LocalNodeState": "inactive",
                "ControlAvailable": False,
                "Error": "",
                "RemoteManagers": None,
            }
        fault = self._session.statistics()["fault"] if self._session else ""
        managers = self._session.managers if self._session else member.managers
        return {
            "NodeID": member.node_id,
            "NodeAddr": member.address,
            "LocalNodeState": "active",
            "ControlAvailable": member.role == "manager",
            "Error": str(fault),
            "RemoteManagers": [{"NodeID": "", "Addr": address} for address in managers],
        }

    async def init(self, body: Mapping[str, Any]) -> str:
        """Make a cluster with this node as its manager; its node id."""
        async with self._lock:
            if self.membership is not None:
                raise Unavailable(ALREADY)
            listen = identity.with_port(str(body.get("ListenAddr") or "0.0.0.0"))
            advertise = await addresses.advertise(str(body.get("AdvertiseAddr") or ""), listen)
            key_pem, request_pem = tls.make_key_and_request()
            request = {
                **body,
                "ListenAddr": listen,
                "AdvertiseAddr": advertise,
                "Hostname": self._options.hostname,
                "RequestPEM": request_pem,
            }
            self._start_manager(listen, advertise)
            try:
                for child in self._children:
                    await child.wait_ready()
                reply = await self._bootstrap(request)
            except BaseException:
                await self._end_manager(erase=True)
                raise
            member = Membership(
                node_id=str(reply["NodeID"]),
                role="manager",
                cluster_id=str(reply["ClusterID"]),
                managers=tuple(reply["Managers"]),
                address=advertise.rpartition(":")[0].strip("[]"),
                listen=listen,
            )
            self._settle(member, tls.Identity(key_pem, str(reply["CertificatePEM"]), str(reply["CAPEM"])))
            self._begin_agent(member)
            return member.node_id

    async def join(self, body: Mapping[str, Any]) -> None:
        """Become a node of an existing cluster."""
        async with self._lock:
            if self.membership is not None:
                raise Unavailable(ALREADY)
            remote = [str(address) for address in body.get("RemoteAddrs") or ()]
            given = str(body.get("AdvertiseAddr") or "")
            availability = str(body.get("Availability") or "active").lower()
            found, reply = await identity.join(remote, str(body.get("JoinToken") or ""), self._options.hostname, availability)
            if reply.role == "manager":
                raise InvalidArgument(
                    "this release runs one manager: a second one comes with a later release; join with the worker's token"
                )
            managers = reply.managers or tuple(map(identity.with_port, remote))
            address = given.rpartition(":")[0].strip("[]") or given if given else await addresses.toward(managers[0])
            member = Membership(
                node_id=reply.node_id, role=reply.role, cluster_id=reply.cluster_id, managers=managers, address=address
            )
            self._settle(member, found)
            self._begin_agent(member)

    async def leave(self, force: bool) -> None:
        """Part with the cluster: tasks' containers are removed, certificates forgotten; a last manager's state erased."""
        async with self._lock:
            if self.membership is None:
                raise Unavailable(NOT_PART)
            if self.is_manager and not force:
                raise Unavailable(LAST_MANAGER)
            manager = self.is_manager
            await self._end_running()
            self._path.unlink(missing_ok=True)
            self.membership = None
            self._node_changed("")
            for found in await self._runtime.found():
                with suppress(Exception):
                    await self._runtime.stop(found.container_id, 10.0)
                await self._runtime.remove(found.task_id, found.container_id)
            if manager:
                await self._end_manager(erase=True)
            for gone in (self._certificates, self._options.data_root / "agent"):
                await asyncio.to_thread(shutil.rmtree, gone, ignore_errors=True)

    # -- what runs -------------------------------------------------------------------------------------------------

    def _settle(self, member: Membership, found: tls.Identity) -> None:
        found.save(self._certificates)
        identity.save(self._path, member)
        self.membership = member

    def _begin(self, member: Membership) -> None:
        if member.role == "manager":
            self._start_manager(member.listen, f"{member.managers[0]}")
        self._begin_agent(member)

    def _begin_agent(self, member: Membership) -> None:
        self._node_changed(member.node_id)
        self._running.append(self._group.create_task(self._agent(member), name="agent"))

    def _start_manager(self, listen: str, advertise: str) -> None:
        options = self._options
        etcd = EtcdChild(directory=str(options.data_root / "etcd"), binary=options.etcd_binary)
        argv = [
            *options.manager_argv,
            f"--data-root={options.data_root}",
            f"--exec-root={options.exec_root}",
            f"--listen={listen}",
            f"--advertise={advertise}",
            f"--store={etcd.endpoint()}",
            f"--profile={options.profile}",
            f"--log-level={options.log_level}",
        ]
        self._children = [
            Child(
                ChildSpec(
                    name="etcd",
                    argv=etcd.argv(),
                    state_path=options.exec_root / "etcd.json",
                    log_path=options.data_root / "logs" / "etcd.log",
                    directory=Path(etcd.directory),
                    environment=etcd.environment(),
                    prepare=etcd.prepare,
                    ready=lambda: self._etcd_answers(etcd),
                ),
                self._clock,
            ),
            Child(
                ChildSpec(
                    name="manager",
                    argv=argv,
                    state_path=options.exec_root / "manager.json",
                    log_path=options.data_root / "logs" / "manager.log",
                    environment={"MALLOC_ARENA_MAX": "1"},  # as worker.kernel.malloc; gRPC's threads start early
                    ready=self._manager_answers,
                ),
                self._clock,
            ),
        ]
        for child in self._children:
            self._running.append(self._group.create_task(child.run(), name=child.spec.name))

    async def _etcd_answers(self, etcd: EtcdChild) -> None:
        while await asyncio.to_thread(etcd.trouble):
            await self._clock.sleep(0.05)

    def _manager(self) -> Client:
        return Client(connect_unix(str(self.manager_socket)), name="this node's manager")

    async def _manager_answers(self) -> None:
        while True:
            with suppress(CoveyError):
                await self._manager().call("system_ping")
                return
            await self._clock.sleep(0.05)

    async def _bootstrap(self, request: Mapping[str, Any]) -> dict[str, Any]:
        reply = await self._manager().call("covey_bootstrap", json=dict(request))
        if not isinstance(reply, dict):
            raise Internal("the manager answered /covey/bootstrap with no object; see its log")
        return reply

    async def _agent(self, member: Membership) -> None:
        """The agent with its session; one that breaks by a fault of ours is said so and starts again from its journal."""
        pause = 1.0
        while True:
            try:
                # In a task of its own, as a TaskGroup that fails leaves its task marked as cancelled before Python 3.11.3.
                await asyncio.create_task(self._agent_once(member), name="agent: life")
            except Exception:
                log.exception("the agent broke; containers go on, it starts again in %.0f s", pause)
            await self._clock.sleep(pause)
            pause = min(pause * 2, 30.0)

    async def _agent_once(self, member: Membership) -> None:
        found = tls.Identity.load(self._certificates)
        if found is None:
            raise Conflict(f"the certificate in {self._certificates} is gone: leave the cluster and join again")
        async with AsyncExitStack() as stack:
            journal = stack.enter_context(Journal(self._options.data_root / "agent" / "journal"))
            if self._images is not None:
                await stack.enter_async_context(self._images.serving(found, member.cluster_id))
            driver = Driver(AgentMachine(member.node_id), journal, self._runtime, self._clock)
            session = Session(
                found,
                member.managers,
                self._clock,
                software=self._options.software,
                describe=self._runtime.describe,
                revision=lambda: driver.revision,
                feed=driver.feed,
                serve=self._serve,
                learned=self._learn,
                address=member.address,
                images=self._images,
                logins=self._logins,
            )
            self._driver, self._session = driver, session
            async with asyncio.TaskGroup() as group:
                group.create_task(driver.run(session), name="agent: driver")
                group.create_task(session.run(), name="agent: session")

    def _learn(self, managers: Sequence[str]) -> None:
        if self.membership is not None:
            member = Membership(**{**_fields(self.membership), "managers": tuple(managers)})
            identity.save(self._path, member)
            self.membership = member

    async def _end_running(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._running.clear()
        self._driver = self._session = None

    async def _end_manager(self, *, erase: bool) -> None:
        await self._end_running()
        for child in reversed(self._children):
            await child.end()
        self._children = []
        if erase:
            for gone in ("etcd", "manager"):
                await asyncio.to_thread(shutil.rmtree, self._options.data_root / gone, ignore_errors=True)


def _fields(member: Membership) -> dict[str, Any]:
    return {name: getattr(member, name) for name in member.__struct_fields__}


def hostname() -> str:
    """The node's own name."""
    return socket.gethostname()
