"""Reach into a tree that somebody else wrote (a rootfs, a volume) without being led out of it.

Every path is resolved by the kernel under an open root directory (openat2). Two ways to treat symbolic links:
``open_in_root`` follows them as a process chrooted there would; ``follow=False`` refuses them. Magic links of /proc are
always refused. Nothing here knows containers or mounts. Errors are OSError naming the path inside the root.
"""

from __future__ import annotations

import errno
import os
import stat

from worker.kernel import syscalls

_PROC_SUPER_MAGIC = 0x9FA0
_MAX_LINKS = 40


def open_in_root(root_fd: int, path: str, flags: int = os.O_PATH, mode: int = 0, *, follow: bool = True) -> int:
    """A descriptor for ``path`` below ``root_fd``; with ``follow`` false any symbolic link on the way is ELOOP.

    Other threads renaming directories make openat2 answer EAGAIN; that is tried again.
    """
    resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
    if not follow:
        resolve |= syscalls.RESOLVE_NO_SYMLINKS
    for _ in range(32):
        try:
            return syscalls.openat2(root_fd, path.lstrip("/") or ".", flags, mode, resolve)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise OSError(error.errno, f"openat2: {os.strerror(error.errno or 0)}", path) from None
    raise OSError(errno.EAGAIN, "openat2: the tree keeps changing", path)


def open_regular(parent_fd: int, name: str) -> int:
    """A descriptor to read regular file ``name`` (one component, no link) of an open directory; EINVAL for all else.

    What is there is looked at before it is opened: opening a device node, which a tree may hold, does things to the
    machine (a watchdog starts, a tape rewinds), and a FIFO waits.
    """
    return _reopened(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd), name)


def open_regular_in_root(root_fd: int, path: str) -> int:
    """The same for a path below a root, whose links are followed inside."""
    return _reopened(open_in_root(root_fd, path), path)


def _reopened(found: int, path: str) -> int:
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def make_dirs_in_root(root_fd: int, path: str, mode: int = 0o755) -> int:
    """An O_PATH descriptor of directory ``path`` below the root, made with its parents where missing.

    Symbolic links on the way are followed inside the root; one that points nowhere has its target made.
    """
    try:
        return open_in_root(root_fd, path, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    made = _make_last(root_fd, path, mode)
    if made is not None:
        return made
    pending = _components(path)[::-1]
    done: list[str] = []
    links = 0
    while pending:
        name = pending.pop()
        if name == "..":
            done = done[:-1]
            continue
        parent = open_in_root(root_fd, "/".join(done), os.O_PATH | os.O_DIRECTORY, follow=False)
        try:
            target = _enter(parent, name, mode)
        finally:
            os.close(parent)
        if target is None:
            done.append(name)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, "too many symbolic links", path)
        if target.startswith("/"):
            done = []
        pending.extend(_components(target)[::-1])
    return open_in_root(root_fd, "/".join(done), os.O_PATH | os.O_DIRECTORY, follow=False)


def _make_last(root_fd: int, path: str, mode: int) -> int | None:
    """What is missing most of the time is the last component alone. None where it is not so."""
    above, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        return None
    try:
        parent = open_in_root(root_fd, above, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        os.mkdir(name, mode, dir_fd=parent)
        return open_in_root(parent, name, os.O_PATH | os.O_DIRECTORY, follow=False)
    except FileExistsError:
        # A link that points nowhere, or somebody was faster.
        return None
    finally:
        os.close(parent)


def _enter(parent: int, name: str, mode: int) -> str | None:
    """Make directory ``name`` unless something is there; where that is a link, say where it points."""
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return os.readlink(name, dir_fd=parent)
    return None


def split(path: str) -> tuple[str, str]:
    """(parent, last component) of a path inside a root; a path that names no file is refused."""
    parts = _components(path)
    if not parts or parts[-1] == "..":
        raise OSError(errno.EINVAL, "the path names no file", path)
    return "/".join(parts[:-1]), parts[-1]


def create_file_in_root(root_fd: int, path: str, mode: int = 0o644) -> int:
    """An O_PATH descriptor of file ``path`` below the root, made empty (with its parents) where missing."""
    try:
        return open_in_root(root_fd, path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    parent_path, name = split(path)
    parent = make_dirs_in_root(root_fd, parent_path)
    try:
        try:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=parent))
        except FileExistsError:
            target = os.readlink(name, dir_fd=parent)
            if target.startswith("/"):
                return create_file_in_root(root_fd, target, mode)
            return create_file_in_root(root_fd, f"{parent_path}/{target}", mode)
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    finally:
        os.close(parent)


def open_proc(path: str, flags: int = os.O_RDONLY) -> int:
    """Open ``/proc/<path>`` only if what is opened really lies on procfs (an image may hide it behind a mount)."""
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # /proc/self and /proc/thread-self are ordinary links; magic links and other mounts stay refused.
        resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV
        fd = syscalls.openat2(proc, path, flags, 0, resolve)
    except OSError as error:
        raise OSError(error.errno, f"openat2: {os.strerror(error.errno or 0)}", f"/proc/{path}") from None
    finally:
        os.close(proc)
    if not is_procfs(fd):
        os.close(fd)
        raise OSError(errno.EXDEV, "not on procfs", f"/proc/{path}")
    return fd


def is_procfs(fd: int) -> bool:
    """Whether the open file lies on procfs."""
    return syscalls.filesystem_magic(fd) == _PROC_SUPER_MAGIC


def read_proc(path: str) -> str:
    """The first 4 KiB of ``/proc/<path>``, verified to be procfs."""
    fd = open_proc(path)
    try:
        return os.read(fd, 4096).decode("utf-8", "replace")
    finally:
        os.close(fd)


def write_proc(path: str, value: str) -> None:
    """Write ``value`` to ``/proc/<path>``, verified to be procfs."""
    fd = open_proc(path, os.O_WRONLY)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)
