"""The mounts of one RUN, made ready: context, stages, caches, secrets, tmpfs.

Decides what each is on this node and that nothing a step writes into a bind changes what it was bound from. Sources are
resolved inside their roots before their path is handed on.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey.errors import InvalidArgument
from worker.build import sources, transfer, workspace
from worker.build.caches import Caches
from worker.build.threads import whole
from worker.containers.host import Host
from worker.containers.remap import outside
from worker.dockerfile.mounts import RunMount

Tree = Callable[[str], Awaitable[int]]
"""A stage or image by name (the context for "") → the descriptor of its root, mounted while the step runs."""


@dataclass(frozen=True, slots=True)
class Ready:
    """``mounts``: HostConfig.Mounts; ``variables``: secrets that go into the environment."""

    mounts: Sequence[Mapping[str, Any]]
    variables: Mapping[str, str]


async def key(host: Host, wanted: Sequence[RunMount], tree: Tree) -> list[list[str]]:
    """What a step with these mounts depends on: their form, and the content of binds; neither caches nor secrets."""
    found = []
    for mount in wanted:
        words = [mount.type, mount.target, mount.source, mount.id, str(mount.read_only)]
        if mount.type == "bind":
            root = await tree(mount.stage)
            one = await whole(host, sources.find, root, "RUN", [mount.source or "."], owners=True)
            words.append(one[0].checksum)
        found.append(words)
    return found


async def prepare(
    host: Host, wanted: Sequence[RunMount], tree: Tree, caches: Caches, given: Mapping[str, bytes], stack: AsyncExitStack
) -> Ready:
    """What the container is given; it is taken back when ``stack`` closes."""
    mounts: list[dict[str, Any]] = []
    variables: dict[str, str] = {}
    for mount in wanted:
        if mount.type == "tmpfs":
            options = {"TmpfsOptions": {"SizeBytes": mount.size}} if mount.size else {}
            mounts.append({"Type": "tmpfs", "Target": mount.target, **options})
            continue
        if mount.type == "secret":
            value = _secret(mount, given)
            if value is None:
                continue
            if mount.variable:
                variables[mount.variable] = value.decode("utf-8", "surrogateescape")
            if not mount.target:
                continue
            mode = 0o400 if mount.mode is None else mount.mode
            source = await file(host, value, mode, (mount.uid, mount.gid), stack)
        elif mount.type == "cache":
            if mount.stage or mount.source:
                raise InvalidArgument("a cache mount with from or source is refused: fill it in the step itself")
            source = await stack.enter_async_context(caches.used(mount))
        else:
            source = await _bind(host, mount, await tree(mount.stage), stack)
        mounts.append({"Type": "bind", "Source": str(source), "Target": mount.target, "ReadOnly": mount.read_only})
    return Ready(mounts, variables)


def _secret(mount: RunMount, given: Mapping[str, bytes]) -> bytes | None:
    if mount.id in given:
        return given[mount.id]
    if mount.required:
        raise InvalidArgument(
            f"secret {mount.id!r} is required and was not given: the classic protocol of `docker build` carries no secrets; "
            f"use `cluster build --secret id={mount.id},src=FILE`"
        )
    return None


async def file(host: Host, value: bytes, mode: int, owner: tuple[int, int], stack: AsyncExitStack) -> Path:
    """A file to be bound into a step, on the run directory's file system, which is memory; gone with ``stack``."""
    path = await whole(host, _write, host, value, mode, owner)
    stack.push_async_callback(host.carry, host.run(path.unlink), "build: file of a step")
    return path


def _write(host: Host, value: bytes, mode: int, owner: tuple[int, int]) -> Path:
    place = workspace.secrets_directory(host)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = place / secrets.token_hex(16)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as written:
        written.write(value)
        uid, gid = owner
        if host.options.remap is not None:
            uid, gid = outside(host.options.remap.uids, uid), outside(host.options.remap.gids, gid)
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
    return path


async def _bind(host: Host, mount: RunMount, root: int, stack: AsyncExitStack) -> Path:
    path, is_directory = await whole(host, _place, root, mount)
    if mount.read_only or not is_directory:
        if not mount.read_only:
            raise InvalidArgument(f"a writable bind of a file is refused: bind the directory of {mount.source}, or copy it")
        return path
    # What the step writes there is thrown away with the overlay.
    return (await stack.enter_async_context(workspace.of_directories(host, [path]))).place


def _place(root: int, mount: RunMount) -> tuple[Path, bool]:
    try:
        inside = transfer.resolved(root, mount.source or ".")
    except OSError as error:
        raise InvalidArgument(f"RUN --mount: source {mount.source!r} of {mount.target}: {error.strerror}") from None
    path = Path(os.readlink(f"/proc/self/fd/{root}")) / inside.lstrip("/")
    return path, stat.S_ISDIR(os.lstat(path).st_mode)
