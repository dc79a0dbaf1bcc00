"""PURE: whether a container that ended is started again, and after how long (Docker's rules and back-off)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIRST_DELAY = 0.1
LONGEST_DELAY = 60.0
LONG_ENOUGH = 10.0


def wanted(policy: Mapping[str, Any], exit_code: int, restarts: int, manually_stopped: bool) -> bool:
    """Whether the policy asks for another start. ``restarts``: how many there were."""
    name = policy.get("Name") or "no"
    if name == "no" or manually_stopped:
        return False
    if name == "on-failure":
        most = policy.get("MaximumRetryCount") or 0
        return exit_code != 0 and (not most or restarts < most)
    return True


def delay(previous: float, ran_for: float) -> float:
    """Seconds to wait: a tenth, doubled each time up to a minute; from the start again after a run of ten seconds."""
    if previous <= 0 or ran_for >= LONG_ENOUGH:
        return FIRST_DELAY
    return min(previous * 2, LONGEST_DELAY)


def wanted_at_boot(policy: Mapping[str, Any], manually_stopped: bool) -> bool:
    """Whether a stopped container is started when the daemon starts."""
    name = policy.get("Name")
    return name == "always" or (name == "unless-stopped" and not manually_stopped)
