"""What the image room says when the disk is full: one clear line that names the path.

Knows paths only; what is written is others' business.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from covey.errors import Internal
from worker.images.retention import Disk

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFull(Internal):
    """No space (or quota) left under a path; nothing half-done is left there."""


def usage(path: Path) -> Disk:
    """How full the file system of ``path`` is, for everybody but root."""
    found = os.statvfs(path)
    used = (found.f_blocks - found.f_bfree) * found.f_frsize
    return Disk(used, used + found.f_bavail * found.f_frsize)


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turns ENOSPC, EDQUOT and EFBIG into one line that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFull(
            f"cannot write under {path}: {os.strerror(error.errno or 0).lower()}; "
            "free space there or remove unused images (image prune)"
        ) from error
