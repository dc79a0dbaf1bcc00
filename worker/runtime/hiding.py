"""The steps of init that hide places of a container's tree, or make them read-only."""

from __future__ import annotations

import errno
import os
import stat

from worker.kernel import mounts, safe_paths, syscalls
from worker.kernel.bare import Any, Callable
from worker.runtime.filesystem import Tree


def mask_paths(tree: Tree, paths: list[str]) -> None:
    """Hide files behind /dev/null and directories behind one empty, read-only tmpfs."""
    covers = {True: _Cover(_empty_directory), False: _Cover(_null)}
    for path in paths:
        target = _open_existing(tree, path)
        if target is not None:
            covers[stat.S_ISDIR(os.fstat(target).st_mode)].put_on(target)
    for cover in covers.values():
        cover.end()


def _empty_directory() -> int:
    return mounts.new_filesystem("tmpfs", ["size=0", "nr_inodes=2"], syscalls.MOUNT_ATTR_RDONLY)


def _null() -> int:
    null = mounts.clone("/dev/null")
    # It is the host's own node: a container's root must not change its mode or owner through a mask.
    mounts.set_attributes(null, syscalls.MOUNT_ATTR_RDONLY, 0)
    return null


class _Cover:
    """A detached mount that is put on several places: a copy on each, and itself on the last.

    The kernel makes whoever lets go of a mount that is nowhere wait until all processors have agreed.
    """

    def __init__(self, make: Callable[[], int]) -> None:
        self._make = make
        self._mount = self._last = -1

    def put_on(self, target: int) -> None:
        """``target`` is closed."""
        if self._mount < 0:
            self._mount = self._make()
        else:
            copy = mounts.clone("", self._mount)
            self._attach(copy)
        self._last = target

    def end(self) -> None:
        if self._mount >= 0:
            self._attach(self._mount)

    def _attach(self, mount_fd: int) -> None:
        mounts.attach(mount_fd, self._last)
        os.close(mount_fd)
        os.close(self._last)


def readonly_path(tree: Tree, path: str) -> None:
    target = _open_existing(tree, path)
    if target is None:
        return
    copy = mounts.clone("", target, recursive=True)
    mounts.set_attributes(copy, syscalls.MOUNT_ATTR_RDONLY, 0, recursive=True)
    mounts.attach(copy, target)
    os.close(copy)
    os.close(target)


def _open_existing(tree: Tree, path: str) -> int | None:
    try:
        return safe_paths.open_in_root(tree.root_fd, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise


HIDING_STEPS: dict[str, Any] = {"mask_paths": mask_paths, "readonly_path": readonly_path}
