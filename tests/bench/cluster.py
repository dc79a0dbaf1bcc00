"""The table `cluster`: what a user waits for and what the daemons hold, Covey beside dockerd in Swarm mode.

Both nodes stand for the whole run; each round measures one, then the other, the order alternating; medians are printed
with the ratio Covey/Docker and with the aims that issue 2 sets. Times are from the call to the moment the API says so.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from rivals import COVEY, DOCKER, Rival, running
from waiting import wait

IMAGE = "covey/busybox:bench"
REPLICAS = 20
FEWER = 10
KILLS = 3

Sample = dict[str, float]


@dataclass(frozen=True)
class Row:
    """A line of the table: a median of each rival; ``aim`` is the largest ratio that counts as met."""

    title: str
    key: str
    unit: str
    aim: float | None = None


ROWS = (
    Row("image load", "load", "s"),
    Row(f"service create --replicas {REPLICAS}, all Running", "create", "s", 1 / 3),
    Row("SIGKILL of a container to its replacement Running", "replace", "s", 1 / 3),
    Row(f"memory of all daemons, {FEWER} containers", f"total {FEWER}", "MiB"),
    Row(f"memory of all daemons, {REPLICAS} containers", f"total {REPLICAS}", "MiB"),
)

#: Sums of Covey's parts with 10 containers that have an aim of their own, in MB of 10^6 bytes.
LIMITS = (("node daemon and zygote", ("daemon", "zygote"), 60.0), ("manager and etcd", ("manager", "etcd"), 120.0))


def run(rounds: int) -> int:
    """Measure and print; 0 also when an aim is missed, which the table says: a measurement is no test."""
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        archive = directory / "image.tar"
        subprocess.run([sys.executable, "scripts/make-image", IMAGE, "-o", str(archive)], check=True)
        rivals = [stack.enter_context(running(kind, directory)) for kind in (COVEY, DOCKER)]
        for rival in rivals:
            rival.client.swarm.init(advertise_addr="127.0.0.1")
        samples: dict[str, list[Sample]] = {rival.kind.name: [] for rival in rivals}
        for number in range(rounds):
            for rival in rivals if number % 2 == 0 else reversed(rivals):
                sys.stderr.write(f"\rbench: round {number + 1} of {rounds}, {rival.kind.name}   ")
                samples[rival.kind.name].append(_round(rival, archive))
        sys.stderr.write("\r" + " " * 50 + "\r")
        versions = [rival.client.version()["Version"] for rival in rivals]
    print("\n".join(_table(samples, versions, rounds)))
    return 0


def _round(rival: Rival, archive: Path) -> Sample:
    client = rival.client
    for image in client.images.list(name=IMAGE):
        client.images.remove(image.id, force=True)
    began = time.monotonic()
    with archive.open("rb") as data:
        client.images.load(data)
    sample: Sample = {"load": time.monotonic() - began}
    began = time.monotonic()
    service = client.services.create(
        IMAGE,
        command=["sleep", "86400"],
        name="bench",
        mode=docker.types.ServiceMode("replicated", replicas=REPLICAS),
        restart_policy=docker.types.RestartPolicy(condition="any", delay=0),
        stop_grace_period=0,
    )
    try:
        wait(f"{REPLICAS} replicas to run", lambda: len(_running(client)) == REPLICAS)
        sample["create"] = time.monotonic() - began
        _memory(rival, sample, REPLICAS)
        sample["replace"] = statistics.median(_replaced(rival) for _ in range(KILLS))
        service.reload()
        service.scale(FEWER)
        wait(f"{FEWER} containers to be left", lambda: len(client.containers.list(ignore_removed=True)) == FEWER)
        _memory(rival, sample, FEWER)
    finally:
        service.remove()
        wait("the containers to be gone", lambda: not client.containers.list(all=True, ignore_removed=True))
    return sample


def _running(client: docker.DockerClient) -> list[dict[str, Any]]:
    tasks = client.api.tasks(filters={"service": "bench", "desired-state": "running"})
    return [task for task in tasks if task["Status"]["State"] == "running"]


def _replaced(rival: Rival) -> float:
    """Seconds from the kill of one replica's process until as many run again, none of them the one killed."""
    victim = _running(rival.client)[0]
    began = time.monotonic()
    rival.kill_process(victim["Status"]["ContainerStatus"]["PID"])

    def healed() -> bool:
        running = {task["ID"] for task in _running(rival.client)}
        return victim["ID"] not in running and len(running) == REPLICAS

    wait("a killed container to be replaced", healed)
    return time.monotonic() - began


def _memory(rival: Rival, sample: Sample, containers: int) -> None:
    """After a second of quiet, so that what a burst of starts needed is not counted as held."""
    time.sleep(1.0)
    parts = rival.memory()
    sample.update({f"{part} {containers}": amount for part, amount in parts.items()})
    sample[f"total {containers}"] = sum(parts.values())


def _table(samples: dict[str, list[Sample]], versions: list[str], rounds: int) -> list[str]:
    def middle(name: str, key: str) -> float:
        return statistics.median(sample[key] for sample in samples[name])

    lines = [
        f"Covey {versions[0]} beside Docker {versions[1]} in Swarm mode: one node each, {os.cpu_count()} CPUs, "
        f"Linux {os.uname().release}, medians of {rounds}",
        "",
        f"{'':52}{'covey':>9}{'docker':>9}{'ratio':>8}  aim",
    ]
    for row in ROWS:
        ours, theirs = middle("covey", row.key), middle("docker", row.key)
        aim = "" if row.aim is None else f"≤ {row.aim:.2f}  {_met(ours / theirs <= row.aim)}"
        digits = 2 if row.unit == "s" else 0
        title = f"{row.title} ({row.unit})"
        lines.append(f"{title:52}{ours:9.{digits}f}{theirs:9.{digits}f}{ours / theirs:8.2f}  {aim}".rstrip())
    lines += ["", "Memory by part (MiB of PSS; containers' own processes are not counted)"]
    for kind in (COVEY, DOCKER):
        for containers in (FEWER, REPLICAS):
            parts = "  ".join(f"{part} {middle(kind.name, f'{part} {containers}'):.1f}" for part in kind.parts)
            lines.append(f"  {kind.name:7} {containers:2} containers:  {parts}")
    lines.append("")
    for title, parts, limit in LIMITS:
        held = sum(middle("covey", f"{part} {FEWER}") for part in parts) * 1.048576
        lines.append(f"{title} with {FEWER} containers: {held:.1f} MB, aim ≤ {limit:.0f} MB  {_met(held <= limit)}")
    return lines


def _met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"
