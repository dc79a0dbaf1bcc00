"""RUN: a container on the image so far, its output told as it comes, and what it changed.

Decides what the step's process is and sees: arguments in its environment, limits, network, the mounts of ``--mount``.
Whatever happens, and also when the client leaves, the container is gone afterwards.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from covey.engine_api import framing
from covey.errors import CoveyError
from worker.build import committing
from worker.build.output import Output
from worker.build.threads import whole
from worker.containers import create
from worker.containers.engine import Engine
from worker.containers.host import Live, PendingAttach
from worker.containers.record import Container
from worker.dockerfile import config as dockerfile
from worker.dockerfile import parser
from worker.dockerfile.instructions import Command
from worker.images.content import Lease
from worker.images.draft import Draft
from worker.images.image import Layer, short
from worker.images.threads import ended
from worker.kernel import safe_paths
from worker.rootfs.changes import Below

LABEL = "com.covey.build"
"""Marks the containers of builds: a daemon that starts removes those of its former life."""


SCRIPTS = "/dev/pipes"
"""Where here-documents that are programs are seen, as with BuildKit: on a file system that no layer is made of."""


class StepFailed(CoveyError):
    """A RUN that ended with another code than 0."""

    status = 500

    def __init__(self, argv: Sequence[str], code: int) -> None:
        super().__init__(f"The command '{' '.join(argv)}' returned a non-zero code: {code}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Surroundings:
    """``mounts``: HostConfig.Mounts; ``variables``: more of its environment, no part of any image."""

    limits: Mapping[str, Any]
    network: str
    mounts: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


def argv_of(command: Command, config: Mapping[str, Any]) -> list[str]:
    """What is executed. A here-document that stands alone is a script for the shell, or for what its first line names."""
    if not command.shell:
        return list(command.words)
    line = command.words[0]
    if not command.files:
        return [*dockerfile.shell(config), line]
    if script(command) is not None:
        return [f"{SCRIPTS}/{command.files[0].name}"]
    if _alone(command):
        return [*dockerfile.shell(config), command.files[0].content]
    return [*dockerfile.shell(config), line + "".join(f"\n{one.content}{one.name}" for one in command.files)]


def _alone(command: Command) -> bool:
    return len(command.files) == 1 and parser.heredoc_mark(command.words[0].strip()) is not None


def script(command: Command) -> str | None:
    """The here-document that is a program of its own (``#!``), to be put below SCRIPTS; None for all else."""
    if command.shell and _alone(command) and command.files[0].content.startswith("#!"):
        return command.files[0].content
    return None


def body(draft: Draft, config: Mapping[str, Any], argv: Sequence[str], environment: Sequence[str], around: Surroundings) -> Any:
    """The ContainerCreate of a step."""
    return {
        "Image": draft.id,
        "Cmd": list(argv),
        "Entrypoint": [""],
        "Env": [*environment, *(f"{name}={value}" for name, value in around.variables.items())],
        "User": config.get("User") or "",
        "WorkingDir": config.get("WorkingDir") or "",
        "Volumes": config.get("Volumes"),
        "Labels": {LABEL: "step"},
        "Healthcheck": {"Test": ["NONE"]},
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {
            **around.limits,
            "NetworkMode": around.network,
            "LogConfig": {"Type": "none", "Config": {}},
            "Mounts": [dict(mount) for mount in around.mounts],
        },
    }


async def layer(
    engine: Engine, draft: Draft, wanted: Mapping[str, Any], output: Output, lease: Lease, *, kept: bool
) -> Layer | None:
    """Run the container ``wanted``; what it changed. StepFailed. ``kept``: it is left to be looked at."""
    host = engine.host
    made: list[Container] = []

    async def make() -> None:
        container, _ = await host.carry(create.create(host, None, wanted, image=draft.as_image()), "create")
        made.append(container)

    try:
        await ended(make())
        container = made[0]
        await output.say(f" ---> Running in {short(container.id)}\n")
        code = await _followed(engine, host.resolve(container.id), output)
        if code:
            raise StepFailed([*wanted["Cmd"]], code)
        targets = [str(mount["Target"]) for mount in wanted["HostConfig"]["Mounts"]]
        stubs = await whole(host, _stubs, host.overlay.upper(container.id), host.overlay.lowers(container.id), targets)
        return await whole(host, committing.layer_of, host, container.id, draft.layers, lease, stubs)
    finally:
        for container in () if kept else made:
            await engine.remove(container.id, force=True, volumes=True)
            if not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                await output.say(f"Removing intermediate container {short(container.id)}\n")


async def _followed(engine: Engine, live: Live, output: Output) -> int:
    """The exit code; all it wrote has been told."""
    attaching = PendingAttach(False, True, True, asyncio.get_running_loop().create_future())
    live.pending.append(attaching)
    exited = engine.exit_of(live.container.id, "next-exit")
    await engine.start(live.container.id)
    stream = await attaching.stream
    if stream is not None:
        decoders = {number: codecs.getincrementaldecoder("utf-8")("replace") for number in (framing.STDOUT, framing.STDERR)}
        try:
            async for number, data in stream.frames():
                text = decoders[number].decode(data) if number in decoders else ""
                if text:
                    await output.printed(text, number)
        finally:
            stream.close()
    return await exited


def _stubs(upper: Any, lowers: Sequence[Any], targets: Sequence[str]) -> set[str]:
    """Paths that are there only to be mounted upon: of a step's mounts, where the image has nothing. Blocking."""
    found: set[str] = set()
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in (upper, *lowers)]
    try:
        below = Below(fds[1:])
        for target in sorted(targets, key=len, reverse=True):
            parts = target.strip("/").split("/")
            for depth in range(len(parts), 0, -1):
                path = "/".join(parts[:depth])
                if below.has(path) or not _nothing(fds[0], path, found):
                    break
                found.add(path)
    finally:
        for fd in fds:
            os.close(fd)
    return found


def _nothing(root_fd: int, path: str, found: set[str]) -> bool:
    """Whether an empty file is there, or a directory with nothing but what was found."""
    try:
        fd = safe_paths.open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, follow=False)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            return all(f"{path}/{name}" in found for name in os.listdir(fd))
        return stat.S_ISREG(status.st_mode) and status.st_size == 0
    finally:
        os.close(fd)
