"""What ``cluster lab`` does: starts the supervisor of a lab, and asks it. Every function raises LabError with one line.

It decides how supervisor and lab are found, and what happens when the supervisor was killed. Imports little: the lab
itself is imported by the supervisor only.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from covey.testing import lab_remains
from covey.testing.lab_machine import LabError, check

DEFAULT = "lab"
_PATIENCE = 120.0


def up(name: str = DEFAULT, nodes: int = 4, managers: int = 1, profile: str = "default") -> list[dict[str, Any]]:
    """A lab of so many nodes in one cluster, kept by a supervisor in the background; its ``ps``."""
    check()
    lab_remains.directory_of(name)
    if nodes < 1:
        raise LabError("a lab has at least one node")
    argv = [sys.executable, "-P", "-m", "covey.testing.lab_supervisor", name, str(nodes), str(managers), profile]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd="/",
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        said = process.stdout.readline()
    except KeyboardInterrupt:
        process.terminate()
        process.wait(_PATIENCE)
        raise
    if not said:
        raise LabError(f"the lab's supervisor ended: {process.stderr.read().strip()[-800:]}")
    reply = json.loads(said)
    if "error" in reply:
        process.wait(_PATIENCE)
        raise LabError(reply["error"])
    return ps(name)


def down(name: str = DEFAULT) -> bool:
    """End the lab and clear everything of it; False when there was nothing. Clears after a killed supervisor too."""
    check()
    found = lab_remains.record(name)
    if lab_remains.owner_lives(found):
        assert found is not None
        if not (lab_remains.directory_of(name) / "supervisor.sock").exists():
            raise LabError(f"lab {name} belongs to process {found['pid']} (a test?): it ends with it")
        try:
            _ask(name, "down")
        except LabError:
            os.kill(found["pid"], signal.SIGKILL)
    there = lab_remains.directory_of(name).exists()
    lab_remains.sweep()
    if there:
        lab_remains.clear(name)
    lab_remains.forget_base()
    return found is not None or there


def ps(name: str | None = None) -> list[dict[str, Any]]:
    """One row a node, of one lab or of all.

    Keys: lab, node, role, address, state (running, paused, dead), cut (partitioned), processes (name → pid in the
    machine), docker_host. A lab inside another process (a test) or one whose supervisor was killed is one row with node "".
    """
    rows: list[dict[str, Any]] = []
    for known in [name] if name else lab_remains.names():
        found = lab_remains.record(known)
        if found is None and name:
            raise LabError(f"there is no lab {name}: make one with 'cluster lab up --name {name}'")
        if lab_remains.owner_lives(found) and (lab_remains.directory_of(known) / "supervisor.sock").exists():
            try:
                rows += _ask(known, "ps")
                continue
            except LabError:
                if lab_remains.owner_lives(found):
                    raise
        if found is not None:
            rows.append(_unasked(known, f"in process {found['pid']}" if lab_remains.owner_lives(found) else "killed"))
    return rows


def _unasked(name: str, state: str) -> dict[str, Any]:
    words = dict.fromkeys(("node", "role", "address", "docker_host"), "")
    return {"lab": name, **words, "state": state, "cut": False, "processes": {}}


def kill(name: str, node: str, process: str | None = None) -> None:
    """SIGKILL for the machine, or for its daemon, manager, etcd or zygote."""
    _ask(name, "kill", node=node, process=process)


def start(name: str, node: str) -> None:
    """Boot a dead machine again; start a living one's dead daemon again."""
    _ask(name, "start", node=node)


def pause(name: str, node: str, seconds: float | None = None, process: str | None = None, whole: bool = False) -> None:
    """SIGSTOP the node's processes (or one; or ``whole``: containers too); after ``seconds`` they continue."""
    _ask(name, "pause", node=node, seconds=seconds, process=process, whole=whole)


def resume(name: str, node: str) -> None:
    """Continue what ``pause`` stopped."""
    _ask(name, "resume", node=node)


def partition(name: str, node: str) -> None:
    """Lose every packet of the node."""
    _ask(name, "partition", node=node)


def heal(name: str, node: str | None = None) -> None:
    """End the partition of a node, or all."""
    _ask(name, "heal", node=node)


def load(name: str, archive: bytes, nodes: Sequence[str] = ()) -> None:
    """Load a docker-archive on the named nodes, or on all that run."""
    _ask(name, "load", archive=base64.b64encode(archive).decode(), nodes=list(nodes))


def _ask(name: str, op: str, **fields: Any) -> Any:
    path = lab_remains.directory_of(name) / "supervisor.sock"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                said = stream.readline()
        except OSError as error:
            raise LabError(f"lab {name} does not answer ({error.strerror or error}): see 'cluster lab ps'") from None
    if not said:
        raise LabError(f"lab {name}: its supervisor ended while it was asked; clear it with 'cluster lab down --name {name}'")
    reply = json.loads(said)
    if "error" in reply:
        raise LabError(reply["error"])
    return reply["value"]
