"""The steps of init that put devices and links into a container's tree. Which there are is worker.runtime.devices'."""

from __future__ import annotations

import errno
import os
import stat

from worker.kernel import mounts, safe_paths, syscalls
from worker.kernel.bare import Any
from worker.runtime.errors import RuntimeFault
from worker.runtime.filesystem import Tree

_TYPE_BITS = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
Node = tuple[str, str, int, int, int, int, int]
"""path, type, major, minor, mode, uid, gid"""


class _Directory:
    """The directory that something was last made in, kept open: devices and links mostly lie in one."""

    def __init__(self, root_fd: int) -> None:
        self._root = root_fd
        self._path: str | None = None
        self._fd = -1

    def of(self, path: str) -> tuple[int, str]:
        """(a descriptor of its directory, made where missing, good until the next call; its name there)."""
        parent, name = safe_paths.split(path)
        if parent != self._path:
            self.close()
            self._fd, self._path = safe_paths.make_dirs_in_root(self._root, parent), parent
        return self._fd, name

    def close(self) -> None:
        if self._path is not None:
            os.close(self._fd)
            self._path = None


def devices(tree: Tree, nodes: list[Node], bind: bool) -> None:
    """``bind``: the host's own nodes, as a user namespace makes none."""
    directory = _Directory(tree.root_fd)
    old = os.umask(0)
    try:
        for node in nodes:
            _make_device(tree, node, bind, directory)
    finally:
        os.umask(old)
        directory.close()


def _make_device(tree: Tree, node: Node, bind: bool, directory: _Directory) -> None:
    path, kind, major, minor, mode, uid, gid = node
    number = os.makedev(major, minor)
    if bind:
        _bind_device(tree, path, _TYPE_BITS[kind], number)
        return
    parent, name = directory.of(path)
    try:
        os.mknod(name, mode | _TYPE_BITS[kind], number, dir_fd=parent)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        entry = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_IFMT(entry.st_mode) != _TYPE_BITS[kind] or not (entry.st_rdev == number or kind == "p"):
            raise RuntimeFault("invalid", f"the image has another file at {path}") from None
    except PermissionError:
        _bind_device(tree, path, _TYPE_BITS[kind], number)


def _bind_device(tree: Tree, path: str, kind: int, number: int) -> None:
    """Where nodes may not be made, the host's node of the same path is bound; read and written, but not changed."""
    try:
        copy = mounts.clone(path)
    except FileNotFoundError:
        words = f"the host has no {path} to bind, and a user namespace makes no devices"
        raise RuntimeFault("invalid", f"linux.devices: {words}") from None
    entry = os.fstat(copy)
    if stat.S_IFMT(entry.st_mode) != kind or (kind != stat.S_IFIFO and entry.st_rdev != number):
        raise RuntimeFault("invalid", f"linux.devices: the host's {path} is another device, and none can be made here")
    mounts.set_attributes(copy, syscalls.MOUNT_ATTR_RDONLY, 0)
    target = safe_paths.create_file_in_root(tree.root_fd, path)
    mounts.attach(copy, target)
    os.close(copy)
    os.close(target)


def links(tree: Tree, links: list[tuple[str, str]]) -> None:
    """``links``: (path, target)."""
    directory = _Directory(tree.root_fd)
    try:
        for path, target in links:
            parent, name = directory.of(path)
            try:
                os.symlink(target, name, dir_fd=parent)
            except FileExistsError:
                pass
            except OSError as error:
                # A read-only image that lacks /dev/fd still runs; what needs it will say so.
                if error.errno != errno.EROFS:
                    raise
    finally:
        directory.close()


DEVICE_STEPS: dict[str, Any] = {"devices": devices, "links": links}
