"""Reads and writes a container's file system from outside: stat, archive in and out, changes, export.

A running container is seen as its own processes see it (its mounts included); one that does not run is mounted for the
moment, and a path below one of its mounts is looked up in that mount's source.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from covey.clock import rfc3339
from covey.errors import Conflict, CoveyError, Forbidden, InvalidArgument, NotFound
from worker.containers import remap, surroundings, tree_put, tree_tar
from worker.containers.host import Host, Live
from worker.images.compression import Readable
from worker.kernel import process, safe_paths

#: Bits of Go's os.FileMode that are not permissions.
_GO_BITS = (
    (stat.S_ISDIR, 1 << 31),
    (stat.S_ISLNK, 1 << 27),
    (stat.S_ISBLK, 1 << 26),
    (stat.S_ISCHR, 1 << 26 | 1 << 21),
    (stat.S_ISFIFO, 1 << 25),
    (stat.S_ISSOCK, 1 << 24),
)
_GO_SPECIAL = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))
EPOCH = "1970-01-01T00:00:00Z"
_MISSING = (FileNotFoundError, NotADirectoryError)


def go_mode(mode: int) -> int:
    """A st_mode as Go's os.FileMode, which the stat header carries."""
    out = mode & 0o777
    for test, bit in _GO_BITS:
        if test(mode):
            out |= bit
    for flag, bit in _GO_SPECIAL:
        if mode & flag:
            out |= bit
    return out


