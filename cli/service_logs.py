"""A service's output, each line under the task that wrote it: ``web.1.3xk…@w1    | line``.

The stream's lines begin with details that name node, service and task (Engine API, ``details=true``).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from cli.streams import write
from cli.tasks import node_names, service_names, task_name
from covey.engine_api.framing import STDERR, SYSTEM_ERROR, Decoder
from covey.engine_api.light import Client
from covey.errors import CoveyError, NotFound

_PREFIX = "com.docker.swarm."
_WIDTH = 12


@dataclass(frozen=True, slots=True)
class Options:
    """``whole``: ids uncut; ``resolve``: names for ids; ``task_ids``: the id behind the task's name."""

    raw: bool = False
    whole: bool = False
    resolve: bool = True
    task_ids: bool = True


def show(api: Client, reference: str, query: Mapping[str, Any], options: Options) -> None:
    """Print the output of a service, or of a task, until the stream ends."""
    path, tty = _path(api, reference)
    names = Names(api, options)
    with api.stream("GET", path, query) as response:
        decoder = Decoder()
        held = {1: b"", 2: b""}
        for piece in response:
            frames = [(1, piece)] if tty else [
                (2 if frame.stream in (STDERR, SYSTEM_ERROR) else 1, frame.payload) for frame in decoder.feed(piece)
            ]  # fmt: skip
            for descriptor, payload in frames:
                if options.raw or tty:
                    write(descriptor, payload)
                    continue
                *lines, held[descriptor] = (held[descriptor] + payload).split(b"\n")
                for line in lines:
                    write(descriptor, names.lead(line, bool(query.get("timestamps"))) + b"\n")
        for descriptor, rest in held.items():
            if rest:
                write(descriptor, names.lead(rest, bool(query.get("timestamps"))) + b"\n")
    sys.stdout.flush()


def _path(api: Client, reference: str) -> tuple[str, bool]:
    """(path of the log call, whether it is a raw TTY stream)."""
    try:
        service = api.get(f"/services/{reference}")
        return f"/services/{service['ID']}/logs", _tty(service["Spec"].get("TaskTemplate"))
    except NotFound:
        try:
            task = api.get(f"/tasks/{reference}")
        except NotFound:
            raise NotFound(f"no such service or task: {reference}: see `cluster service ls`") from None
        return f"/tasks/{task['ID']}/logs", _tty(task.get("Spec"))


def _tty(template: Mapping[str, Any] | None) -> bool:
    return bool(((template or {}).get("ContainerSpec") or {}).get("TTY"))


class Names:
    """What stands before a line. Names are looked up once a task."""

    def __init__(self, api: Client, options: Options) -> None:
        self._api = api
        self._options = options
        self._tasks: dict[str, str] = {}
        self._nodes: dict[str, str] = {}
        self._services: dict[str, str] = {}
        self._width = 0

    def lead(self, line: bytes, stamped: bool = False) -> bytes:
        """``line`` with its details replaced by the task's name; as it is when it has none."""
        stamp, line = line.split(b" ", 1) if stamped and b" " in line else (b"", line)
        words, space, text = line.partition(b" ")
        details = dict(part.partition("=")[::2] for part in unquote(words.decode(errors="replace")).split(","))
        task_id = details.get(f"{_PREFIX}task.id")
        if not space or not task_id:
            return b" ".join(part for part in (stamp, line) if part)
        name = self._name(task_id, details.get(f"{_PREFIX}node.id", ""))
        self._width = max(self._width, len(name))
        stamp = stamp + b" " if stamp else b""
        return f"{name:<{self._width}}    | ".encode() + stamp + text

    def _name(self, task_id: str, node_id: str) -> str:
        if task_id not in self._tasks:
            self._tasks[task_id] = self._look_up(task_id, node_id)
        return self._tasks[task_id]

    def _look_up(self, task_id: str, node_id: str) -> str:
        shown = task_id if self._options.whole else task_id[:_WIDTH]
        if not self._options.resolve:
            return f"{shown}@{node_id}"
        try:
            task = self._api.get(f"/tasks/{task_id}")
            if task["ServiceID"] not in self._services:
                self._services = service_names(self._api)
            if node_id not in self._nodes:
                self._nodes = node_names(self._api)
            name = task_name(task, self._services)
        except CoveyError:
            name = "task"
        return f"{name}{'.' + shown if self._options.task_ids else ''}@{self._nodes.get(node_id, node_id)}"
