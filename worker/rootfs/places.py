"""What the engine mounts upon, made in a container's writable part before it is first mounted, as Docker makes it.

Otherwise each start would make it through the overlay, which copies /etc up for it, in the time somebody waits. It makes only
what the image surely lacks and may simply have: where /etc is a link, or has attributes of its own, the start still does it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from worker.rootfs.changes import Below

_DIRECTORIES = ("dev", "proc", "sys")
_FILES = ("hostname", "hosts", "resolv.conf")
_HERE = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def make(upper: Path, lowers: Sequence[Path]) -> None:
    """``upper`` is empty and ours alone; ``lowers`` are the layers below, topmost first. Raises OSError."""
    with ExitStack() as stack:

        def opened(path: Path) -> int:
            fd = os.open(path, _HERE)
            stack.callback(os.close, fd)
            return fd

        root, below = opened(upper), Below([opened(lower) for lower in lowers])
        for name in _DIRECTORIES:
            if not below.has(name):
                os.close(_directory(root, name, 0o755, 0, 0))
        found = below.looks("etc")
        if found is None or not stat.S_ISDIR(found[0]) or below.has_attributes("etc"):
            return
        missing = [name for name in _FILES if not below.has(f"etc/{name}")]
        if missing:
            etc = _directory(root, "etc", stat.S_IMODE(found[0]), found[1], found[2])
            stack.callback(os.close, etc)
            for name in missing:
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=etc))


def _directory(root: int, name: str, mode: int, uid: int, gid: int) -> int:
    os.mkdir(name, mode, dir_fd=root)
    fd = os.open(name, _HERE | os.O_NOFOLLOW, dir_fd=root)
    try:
        os.fchown(fd, uid, gid)
        os.fchmod(fd, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd
