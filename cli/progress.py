"""Waits until services have converged, and shows the way there: repainted lines on a terminal, else a line a transition.

It decides how it looks and how often to ask; what it means is cli.converge's.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from cli.connection import filters
from cli.converge import SlotView, Verdict, Watch
from cli.job_watch import watch_of
from cli.output import clean, clipped
from covey.engine_api.framing import Decoder, FramingError
from covey.engine_api.light import Client
from covey.errors import CoveyError, NotFound, Unavailable

T = TypeVar("T")

POLL = 0.2
#: A manager that is being replaced does not answer for some seconds; its service goes on all the same.
PATIENCE = 30.0
MOST_LINES = 12
LOG_LINES = 10


class Display:
    """``line`` for what stays, ``paint`` for what is repainted. Without a terminal only lines that stay."""

    def __init__(self, quiet: bool = False, live: bool | None = None) -> None:
        self._quiet = quiet
        self._live = (sys.stdout.isatty() if live is None else live) and not quiet
        self._painted = 0
        self._start = time.monotonic()

    def line(self, text: str) -> None:
        """A transition, with the time since the start."""
        if self._quiet:
            return
        self.clear()
        print(f"{clean(text)} ({time.monotonic() - self._start:.1f}s)", flush=True)

    @property
    def live(self) -> bool:
        """Whether there is a terminal to repaint."""
        return self._live

    def plain(self, text: str) -> None:
        """A line that stays, as it is."""
        if not self._quiet:
            self.clear()
            print(clean(text), flush=True)

    def paint(self, lines: Sequence[str]) -> None:
        """Replace what was painted last."""
        if not self._live:
            return
        width = shutil.get_terminal_size().columns
        self.clear()
        sys.stdout.write("".join(f"{clipped(clean(line), width - 1)}\n" for line in lines))
        sys.stdout.flush()
        self._painted = len(lines)

    def clear(self) -> None:
        """Take away what was painted."""
        if self._live and self._painted:
            sys.stdout.write(f"\x1b[{self._painted}A\x1b[J")
        self._painted = 0


def _bars(watch: Watch, verdict: Verdict) -> list[str]:
    slots: list[SlotView] = list(watch.slots.values())
    lines = [f"{watch.name}: {verdict.running}/{verdict.wanted} {verdict.noun}"]
    if len(slots) <= MOST_LINES:
        for slot in slots:
            where = f" on {slot.node}" if slot.node else ""
            lines.append(f"  {slot.name}: {slot.state or 'failed'}{where}{'  ' + slot.error if slot.error else ''}")
    return lines


def watch_before(api: Client, services: Sequence[str], rollback: bool = False) -> dict[str, Watch]:
    """Services (ids) as they are before a change, so that only what comes of it is news."""
    nodes = alive_nodes(api)
    watches: dict[str, Watch] = {}
    for service_id in services:
        service = api.get(f"/services/{service_id}")
        watch = watches[service_id] = watch_of(service, rollback=rollback)
        watch.prime(service, api.get("/tasks", {"filters": filters([], service=service_id)}), nodes)
    return watches


def wait_converged(
    api: Client,
    services: Sequence[str],
    before: Mapping[str, Watch] | None = None,
    *,
    quiet: bool = False,
    timeout: float | None = None,
    display: Display | None = None,
) -> int:
    """Until every service (ids) has converged; 0, or 1 when one is given up, the time is over, or the user interrupts."""
    display = display or Display(quiet)
    watches = dict(before or {})
    open_services = list(services)
    deadline = None if timeout is None else time.monotonic() + timeout
    look = " ".join(f"`cluster service ps {name}`" for name in services[:1])
    try:
        while open_services:
            open_services, failed = _round(api, open_services, watches, display)
            if failed is not None:
                display.clear()
                _tell_failure(api, failed)
                return 1
            if open_services and deadline is not None and time.monotonic() > deadline:
                display.clear()
                _tell_timeout(watches, open_services, timeout or 0.0)
                return 1
            if open_services:
                time.sleep(POLL)
    except KeyboardInterrupt:
        display.clear()
        print(f"\ncluster: no longer waiting; the cluster goes on. See {look}", file=sys.stderr)
        return 130
    return 0


def _round(
    api: Client, services: Sequence[str], watches: dict[str, Watch], display: Display
) -> tuple[list[str], Verdict | None]:
    """One poll: the services still open, and the verdict of one that is given up."""
    still: list[str] = []
    painted: list[str] = []
    nodes = _patiently(lambda: alive_nodes(api))
    for service_id in services:
        verdict, watch = _look(api, service_id, nodes, watches)
        for line in verdict.lines:
            display.line(line)
        if verdict.failure:
            return still, verdict
        if verdict.converged:
            display.line(f"{watch.name} converged: {verdict.running}/{verdict.wanted} {verdict.noun}")
            continue
        still.append(service_id)
        painted += _bars(watch, verdict)
    display.paint(painted)
    return still, None


def _look(api: Client, service_id: str, nodes: dict[str, str], watches: dict[str, Watch]) -> tuple[Verdict, Watch]:
    service = _patiently(lambda: api.get(f"/services/{service_id}"))
    watch = watches.setdefault(service_id, watch_of(service))
    query = {"filters": filters([], service=service_id, **{"_up-to-date": "true"})}
    tasks = _patiently(lambda: api.get("/tasks", query))
    return watch.observe(service, tasks, nodes, time.monotonic()), watch


def alive_nodes(api: Client) -> dict[str, str]:
    """Id → name of the nodes that are not down."""
    return {
        node["ID"]: (node.get("Description") or {}).get("Hostname") or node["ID"]
        for node in api.get("/nodes")
        if (node.get("Status") or {}).get("State") != "down"
    }


def _patiently(ask: Callable[[], T]) -> T:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return ask()
        except NotFound:
            raise
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL * 5)


def _tell_failure(api: Client, verdict: Verdict) -> None:
    print(f"cluster: {verdict.failure}", file=sys.stderr)
    task = verdict.culprit
    if task is None:
        return
    lines = last_lines(api, str(task["ID"]))
    if lines:
        print(f"Last output of task {task['ID'][:12]}:", file=sys.stderr)
        for line in lines:
            print(f"  {clean(line)}", file=sys.stderr)
    print(f"The service stays as it is. See `cluster story {task['ID'][:12]}`", file=sys.stderr)


def last_lines(api: Client, task_id: str) -> list[str]:
    """The last lines a task wrote, as far as its node has them; nothing when they cannot be had."""
    for path in (f"/tasks/{task_id}/logs", _container_logs(api, task_id)):
        if not path:
            continue
        try:
            with api.stream("GET", path, {"stdout": True, "stderr": True, "tail": LOG_LINES}) as response:
                body = response.read()
        except CoveyError:
            continue
        try:
            text = b"".join(frame.payload for frame in Decoder().feed(body))
        except FramingError:
            text = body
        if text.strip():
            return text.decode(errors="replace").rstrip().splitlines()[-LOG_LINES:]
    return []


def _container_logs(api: Client, task_id: str) -> str:
    try:
        status = api.get(f"/tasks/{task_id}").get("Status") or {}
    except CoveyError:
        return ""
    container = (status.get("ContainerStatus") or {}).get("ContainerID")
    return f"/containers/{container}/logs" if container else ""


def _tell_timeout(watches: dict[str, Watch], open_services: Sequence[str], timeout: float) -> None:
    for service_id in open_services:
        watch = watches[service_id]
        waiting = [slot for slot in watch.slots.values() if slot.state != "running"]
        why = "; ".join(
            f"{slot.name} is {slot.state or 'failing'}{': ' + slot.error if slot.error else ''}" for slot in waiting[:3]
        )
        print(
            f"cluster: service {watch.name} has not converged after {timeout:g} s: {clean(why) or 'it has no tasks'}",
            file=sys.stderr,
        )
    print("The cluster goes on trying.", file=sys.stderr)
