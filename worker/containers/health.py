"""Runs a container's health check at its interval and keeps the verdict, by Docker's rules.

starting → healthy at the first success; unhealthy after ``Retries`` failures in a row, of which those in the start
period do not count until a first success. The test is run as an exec; one that takes longer than its timeout is killed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from covey.errors import CoveyError
from worker.containers import execs, streams
from worker.containers.host import Exec, Host, Live
from worker.containers.record import Health, Probe
from worker.containers.shim_socket import ShimGone
from worker.runtime.errors import RuntimeFault

log = logging.getLogger(__name__)

KEPT_PROBES = 5
OUTPUT_LIMIT = 4096
SECOND = 1_000_000_000


@dataclass(frozen=True)
class Schedule:
    """Seconds, with Docker's defaults."""

    interval: float = 30.0
    timeout: float = 30.0
    start_period: float = 0.0
    start_interval: float = 5.0
    retries: int = 3


def test(config: Mapping[str, Any]) -> list[str] | None:
    """The command of a Config's health check, None when it has none."""
    words = list((config.get("Healthcheck") or {}).get("Test") or [])
    if not words or words[0] == "NONE":
        return None
    if words[0] == "CMD-SHELL":
        shell = list(config.get("Shell") or ["/bin/sh", "-c"])
        return [*shell, *words[1:]]
    return words[1:] if words[0] == "CMD" else words


def schedule(config: Mapping[str, Any]) -> Schedule:
    """The times of a Config's health check."""
    check = config.get("Healthcheck") or {}
    default = Schedule()

    def seconds(field: str, otherwise: float) -> float:
        return (check.get(field) or 0) / SECOND or otherwise

    return Schedule(
        seconds("Interval", default.interval),
        seconds("Timeout", default.timeout),
        seconds("StartPeriod", default.start_period),
        seconds("StartInterval", default.start_interval),
        check.get("Retries") or default.retries,
    )


def judge(health: Health, probe: Probe, retries: int, *, in_start_period: bool) -> str:
    """Puts ``probe`` on record and returns the status before it."""
    before = health.status
    health.log = [*health.log, probe][-KEPT_PROBES:]
    if probe.exit_code == 0:
        health.failing_streak, health.status = 0, "healthy"
    elif not (in_start_period and before == "starting"):
        health.failing_streak += 1
        if health.failing_streak >= retries:
            health.status = "unhealthy"
    return before


def span(seconds: float) -> str:
    """A duration as Go prints it: ``300ms``, ``1.5s``, ``1m30s``."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    text = f"{hours:.0f}h" if hours else ""
    return f"{text}{minutes:.0f}m{rest:g}s" if text or minutes else f"{rest:g}s"


async def watch(host: Host, live: Live) -> None:
    """Until cancelled at the container's exit."""
    command = test(live.container.config)
    if command is None:
        return
    times = schedule(live.container.config)
    began = live.container.state.started_at
    while True:
        health = live.container.state.health
        starting = health is not None and health.status == "starting" and host.clock.now() - began < times.start_period
        pause = min(times.start_interval, times.interval) if starting else times.interval
        await host.clock.sleep(pause)
        if live.container.state.status != "running" or health is None:
            continue
        probe = await run(host, live, command, times.timeout)
        if not live.container.state.running:
            return
        in_start = host.clock.now() - began < times.start_period
        before = judge(health, probe, times.retries, in_start_period=in_start)
        host.note(live.container)
        if health.status != before:
            await _balance(host, live, health.status == "healthy")
            host.publish(live.container, f"health_status: {health.status}")


async def _balance(host: Host, live: Live, serving: bool) -> None:
    """A task's published ports and its service's name lead to it while it is healthy; other containers' always, as Docker's."""
    if not live.container.owner:
        return
    try:
        await host.network.serve(live.container.id, serving)
    except CoveyError as error:
        log.info("container %s: %s", live.container.short, error.message)


async def run(host: Host, live: Live, command: list[str], timeout: float) -> Probe:
    """One check."""
    began = host.clock.now()
    one: Exec | None = None
    output, code = b"", -1
    try:
        one = execs.create(host, live, {"Cmd": command, "AttachStdout": True, "AttachStderr": True})
        async with asyncio.timeout(timeout):
            stream = await execs.begin(host, live, one)
            if stream is not None:
                output = await streams.collect(stream, OUTPUT_LIMIT)
            code = await execs.wait_ended(live, one)
    except TimeoutError:
        output = f"Health check exceeded timeout ({span(timeout)})".encode()
        await _kill(live, one)
    except CoveyError as error:
        output = error.message.encode()
    finally:
        if one is not None:
            live.execs.pop(one.id, None)
    text = output.decode("utf-8", "replace")
    return Probe(start=began, end=host.clock.now(), exit_code=code, output=text)


async def _kill(live: Live, one: Exec | None) -> None:
    if one is None or live.shim is None:
        return
    try:
        await live.shim.kill(int(signal.SIGKILL), exec_id=one.id, everything=True)
    except (RuntimeFault, ShimGone) as fault:
        log.info("health check of container %s was not killed: %s", live.container.short, fault)