@asynccontextmanager
async def opened(host: Host, live: Live, path: str) -> AsyncIterator[tuple[int, str]]:
    """(a root's descriptor, ``path`` inside it), valid within the context."""
    container = live.container
    state = container.state
    if state.running and process.is_alive(state.pid, state.pid_start):
        fd = os.open(f"/proc/{state.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Looked at again with the root held: the pid may have become another process's, whose root is the host's.
            if not process.is_alive(state.pid, state.pid_start):
                raise Conflict(f"container {container.name} ended meanwhile: try again")
            yield fd, path
        finally:
            os.close(fd)
        return
    async with live.lock:
        place = host.options.run_directory(container.id) / "rootfs"
        source, inside = _mounted_source(live, path)
        if source is None:
            await host.run(host.overlay.mount, container.id, place)
        try:
            fd = os.open(source or place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield fd, inside
            finally:
                os.close(fd)
        finally:
            if source is None:
                await host.run(host.overlay.unmount, place)
                await host.run(_drop, place)


def _drop(place: Path) -> None:
    for directory in (place, place.parent):
        try:
            directory.rmdir()
        except OSError:
            return


def _clean(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))


def _ending(path: str) -> str:
    """What Docker reads from a path's end: ``/.`` or ``/`` mean what is in the directory."""
    return "/." if path.endswith("/.") else "/" if path.endswith("/") else ""


def _mounted_source(live: Live, path: str) -> tuple[str | None, str]:
    """The source directory of the deepest mount above ``path`` and the rest, or (None, path)."""
    cleaned = _clean(path)
    for mount in sorted(live.container.mounts, key=lambda one: len(one.destination), reverse=True):
        below = cleaned == mount.destination or cleaned.startswith(f"{mount.destination}/")
        if below and mount.type != "tmpfs" and os.path.isdir(mount.source):
            return mount.source, cleaned.removeprefix(mount.destination) + _ending(path)
    return None, path


def _missing(live: Live, path: str) -> NotFound:
    return NotFound(f"Could not find the file {path} in container {live.container.name}")


def _shown(path: str) -> str:
    """How Docker calls the root entry: the base name, ``.`` for a path that ends in one."""
    return posixpath.basename(path.rstrip("/")) or "/"


def path_stat(root_fd: int, path: str) -> dict[str, Any]:
    """ContainerPathStat; the last component is not followed."""
    parent, name = tree_tar.open_parent(root_fd, path)
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        target = os.readlink(name, dir_fd=parent) if stat.S_ISLNK(status.st_mode) else ""
    finally:
        os.close(parent)
    if target:
        target = posixpath.normpath(posixpath.join("/", posixpath.dirname(path.rstrip("/")), target))
    return {
        "name": _shown(path),
        "size": status.st_size,
        "mode": go_mode(status.st_mode),
        "mtime": rfc3339(status.st_mtime) if status.st_mtime else EPOCH,
        "linkTarget": target,
    }


async def stat_path(host: Host, live: Live, path: str) -> dict[str, Any]:
    """ContainerPathStat. Raises NotFound in Docker's words."""
    _check(path)
    async with opened(host, live, path) as (root_fd, inside):
        try:
            found = await host.run(path_stat, root_fd, inside)
        except _MISSING:
            raise _missing(live, path) from None
        except OSError as error:
            raise InvalidArgument(f"cannot look at {path} in container {live.container.name}: {error.strerror}") from None
    return {**found, "name": _shown(path)}


def _check(path: str) -> None:
    if not path:
        raise InvalidArgument("bad parameter: 'path' cannot be empty")
    if "\0" in path:
        raise InvalidArgument("bad parameter: 'path' must not contain NUL")


async def pack(host: Host, live: Live, path: str) -> AsyncIterator[bytes]:
    """The tar of a path. Check it with ``stat_path`` first: an error here cuts the stream."""
    async with opened(host, live, path) as (root_fd, inside):
        async for chunk in _stepped(
            host, _packed(root_fd, inside, _shown(path), owners_of(host, live.container.id, to_host=False))
        ):
            yield chunk


def owners_of(host: Host, container_id: str, *, to_host: bool) -> tree_tar.Owners | None:
    """How owners are told to, or taken from, a client where the container has a user namespace."""
    ids = host.overlay.ids(container_id)
    if ids is None:
        return None
    found, convert = remap.from_lists(ids), remap.outside if to_host else remap.inside
    return lambda uid, gid: (convert(found.uids, uid), convert(found.gids, gid))


def _packed(root_fd: int, path: str, shown: str, owners: tree_tar.Owners | None) -> Iterator[bytes]:
    parent, name = tree_tar.open_parent(root_fd, path)
    try:
        yield from tree_tar.pack(parent, name, shown, owners=owners)
    finally:
        os.close(parent)


async def _stepped(host: Host, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Pieces gathered in a thread, about a quarter of a megabyte at a time."""

    def some() -> bytes:
        held = bytearray()
        for chunk in chunks:
            held += chunk
            if len(held) >= tree_tar.CHUNK:
                break
        return bytes(held)

    while piece := await host.run(some):
        yield piece


async def export(host: Host, live: Live) -> AsyncIterator[bytes]:
    """The container's own file system as a tar, without what is mounted into it."""
    async with live.lock:
        place = host.options.run_directory(live.container.id) / "rootfs"
        mounted = live.shim is None
        if mounted:
            await host.run(host.overlay.mount, live.container.id, place)
        try:
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                owners = owners_of(host, live.container.id, to_host=False)
                async for chunk in _stepped(host, tree_tar.pack(fd, ".", "", one_device=True, owners=owners)):
                    yield chunk
            finally:
                os.close(fd)
        finally:
            if mounted:
                await host.run(host.overlay.unmount, place)
                await host.run(_drop, place)


async def put(
    host: Host, live: Live, path: str, stream: Readable, *, strict: bool = False, container_owner: bool = False
) -> None:
    """Unpacks ``stream`` below directory ``path``. Raises NotFound, InvalidArgument, Forbidden (read-only)."""
    _check(path)
    container = live.container
    async with opened(host, live, path) as (root_fd, inside):
        try:
            found = await host.run(_directory_status, root_fd, inside)
        except _MISSING:
            raise _missing(live, path) from None
        if not found:
            raise InvalidArgument("extraction point is not a directory")
        if container.host_config.get("ReadonlyRootfs") and not _writable_mount(live, path):
            raise Forbidden("container rootfs is marked read-only")
        owner, owners = None, owners_of(host, live.container.id, to_host=True)
        if container_owner:
            who = await host.run(surroundings.user_in, root_fd, container.config.get("User") or "")
            owner = (who.uid, who.gid)
        try:
            await host.run(tree_put.unpack, stream, root_fd, inside, owner=owner, owners=owners, strict=strict)
        except CoveyError:
            raise
        except OSError as error:
            raise InvalidArgument(
                f"cannot unpack into {path} of container {container.name}: {error.strerror} ({error.filename or ''})"
            ) from error
    host.publish(container, "extract-to-dir", {"path": path})


def _directory_status(root_fd: int, path: str) -> bool:
    fd = safe_paths.open_in_root(root_fd, path, os.O_PATH | os.O_CLOEXEC)
    try:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def _writable_mount(live: Live, path: str) -> bool:
    cleaned = _clean(path)
    return any(
        mount.read_write and (cleaned == mount.destination or cleaned.startswith(f"{mount.destination}/"))
        for mount in live.container.mounts
    )


async def changes(host: Host, live: Live) -> list[dict[str, Any]]:
    """FilesystemChanges. What the engine itself put there (mount points) is told as Docker tells it."""
    return await host.run(host.overlay.diff, live.container.id)
