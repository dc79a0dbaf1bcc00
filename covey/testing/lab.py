"""A cluster of many nodes on this machine, made in seconds and broken on purpose.

    with Lab(nodes=4) as lab:                       # m1, w1, w2, w3
        lab.load_image(archive)
        lab.manager.client.post("/services/create", json=spec)
        lab.wait_until(lambda: len(lab.running("web")) == 3, 20, "three replicas run")
        lab.node("w1").kill()                       # the machine

Its nodes end with the process that made them, however that ends. For the command line, the same with a supervisor that
stays, see covey.testing.lab_commands: ``up(name, nodes, managers, profile) -> list[dict]``, ``down(name) -> bool``,
``ps(name=None) -> list[dict]``, ``kill(name, node, process=None)``, ``start(name, node)``,
``pause(name, node, seconds=None, process=None, whole=False)``, ``resume(name, node)``, ``partition(name, node)``,
``heal(name, node=None)``, ``load(name, archive, nodes=())``; all raise LabError. This file decides how nodes become a
cluster; it must not know how a machine is made, nor import a daemon.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from covey.errors import CoveyError
from covey.testing import lab_machine, lab_remains, lab_report, lab_switch
from covey.testing.lab_machine import LabError, Page
from covey.testing.lab_node import LabNode

T = TypeVar("T")

POLL = 0.05
_PORT = 2377
_LISTEN = f"0.0.0.0:{_PORT}"


class Lab:
    """``nodes`` machines, the first ``managers`` of them managers; ``profile`` names the timers of the daemons.

    ``cluster=False`` makes the machines and daemons but no cluster of them. ``options`` go to every daemon's command line.
    """

    def __init__(
        self,
        nodes: int = 4,
        managers: int = 1,
        profile: str = "test",
        name: str | None = None,
        *,
        cluster: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        if not 1 <= managers <= nodes <= lab_switch.MOST_NODES:
            raise LabError(f"a lab has 1 to {lab_switch.MOST_NODES} nodes, at least one a manager; not {managers} of {nodes}")
        self.name = name or f"x{uuid.uuid4().hex[:8]}"
        self.profile = profile
        self._roles = ["manager"] * managers + ["worker"] * (nodes - managers)
        self._managers = managers
        self._cluster = cluster
        self._options = tuple(options)
        self._switch: lab_switch.Switch | None = None
        self.nodes: dict[str, LabNode] = {}
        self.cut: set[str] = set()

    # -- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Lab:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def open(self) -> None:
        """The lab is up: every node ready in one cluster. Raises LabError; then nothing is left."""
        lab_machine.check()
        lab_remains.sweep()
        directory = lab_remains.claim(self.name, nodes=len(self._roles), profile=self.profile)
        try:
            self._switch = lab_switch.Switch(directory / "switch")
            for number, role in enumerate(self._roles):
                node = self._make(number, role)
                self.nodes[node.name] = node
                node.begin()
            self._switch.open()
            self._each(LabNode.finish)
            self._each(LabNode.wait_ready)
            if self._cluster:
                self._form()
        except BaseException:
            self.close()
            raise

    def _make(self, number: int, role: str) -> LabNode:
        name = f"m{number + 1}" if role == "manager" else f"w{number + 1 - self._managers}"
        switch = self.switch
        return LabNode(
            name,
            role,
            lab_switch.address_of(number),
            lab_remains.directory_of(self.name) / name,
            f"{lab_remains.cgroup_of(self.name)}/{name}",
            self.profile,
            lambda machine: switch.plug(machine, number),
            self._options,
        )

    def _form(self) -> None:
        first, *others = self.nodes.values()
        with first.connect() as client:
            client.post("/swarm/init", json={"ListenAddr": _LISTEN, "AdvertiseAddr": first.address})
            tokens = client.get("/swarm")["JoinTokens"]
        self._each(lambda node: self._join(node, first.address, tokens), others)
        everyone = set(self.nodes)
        self.wait_until(lambda: self.ready() == everyone, 30, f"all of {', '.join(everyone)} are ready")

    def _join(self, node: LabNode, manager: str, tokens: dict[str, str]) -> None:
        with node.connect() as client:
            body = {
                "ListenAddr": _LISTEN,
                "AdvertiseAddr": node.address,
                "RemoteAddrs": [f"{manager}:{_PORT}"],
                "JoinToken": tokens[node.role.capitalize()],
            }
            client.post("/swarm/join", json=body)

    def close(self) -> None:
        """End every machine and remove everything. May be called again."""
        for node in self.nodes.values():
            node.kill()
        if self._switch is not None:
            self._switch.machine.kill()
            self._switch = None
        found = lab_remains.record(self.name)
        if found is not None and found["pid"] == os.getpid():
            lab_remains.clear(self.name)
        lab_remains.forget_base()

    # -- nodes -----------------------------------------------------------------------------------------------------

    @property
    def switch(self) -> lab_switch.Switch:
        """The switch. Raises LabError when the lab is not up."""
        if self._switch is None:
            raise LabError(f"lab {self.name} is not up")
        return self._switch

    def node(self, name: str) -> LabNode:
        """A node by name. Raises LabError that lists them."""
        try:
            return self.nodes[name]
        except KeyError:
            raise LabError(f"lab {self.name} has no node {name!r}: it has {', '.join(self.nodes)}") from None

    @property
    def manager(self) -> LabNode:
        """The first manager whose machine runs."""
        return next((node for node in self.nodes.values() if node.role == "manager" and node.alive), self.node("m1"))

    @property
    def workers(self) -> list[LabNode]:
        """The workers, dead ones too."""
        return [node for node in self.nodes.values() if node.role == "worker"]

    def load_image(self, archive: bytes, nodes: Iterable[str] = ()) -> None:
        """Load a docker-archive on the named nodes, on all that run if none is named."""
        chosen = [self.node(name) for name in nodes] or [node for node in self.nodes.values() if node.alive]
        self._each(lambda node: node.load_image(archive), chosen)

    def _each(self, do: Callable[[LabNode], T], nodes: Sequence[LabNode] | None = None) -> list[T]:
        chosen = list(self.nodes.values()) if nodes is None else list(nodes)
        if not chosen:
            return []
        with ThreadPoolExecutor(max_workers=min(16, len(chosen))) as pool:
            return list(pool.map(do, chosen))

    # -- faults ----------------------------------------------------------------------------------------------------

    def partition(self, *names: str) -> None:
        """Cut nodes off: every packet of theirs is lost, silently; inside the machine all goes on."""
        for name in names:
            self.switch.cut(self._number(name))
            self.cut.add(name)

    def heal(self, *names: str) -> None:
        """End partitions, of the named nodes or all."""
        for name in names or sorted(self.cut):
            self.switch.mend(self._number(name))
            self.cut.discard(name)

    def _number(self, name: str) -> int:
        return list(self.nodes).index(self.node(name).name)

    # -- looking ---------------------------------------------------------------------------------------------------

    def ready(self) -> set[str]:
        """Names of the nodes that the cluster calls ready."""
        return {node["Description"]["Hostname"] for node in self.manager.client.get("/nodes") if _is_ready(node)}

    def hostnames(self) -> dict[str, str]:
        """Node id → name of the machine; a node that left and joined again has several ids."""
        return {node["ID"]: node["Description"]["Hostname"] for node in self.manager.client.get("/nodes")}

    def tasks(self, service: str | None = None, **filters: str) -> list[dict[str, Any]]:
        """The tasks of a service, as the Engine API shows them."""
        wanted = {key.replace("_", "-"): [value] for key, value in filters.items()}
        if service is not None:
            wanted["service"] = [service]
        found: list[dict[str, Any]] = self.manager.client.get("/tasks", {"filters": json.dumps(wanted)})
        return found

    def running(self, service: str | None = None) -> list[dict[str, Any]]:
        """Tasks that should run and do."""
        return [
            task
            for task in self.tasks(service, desired_state="running")
            if task["DesiredState"] == "running" and task["Status"]["State"] == "running"
        ]

    def fetch(self, url: str, timeout: float = 3.0) -> Page:
        """GET http://… as a client beside the nodes would. Raises LabError when nobody answers."""
        return self.switch.machine.fetch(url, timeout)

    def run_in_client(self, *argv: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a program in the network where clients stand; files and processes are this machine's."""
        return subprocess.run(
            self.switch.machine.in_network(*argv), capture_output=True, text=True, timeout=timeout, check=False
        )

    def wait_until(self, predicate: Callable[[], T | None], deadline: float, what: str, poll: float = POLL) -> T:
        """The first true value of ``predicate``, asked again until ``deadline`` seconds have passed.

        Refusals count as false. Raises TimeoutError with what was wanted, what came last, and what the cluster knew.
        """
        end = time.monotonic() + deadline
        last: object = None
        while True:
            try:
                if value := predicate():
                    return value
                last = value
            except (CoveyError, LabError, OSError) as error:
                last = f"{type(error).__name__}: {error}"
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {deadline:g} s, last: {last!r}\n{self.report()}")
            time.sleep(poll)

    def report(self) -> str:
        """What the cluster knows now, for a person."""
        return lab_report.report(self.nodes.values())

    def __iter__(self) -> Iterator[LabNode]:
        return iter(self.nodes.values())


def _is_ready(node: dict[str, Any]) -> bool:
    return bool(node["Status"]["State"] == "ready")
