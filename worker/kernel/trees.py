"""Whole files and directory trees on disk: replaced atomically, removed without following a link.

Used by the rooms that keep state or untrusted trees (images, rootfs). Decides nothing about what is kept. Errors are
OSError.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import struct
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST = 64
# linux/fs.h; the ioctls are declared with a long and take an int.
_GETFLAGS, _SETFLAGS, _TOPDIR = 0x80086601, 0x40086602, 0x00020000


def overwrite(path: Path | str, data: bytes, *, sync: bool = False) -> None:
    """The content of a file, made where missing, in place: whoever holds its inode sees it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        while data:
            data = data[os.write(fd, data) :]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the names in ``path`` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: readers and crashes see the old or the new bytes, never a mixture.

    One writer at a time for a path.
    """
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def clear_unfinished(path: Path) -> None:
    """Remove what a crash in the middle of ``write_atomically(path)`` left."""
    _temporary(path).unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def emptied(path: Path) -> Path:
    """``path`` as an existing, empty, private directory: what a crash left in a scratch directory is removed."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, DIRECTORY)
    try:
        for name in os.listdir(fd):
            remove_tree(fd, name)
    finally:
        os.close(fd)
    return path


def spread(path: Path) -> None:
    """Have the directories made in ``path`` lie all over the disk, where its file system knows such a thing (ext4's +T).

    For a directory whose children come and go by the hundred. ext4 gives no inode out again for minutes after its deletion,
    and to find one that is free it walks past every one of these in its block group: beside each other, such trees make each
    file of the next one dearer, by 0.6 ms of CPU after 4,000 deletions.
    """
    with contextlib.suppress(OSError):
        fd = os.open(path, DIRECTORY)
        try:
            (flags,) = struct.unpack("i", fcntl.ioctl(fd, _GETFLAGS, bytes(4)))
            if not flags & _TOPDIR:
                fcntl.ioctl(fd, _SETFLAGS, struct.pack("i", flags | _TOPDIR))
        finally:
            os.close(fd)


def set_aside(path: Path, scratch: Path) -> Path | None:
    """Move a tree into a scratch directory of its file system, at once gone from where it was; None when it is not there."""
    aside = scratch / secrets.token_hex(8)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return None
    return aside


def remove_path(path: Path) -> None:
    """``remove_tree`` for a path whose parent is trusted; nothing there is fine."""
    try:
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_tree(fd, path.name)
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Level:
    parent_fd: int
    name: str
    fd: int
    children: list[str]


def remove_tree(parent_fd: int, name: str) -> None:
    """Remove ``name`` and, where it is a directory, all below it; a link is removed, not followed.

    Works at any depth with bounded descriptors: what lies too deep is first moved up to the tree's top.
    """
    if not _is_directory_left(parent_fd, name):
        return
    stack = [_enter(parent_fd, name)]
    moved = 0
    try:
        while stack:
            level = stack[-1]
            if not level.children:
                os.rmdir(level.name, dir_fd=level.parent_fd)
                os.close(level.fd)
                stack.pop()
                continue
            child = level.children.pop()
            if not _is_directory_left(level.fd, child):
                continue
            if len(stack) < _DEEPEST:
                stack.append(_enter(level.fd, child))
                continue
            moved += 1
            raised = f".covey-removed-{moved}"
            os.rename(child, raised, src_dir_fd=level.fd, dst_dir_fd=stack[0].fd)
            stack[0].children.append(raised)
    finally:
        for level in stack:
            os.close(level.fd)


def _enter(parent_fd: int, name: str) -> _Level:
    fd = os.open(name, DIRECTORY, dir_fd=parent_fd)
    return _Level(parent_fd, name, fd, os.listdir(fd))


def _is_directory_left(parent_fd: int, name: str) -> bool:
    """Unlink ``name`` unless it is a directory; whether it is one."""
    try:
        os.unlink(name, dir_fd=parent_fd)
    except IsADirectoryError:
        return True
    except FileNotFoundError:
        pass
    return False
