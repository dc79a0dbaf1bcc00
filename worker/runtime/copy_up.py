"""Copies what lies in a directory into a new, still detached filesystem (the mount option tmpcopyup).

Both are open directories; links are copied, never followed, and nothing of an untrusted tree is resolved by path.
Owners, modes, times and extended attributes go along as far as the target takes them.
"""

from __future__ import annotations

import os
import stat

from worker.kernel.bare import suppress

_CHUNK = 1 << 20


def copy_up(source: int, target: int) -> None:
    """Copy the contents of directory ``source`` (O_PATH will do) into directory ``target``. Raises OSError."""
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source)
    try:
        _copy_directory(readable, target)
    finally:
        os.close(readable)


def _copy_directory(source: int, target: int) -> None:
    for name in os.listdir(source):
        entry = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(entry.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below, made = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=target)
            try:
                _copy_directory(below, made)
                _copy_extended(below, made)
            finally:
                os.close(below)
                os.close(made)
        elif kind == stat.S_IFREG:
            _copy_file(source, target, name)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            os.mknod(name, entry.st_mode, entry.st_rdev, dir_fd=target)
        os.chown(name, entry.st_uid, entry.st_gid, dir_fd=target, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            os.chmod(name, stat.S_IMODE(entry.st_mode), dir_fd=target)
        os.utime(name, ns=(entry.st_atime_ns, entry.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, target: int, name: str) -> None:
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
    writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
    try:
        while data := os.read(reading, _CHUNK):
            while data:
                data = data[os.write(writing, data) :]
        _copy_extended(reading, writing)
    finally:
        os.close(reading)
        os.close(writing)


def _copy_extended(source: int, target: int) -> None:
    for name in os.listxattr(source):
        with suppress(OSError):
            os.setxattr(target, name, os.getxattr(source, name))
