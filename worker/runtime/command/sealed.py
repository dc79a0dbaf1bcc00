"""Runs the command again from a read-only mount of the interpreter, before it makes or enters a container.

A process of the container can execute /proc/self/exe of what becomes it, and so hold the file it ran from: through a
writable mount, root in the container could write to the host's interpreter (CVE-2019-5736). ``-I -S`` leaves out
site-packages; the second start costs some 10 ms.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from worker.kernel import mounts, syscalls
from worker.runtime.command.report import CommandError

_START = "import sys; sys.path.append({root!r}); from worker.runtime.command.main import sealed; sys.exit(sealed())"


def run_again(line: list[str]) -> NoReturn:
    """Replace this process; stdio, environment and inheritable descriptors stay. Raises CommandError."""
    try:
        interpreter = mounts.clone(sys.executable)
        mounts.set_attributes(interpreter, syscalls.MOUNT_ATTR_RDONLY, 0)
    except OSError as error:
        raise CommandError(
            f"no container without the right to mount: {error.strerror} for {sys.executable}: run as root"
        ) from None
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    try:
        os.execv(f"/proc/self/fd/{interpreter}", [sys.executable, "-I", "-S", "-c", _START.format(root=root), *line])
    except OSError as error:
        raise CommandError(f"cannot run {sys.executable} again: {error.strerror}") from None
