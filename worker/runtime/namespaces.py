"""The steps of init that enter namespaces: joined by path after a check of their type, time with its offsets.

Which namespaces a container has is decided by worker.runtime.launch.
"""

from __future__ import annotations

import errno
import fcntl
import os

from worker.kernel import safe_paths, syscalls
from worker.kernel.bare import Any
from worker.runtime.errors import RuntimeFault

_NS_GET_NSTYPE = 0xB703  # include/uapi/linux/nsfs.h

FLAGS: dict[str, int] = {
    "user": syscalls.CLONE_NEWUSER,
    "pid": syscalls.CLONE_NEWPID,
    "network": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "mount": syscalls.CLONE_NEWNS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "time": syscalls.CLONE_NEWTIME,
}
"""OCI namespace type → CLONE_NEW* flag."""
_TYPES = {flag: kind for kind, flag in FLAGS.items()}
PROC_NAMES = {kind: {"network": "net", "mount": "mnt"}.get(kind, kind) for kind in FLAGS}
"""OCI namespace type → its file's name below /proc/PID/ns."""


def open_namespace(path: str, kind: str) -> int:
    """A descriptor of the namespace at ``path``, which must be of OCI type ``kind``. Raises RuntimeFault."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RuntimeFault("invalid", f"linux.namespaces: {kind} namespace {path}: {error.strerror}") from None
    try:
        found = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        os.close(fd)
        raise RuntimeFault("invalid", f"linux.namespaces: {path} is no namespace, let alone a {kind} one") from None
    if found != FLAGS[kind]:
        os.close(fd)
        words = f"{path} is a {_TYPES.get(found, hex(found))} namespace, not a {kind} one"
        raise RuntimeFault("invalid", f"linux.namespaces: {words}")
    return fd


def join(path: str, kind: str) -> None:
    fd = open_namespace(path, kind)
    try:
        syscalls.setns(fd, FLAGS[kind])
    except OSError as error:
        words = error.strerror or ""
        if error.errno == errno.EINVAL and kind == "user":
            words = "the caller is in it already"
        raise RuntimeFault("kernel", f"linux.namespaces: {kind} namespace {path}: {words}") from None
    finally:
        os.close(fd)


def join_namespace(init: Any, kind: str, path: str) -> None:
    join(path, kind)


def foreign_namespace(init: Any, kind: str, path: str, keys: list[str]) -> None:
    """Refuse sysctls for a joined namespace that is the runtime's own: they would be set for the whole machine."""
    theirs, ours = os.stat(path), os.stat(f"/proc/self/ns/{PROC_NAMES[kind]}")
    if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
        words = f"{path} is the machine's own {kind} namespace, in which no container may set it"
        raise RuntimeFault("invalid", f"linux.sysctl.{keys[0]}: {words}")


def time_namespace(init: Any, offsets: list[tuple[str, int, int]]) -> None:
    """A time namespace of our own. ``unshare`` makes one for children; offsets hold from the first who enters."""
    syscalls.unshare(syscalls.CLONE_NEWTIME)
    if offsets:
        text = "".join(f"{clock} {seconds} {nanoseconds}\n" for clock, seconds, nanoseconds in offsets)
        try:
            safe_paths.write_proc("self/timens_offsets", text)
        except OSError as error:
            raise RuntimeFault("invalid", f"linux.timeOffsets: {error.strerror}") from None
    join("/proc/self/ns/time_for_children", "time")


def become_root_of_namespace() -> None:
    """In a user namespace: its root, with nothing of the ids outside. It clears the death signal."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


NAMESPACE_STEPS: dict[str, Any] = {
    "foreign_namespace": foreign_namespace,
    "join_namespace": join_namespace,
    "time_namespace": time_namespace,
}
