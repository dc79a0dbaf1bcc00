"""What the caller's environment says to the command: systemd's sockets, the directory of the states."""

from __future__ import annotations

import os


def listen_fds() -> int:
    """How many sockets systemd (sd_listen_fds(3)) has passed to this process, from descriptor 3 on."""
    count = os.environ.get("LISTEN_FDS", "")
    return int(count) if count.isdigit() and os.environ.get("LISTEN_PID", "") in ("", str(os.getpid())) else 0


def default_root() -> str:
    base = os.environ.get("XDG_RUNTIME_DIR") if os.geteuid() != 0 else None
    return os.path.join(base or "/run", "covey-runtime")
