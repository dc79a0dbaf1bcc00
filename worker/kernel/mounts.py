"""Mounts as descriptors: make one detached, set its attributes, put it on a place already opened.

The places are descriptors, so that no path of an untrusted tree is resolved by the mount itself. It decides nothing
about which mounts a container gets. Errors are OSError; those of a new filesystem carry the kernel's own words.
"""

from __future__ import annotations

import os

from worker.kernel import syscalls
from worker.kernel.bare import suppress

_FLAGS: dict[str, tuple[int, int]] = {
    "ro": (syscalls.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, syscalls.MOUNT_ATTR_RDONLY),
    "nosuid": (syscalls.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, syscalls.MOUNT_ATTR_NOSUID),
    "nodev": (syscalls.MOUNT_ATTR_NODEV, 0),
    "dev": (0, syscalls.MOUNT_ATTR_NODEV),
    "noexec": (syscalls.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, syscalls.MOUNT_ATTR_NOEXEC),
    "noatime": (syscalls.MOUNT_ATTR_NOATIME, syscalls.MOUNT_ATTR_ATIME),
    "relatime": (syscalls.MOUNT_ATTR_RELATIME, syscalls.MOUNT_ATTR_ATIME),
    "strictatime": (syscalls.MOUNT_ATTR_STRICTATIME, syscalls.MOUNT_ATTR_ATIME),
    "atime": (syscalls.MOUNT_ATTR_RELATIME, syscalls.MOUNT_ATTR_ATIME),
    "norelatime": (syscalls.MOUNT_ATTR_RELATIME, syscalls.MOUNT_ATTR_ATIME),
    "nostrictatime": (syscalls.MOUNT_ATTR_RELATIME, syscalls.MOUNT_ATTR_ATIME),
    "nodiratime": (syscalls.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, syscalls.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (syscalls.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, syscalls.MOUNT_ATTR_NOSYMFOLLOW),
}

ATTRIBUTES: dict[str, tuple[int, int, bool]] = {
    **{name: (on, off, False) for name, (on, off) in _FLAGS.items()},
    **{f"r{name}": (on, off, True) for name, (on, off) in _FLAGS.items()},
}
"""Mount option → (attributes to set, to clear, recursive); mount(8) names, ``r…`` forms of the OCI spec.

What undoes one way of access times leaves the kernel's default, relatime (mount(8)).
"""

PROPAGATION: dict[str, int] = {
    "shared": syscalls.MS_SHARED,
    "slave": syscalls.MS_SLAVE,
    "private": syscalls.MS_PRIVATE,
    "unbindable": syscalls.MS_UNBINDABLE,
    "rshared": syscalls.MS_SHARED | syscalls.MS_REC,
    "rslave": syscalls.MS_SLAVE | syscalls.MS_REC,
    "rprivate": syscalls.MS_PRIVATE | syscalls.MS_REC,
    "runbindable": syscalls.MS_UNBINDABLE | syscalls.MS_REC,
}


def new_filesystem(fstype: str, options: list[str], attributes: int = 0, source: str | None = None) -> int:
    """A detached mount of a new filesystem; ``options`` are ``key`` or ``key=value``. Returns its descriptor."""
    context = syscalls.fsopen(fstype)
    try:
        if source:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "source", source)
        _configure(context, options)
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, attributes=attributes)
    except OSError as error:
        words = _kernel_words(context)
        raise OSError(error.errno, f"{error.strerror}{words}", fstype) from None
    finally:
        os.close(context)


def _configure(context: int, options: list[str]) -> None:
    for option in options:
        key, separator, value = option.partition("=")
        command = syscalls.FSCONFIG_SET_STRING if separator else syscalls.FSCONFIG_SET_FLAG
        syscalls.fsconfig(context, command, key, value if separator else None)


def _kernel_words(context: int) -> str:
    """What the filesystem logged on its context ("e tmpfs: Bad value for 'size'"), for the error message."""
    lines: list[str] = []
    with suppress(OSError):
        while len(lines) < 4:
            lines.append(os.read(context, 1024).decode("utf-8", "replace").strip())
    return f" ({'; '.join(lines)})" if lines else ""


def clone(path: str, dirfd: int = syscalls.AT_FDCWD, *, recursive: bool = False) -> int:
    """A detached copy (bind) of the mount at ``path``; an empty path clones what ``dirfd`` is open on."""
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
    if recursive:
        flags |= syscalls.AT_RECURSIVE
    if not path:
        flags |= syscalls.AT_EMPTY_PATH
    return syscalls.open_tree(dirfd, path, flags)


def map_ids(mount_fd: int, userns_fd: int, *, recursive: bool = False) -> None:
    """Have a detached mount show its owners through the id maps of a user namespace (MOUNT_ATTR_IDMAP)."""
    flags = syscalls.AT_EMPTY_PATH | (syscalls.AT_RECURSIVE if recursive else 0)
    syscalls.mount_setattr(mount_fd, "", flags, syscalls.MOUNT_ATTR_IDMAP, 0, 0, userns_fd)


def reconfigure(place_fd: int, fstype: str, options: list[str]) -> None:
    """Change the options of the filesystem mounted at an open place, as mount -o remount does."""
    context = syscalls.fspick(place_fd, "", syscalls.FSPICK_CLOEXEC | syscalls.FSPICK_EMPTY_PATH)
    try:
        _configure(context, options)
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_RECONFIGURE)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}{_kernel_words(context)}", fstype) from None
    finally:
        os.close(context)


def set_attributes(mount_fd: int, set_: int, clear: int, *, recursive: bool = False, propagation: int = 0) -> None:
    """Set and clear MOUNT_ATTR_* flags of a mount, and optionally its propagation (one of MS_SHARED …)."""
    flags = syscalls.AT_EMPTY_PATH | (syscalls.AT_RECURSIVE if recursive else 0)
    syscalls.mount_setattr(mount_fd, "", flags, set_, clear, propagation)


def attach(mount_fd: int, target_fd: int) -> None:
    """Put a detached mount on the place ``target_fd`` is open on."""
    flags = syscalls.MOVE_MOUNT_F_EMPTY_PATH | syscalls.MOVE_MOUNT_T_EMPTY_PATH
    syscalls.move_mount(mount_fd, "", target_fd, "", flags)


def move(path: str, target_fd: int) -> None:
    """Move the mount at ``path``, with all below it, to the place ``target_fd`` is open on."""
    syscalls.move_mount(syscalls.AT_FDCWD, path, target_fd, "", syscalls.MOVE_MOUNT_T_EMPTY_PATH)


def mount_points(prefix: str) -> list[str]:
    """Mount points at or below ``prefix`` in this process's mount namespace, deepest last mounted first."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        points = [unescape(line.split(" ", 5)[4]) for line in lines]
    base = prefix.rstrip("/")
    return [point for point in reversed(points) if point == base or point.startswith(f"{base}/")]


def unescape(field: str) -> str:
    """Undo the octal escapes of /proc/self/mountinfo (space, tab, newline, backslash)."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
