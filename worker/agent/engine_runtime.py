"""The real TaskRuntime: tasks as containers of this node's engine.

It decides nothing about tasks. It turns the engine's errors into refusals (the node can never run this) and failures (not
now), and the engine's events into the agent's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from covey.errors import Conflict, CoveyError, Forbidden, InvalidArgument, NotFound, NotModified
from covey.model.objects import NodeDescription, PortConfig
from covey.model.resources import NANO, Resources
from covey.wire.messages import AssignedNetwork, AssignedSecret, AssignedTask
from worker.agent.container_of_task import Attachment, SecretFile, TaskContainer, Unfit, container_of_task
from worker.agent.runtime import PrepareError, StartError
from worker.agent.supply import Supply
from worker.agent.vocabulary import Exited, Found, HealthChanged, Started
from worker.containers import record
from worker.containers.engine import Engine
from worker.containers.events import Subscription
from worker.containers.record import Container
from worker.network.endpoint import Attachment as NetworkAttachment
from worker.network.endpoint import Subnet

#: What the kernel calls a machine → what Docker does.
ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "aarch64"}


class EngineRuntime:
    """See worker.agent.runtime.TaskRuntime. ``node_id`` is asked each time: it changes when the node joins a cluster.

    Without a ``supply`` only images that are on the node will do.
    """

    def __init__(self, engine: Engine, version: str, supply: Supply | None = None) -> None:
        self._engine = engine
        self._version = version
        self._supply = supply
        self.node_id = ""
        self._secrets = engine.options.exec_root / "tasks"

    async def describe(self) -> NodeDescription:
        """What the node is and has: all its CPUs and memory, and what else it was told of."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        generic = self._engine.options.generic
        labels = dict(label.partition("=")[::2] for label in self._engine.options.labels)
        return NodeDescription(
            hostname=self._engine.options.name,
            os="linux",
            architecture=ARCHITECTURES.get(platform.machine(), platform.machine()),
            resources=Resources(
                nano_cpus=(os.cpu_count() or 1) * NANO,
                memory_bytes=memory,
                generic=generic.generic,
                generic_named=generic.generic_named,
            ),
            engine_version=self._version,
            engine_labels=labels,
            plugins=(
                ("Log", "json-file"),
                ("Network", "bridge"),
                ("Network", "host"),
                ("Network", "null"),
                ("Volume", "local"),
            ),
        )

    async def ensure_network(self, network: AssignedNetwork) -> None:
        """A bridge of the cluster's network on this node, under the cluster's id."""
        try:
            await self._engine.network.inspect_network(network.id)
            return
        except NotFound:
            pass
        spec: Mapping[str, Any] = network.spec
        gateways = dict(enumerate(network.gateways))
        subnets = [Subnet(subnet=subnet, gateway=gateways.get(index, "")) for index, subnet in enumerate(network.subnets)]
        try:
            await self._engine.network.create_network(
                network.name,
                "bridge",
                subnets,
                labels=spec.get("Labels") or {},
                internal=bool(spec.get("Internal")),
                attachable=bool(spec.get("Attachable")),
                enable_ipv6=bool(spec.get("EnableIPv6")),
                network_id=network.id,
                scope="swarm",
            )
        except Conflict:
            # Made by another task of this node meanwhile.
            await self._engine.network.inspect_network(network.id)
        except CoveyError as error:
            raise PrepareError(f"network {network.name}: {error.message}", rejected=False) from error

    async def drop_network(self, network_id: str) -> None:
        """Gone, or kept while a container is on it."""
        try:
            await self._engine.network.remove_network(network_id)
        except (NotFound, Forbidden):
            pass

    async def prepare(
        self,
        assigned: AssignedTask,
        networks: Sequence[AssignedNetwork],
        secrets: Sequence[AssignedSecret],
        configs: Sequence[AssignedSecret],
        said: Callable[[str], None] = lambda message: None,
    ) -> str:
        """The task's container, created if it is not there."""
        task = assigned.task
        for existing in self._engine.containers_of_owner(task.id):
            return existing.id
        description = await self.describe()
        try:
            wanted = container_of_task(
                assigned,
                networks,
                secrets,
                configs,
                node_id=self.node_id,
                hostname=description.hostname,
                platform=(description.os, description.architecture),
            )
        except Unfit as refusal:
            raise PrepareError(str(refusal), rejected=True) from refusal
        names = {network.id: network.name for network in networks}
        try:
            await self._supply_image(str(wanted.body.get("Image") or ""), said)
            mounts = await asyncio.to_thread(self._write_files, task.id, wanted.files)
            container_id, _ = await self._engine.create(
                wanted.name,
                _with_mounts_and_ports(wanted, mounts),
                owner=task.id,
                networks=_endpoints(wanted, names),
                port_group=task.service_id if any(port.mode == "ingress" for port in wanted.ports) else "",
            )
        except CoveyError as error:
            await asyncio.to_thread(self._forget_files, task.id)
            rejected = isinstance(error, (InvalidArgument, NotFound, Conflict, Forbidden))
            raise PrepareError(error.message, rejected=rejected) from error
        except OSError as error:
            await asyncio.to_thread(self._forget_files, task.id)
            raise PrepareError(_disk(error), rejected=False) from error
        return container_id

    async def _supply_image(self, name: str, said: Callable[[str], None]) -> None:
        if self._supply is not None and await self._supply.ensure(name, said):
            self._engine.events.publish("image", "pull", name, {"name": name})

    async def start(self, task_id: str, container_id: str) -> Started:
        """Started once: a container that has run before is not run again."""
        container = self._engine.container(container_id)
        if not container.state.running:
            if container.state.started_at:
                raise StartError("the container has run already; a task is started once", exit_code=container.state.exit_code)
            try:
                await self._engine.start(container_id)
            except NotModified:
                pass
            except CoveyError as error:
                code = container.state.exit_code
                raise StartError(error.message, exit_code=code if code in (126, 127, 128) else None) from error
        return self._started(task_id, container)

    async def stop(self, container_id: str, grace: float) -> None:
        """Stopped within ``grace`` seconds, then killed; one that does not run is fine. Its ports turn away first."""
        await self._engine.network.withdraw(container_id)
        try:
            await self._engine.stop(container_id, timeout=max(0, round(grace)))
        except (NotModified, NotFound):
            pass

    async def remove(self, task_id: str, container_id: str) -> None:
        """The container with its anonymous volumes, and the task's secret files."""
        for container in list(self._engine.containers_of_owner(task_id)):
            try:
                await self._engine.remove(container.id, force=True, volumes=True)
            except NotFound:
                pass
        await asyncio.to_thread(self._forget_files, task_id)

    async def found(self) -> Sequence[Found]:
        """Every container of a task; what an agent that was ended in the middle had begun is over first."""
        await self._engine.wait_begun()
        return [self._found(container) for container in self._engine.containers_of_owner()]

    def events(self) -> AsyncIterator[Exited | HealthChanged]:
        """The engine's die and health_status events of tasks' containers, from this call on."""
        listening = ExitStack()
        return self._told(listening, listening.enter_context(self._engine.events.subscribe()))

    async def _told(self, listening: ExitStack, subscription: Subscription) -> AsyncIterator[Exited | HealthChanged]:
        with listening:
            while (event := await subscription.get()) is not None:
                if event["Type"] != "container":
                    continue
                action, _, verdict = event["Action"].partition(": ")
                if action not in ("die", "health_status"):
                    continue
                try:
                    container = self._engine.container(event["Actor"]["ID"])
                except NotFound:
                    continue
                if not container.owner:
                    continue
                if action == "die":
                    yield self._exited(container, event)
                else:
                    yield HealthChanged(task_id=container.owner, health=verdict, cause=f"health check says {verdict}")
        raise RuntimeError("the agent did not keep up with the engine's events")

    def _exited(self, container: Container, event: Mapping[str, Any]) -> Exited:
        code = int(event["Actor"]["Attributes"].get("exitCode", container.state.exit_code))
        return Exited(
            task_id=container.owner,
            exit_code=code,
            oom_killed=container.state.oom_killed,
            error=container.state.error,
            at=container.state.finished_at,
            cause=f"container {container.short} exited with {code}",
        )

    def _started(self, task_id: str, container: Container) -> Started:
        health = container.state.health.status if container.state.health is not None else ""
        attachment = self._engine.host.live(container).attachment
        return Started(
            task_id=task_id,
            container_id=container.id,
            pid=container.state.pid,
            health="" if health == "none" else health,
            ports=_bound(attachment),
            addresses=_addresses(attachment),
            cause=f"container {container.short} started",
        )

    def _found(self, container: Container) -> Found:
        state = container.state
        if state.running or state.status == record.RESTARTING:
            kind = "running"
        else:
            kind = "exited" if state.started_at or state.exit_code else "created"
        started = self._started(container.owner, container)
        return Found(
            task_id=container.owner,
            container_id=container.id,
            state=kind,
            pid=state.pid,
            exit_code=state.exit_code,
            oom_killed=state.oom_killed,
            error=state.error,
            health=started.health,
            finished_at=state.finished_at,
            ports=started.ports,
            addresses=started.addresses,
        )

    def _write_files(self, task_id: str, files: Sequence[SecretFile]) -> list[dict[str, Any]]:
        """Secrets and configs as files under the run directory (a tmpfs on a usual machine), bound read-only."""
        folder = self._secrets / task_id
        mounts = []
        if files:
            # The files' own modes are for users inside the container; no other user of the machine may come this far.
            self._secrets.mkdir(exist_ok=True, mode=0o700)
            self._secrets.chmod(0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
        for number, file in enumerate(files):
            path = folder / str(number)
            path.unlink(missing_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as out:
                out.write(file.data)
                os.fchown(out.fileno(), file.uid, file.gid)
                os.fchmod(out.fileno(), file.mode)
            mounts.append({"Type": "bind", "Source": str(path), "Target": file.target, "ReadOnly": True})
        return mounts

    def _forget_files(self, task_id: str) -> None:
        shutil.rmtree(self._secrets / task_id, ignore_errors=True)


def _with_mounts_and_ports(wanted: TaskContainer, mounts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    bindings: dict[str, list[dict[str, str]]] = {}
    for port in wanted.ports:
        entry = {"HostIp": port.host_ip, "HostPort": str(port.published or "")}
        bindings.setdefault(f"{port.target}/{port.protocol}", []).append(entry)
    host = {**wanted.body["HostConfig"], "PortBindings": bindings}
    host["Mounts"] = [*(host.get("Mounts") or ()), *mounts]
    return {**wanted.body, "HostConfig": host}


def _endpoints(wanted: TaskContainer, names: Mapping[str, str]) -> dict[str, dict[str, Any]] | None:
    """Network name → EndpointSettings with the leader's addresses; None joins the default bridge."""
    if not wanted.attachments:
        return None
    return {names[attachment.network_id]: _settings(attachment, wanted.service) for attachment in wanted.attachments}


def _settings(attachment: Attachment, service: str) -> dict[str, Any]:
    plain = [address.partition("/")[0] for address in attachment.addresses]
    return {
        "NetworkID": attachment.network_id,
        "IPAMConfig": {
            "IPv4Address": next((address for address in plain if ":" not in address), ""),
            "IPv6Address": next((address for address in plain if ":" in address), ""),
        },
        "Aliases": list(attachment.aliases),
        "Service": service,
    }


def _bound(attachment: NetworkAttachment | None) -> tuple[PortConfig, ...]:
    ports: dict[tuple[int, str, int], PortConfig] = {}
    for bound in attachment.ports if attachment is not None else ():
        key = (bound.container_port, bound.protocol, bound.host_port)
        mode = "ingress" if bound.group else "host"
        ports[key] = PortConfig(target=key[0], protocol=key[1], published=key[2], mode=mode)
    return tuple(ports.values())


def _addresses(attachment: NetworkAttachment | None) -> tuple[str, ...]:
    endpoints = attachment.endpoints if attachment is not None else ()
    return tuple(f"{endpoint.ipv4}/{endpoint.ipv4_prefix}" for endpoint in endpoints if endpoint.ipv4)


def _disk(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the node's disk at {error.filename or 'the data root'}: free some or move --data-root"
    return f"{error.strerror}: {error.filename}"
