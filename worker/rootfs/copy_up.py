"""Copies a directory tree between untrusted roots: what an image has at a volume's path into the empty volume.

Keeps owners, modes, times, extended attributes, links (hard ones too) and devices. Both sides are walked by
descriptors and no link is followed. Decides nothing about when a copy is due.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from worker.kernel import safe_paths, trees

_CHUNK = 1 << 20
_SKIPPED_XATTRS = ("trusted.overlay.", "user.overlay.")


def copy_tree(source_fd: int, target_fd: int) -> None:
    """Copy all that is in one open directory into another, its own attributes included. OSError on failure."""
    links: dict[tuple[int, int], str] = {}
    pending = [""]
    made: list[tuple[str, os.stat_result]] = [("", os.fstat(source_fd))]
    while pending:
        directory = pending.pop()
        with contextlib.ExitStack() as stack:
            here = _descend(stack, source_fd, directory)
            there = _descend(stack, target_fd, directory)
            for name in os.listdir(here):
                status = os.stat(name, dir_fd=here, follow_symlinks=False)
                path = f"{directory}/{name}" if directory else name
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(name, 0o700, dir_fd=there)
                    pending.append(path)
                    made.append((path, status))
                elif not _linked(links, status, path, target_fd, name, there):
                    _copy_one(name, status, here, there)
    for path, status in reversed(made):
        with contextlib.ExitStack() as stack:
            here, there = _descend(stack, source_fd, path), _descend(stack, target_fd, path)
            _copy_xattrs(here, there)
            os.fchown(there, status.st_uid, status.st_gid)
            os.fchmod(there, stat.S_IMODE(status.st_mode))
            os.utime(there, ns=(status.st_atime_ns, status.st_mtime_ns))


def _descend(stack: contextlib.ExitStack, root_fd: int, path: str) -> int:
    """A descriptor of directory ``path`` below the root, no link followed."""
    fd = safe_paths.open_in_root(root_fd, path, trees.DIRECTORY, follow=False)
    stack.callback(os.close, fd)
    return fd


def _linked(links: dict[tuple[int, int], str], status: os.stat_result, path: str, root_fd: int, name: str, there: int) -> bool:
    """Make ``name`` a hard link where its inode was copied before; otherwise remember it."""
    if status.st_nlink < 2:
        return False
    known = links.setdefault((status.st_dev, status.st_ino), path)
    if known == path:
        return False
    parent, _, first = known.rpartition("/")
    with contextlib.ExitStack() as stack:
        source = _descend(stack, root_fd, parent)
        os.link(first, name, src_dir_fd=source, dst_dir_fd=there, follow_symlinks=False)
    return True


def _copy_one(name: str, status: os.stat_result, here: int, there: int) -> None:
    if stat.S_ISREG(status.st_mode):
        _copy_file(name, status, here, there)
        return
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
    elif stat.S_ISSOCK(status.st_mode):
        return
    else:
        os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=there)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=there, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=there)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=there, follow_symlinks=False)


def _copy_file(name: str, status: os.stat_result, here: int, there: int) -> None:
    with contextlib.ExitStack() as stack:
        source = safe_paths.open_regular(here, name)
        stack.callback(os.close, source)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(name, flags, 0o600, dir_fd=there)
        stack.callback(os.close, target)
        while os.sendfile(target, source, None, _CHUNK):
            pass
        os.fchown(target, status.st_uid, status.st_gid)
        os.fchmod(target, stat.S_IMODE(status.st_mode))
        _copy_xattrs(source, target)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_xattrs(source: int, target: int) -> None:
    for key in os.listxattr(source):
        if key.startswith(_SKIPPED_XATTRS):
            continue
        try:
            os.setxattr(target, key, os.getxattr(source, key))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EINVAL, errno.ENODATA):
                raise
