"""One way to wait for what a measurement needs, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait(what: str, condition: Callable[[], object], patience: float = 90.0, poll: float = 0.02) -> None:
    """Returns when ``condition`` holds. After ``patience`` seconds the measurement ends, and says what for."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: waited {patience:.0f} s for {what}")
        time.sleep(poll)
