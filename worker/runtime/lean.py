"""A mount namespace with little in it, for container processes to make theirs from.

A new mount namespace begins as a copy of its maker's, and each container's root is one more mount of the daemon's: to copy
them all, only to let go of them at the pivot, costs 5 µs a running container and start. So the zygote keeps one namespace in
which there is only what such a process looks at, and nothing comes to be that is mounted on the machine later (private). It
keeps no file system busy that was not needed.
"""

from __future__ import annotations

import os

from worker.kernel import mounts, syscalls
from worker.runtime import labels

_LOOKED_AT = ("/dev", "/proc", "/sys", *labels.ROOTS.values())
_WITH_ALL_BELOW = "/sys/fs/cgroup"


def make(place: str) -> int:
    """A descriptor of a new one, in which ``place``, a directory, is seen, but nothing that is mounted below it.

    By a child process, as the caller stays where it is. Raises OSError.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    held, hold = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(hold)
            syscalls.unshare(syscalls.CLONE_NEWNS)
            _empty(os.path.realpath(place))
            os.write(write, b"x")
            # Until it has been looked at.
            os.read(held, 1)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    os.close(held)
    try:
        if not os.read(read, 1):
            raise OSError("a mount namespace of its own cannot be made")
        return os.open(f"/proc/{child}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(read)
        os.close(hold)
        os.waitpid(child, 0)


def _empty(place: str) -> None:
    syscalls.mount(None, "/", None, syscalls.MS_PRIVATE | syscalls.MS_REC)
    for point in mounts.mount_points("/"):
        if not is_kept(point, place):
            try:
                syscalls.umount2(point, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
            except OSError:
                # It went with another one, or lies below one that hides it.
                pass


def is_kept(point: str, place: str) -> bool:
    """Whether what is mounted at ``point`` is needed by who looks at ``place``. Absolute paths without links."""
    within = point.rstrip("/") + "/"
    return within.startswith(f"{_WITH_ALL_BELOW}/") or any(f"{one}/".startswith(within) for one in (*_LOOKED_AT, place))
