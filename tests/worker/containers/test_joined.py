"""Namespaces joined by another container's pid: only while that pid is still the container's."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from covey.errors import Conflict
from worker.containers import start
from worker.kernel import process


def _world(started: int) -> tuple[Any, Any]:
    """A host whose container ``first`` claims this process's pid with a start time, and one that joins its network."""
    state = SimpleNamespace(running=True, pid=os.getpid(), pid_start=started)
    first = SimpleNamespace(id="first", state=state)
    host = SimpleNamespace(registry=SimpleNamespace(resolve=lambda ref: {"first": first}[ref]))
    return host, SimpleNamespace(id="second", host_config={"NetworkMode": "container:first", "PidMode": "host"})


def test_a_pid_that_is_still_its_own():
    start.check_joined(*_world(process.start_time(os.getpid()) or 0))


def test_a_pid_that_has_become_another_processs():
    """Here this very process, which has the host's namespaces: what was joined may not be started in."""
    with pytest.raises(Conflict, match="ended meanwhile"):
        start.check_joined(*_world((process.start_time(os.getpid()) or 0) - 1))
