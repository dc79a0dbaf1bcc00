"""The step of init that gives a program its user's HOME where the bundle names none, as runc and crun do.

It reads a file of the image, which may be anything: only a regular one is read, and not more than a megabyte of it.
"""

from __future__ import annotations

import os
import stat

from worker.kernel.bare import Any

_PASSWD = "/etc/passwd"
_MOST = 1 << 20


def home(init: Any, uid: int) -> None:
    """After find_program, inside the root. ``/`` for a user the image does not know."""
    if not init.env.get("HOME"):
        init.env["HOME"] = _of(uid)


def _of(uid: int) -> str:
    try:
        fd = os.open(_PASSWD, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return "/"
    try:
        text = os.read(fd, _MOST) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    except OSError:
        return "/"
    finally:
        os.close(fd)
    for line in text.decode("utf-8", "surrogateescape").splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and fields[2] == str(uid):
            return fields[5] or "/"
    return "/"


HOME_STEPS: dict[str, Any] = {"home": home}
