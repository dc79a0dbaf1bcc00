"""What a pull or push tells while it runs: the objects of Docker's progress stream.

Pure, but for the clock in ``Throttle`` that its user hands in. Knows no HTTP: a listener takes the objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Listener = Callable[[Mapping[str, Any]], None]
EVERY = 0.1
_WIDTH = 50
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def nobody(message: Mapping[str, Any]) -> None:
    """The listener of whoever does not listen."""


def short(digest: str) -> str:
    """The 12 digits that name a layer in the stream."""
    return digest.partition(":")[2][:12]


def status(text: str, name: str = "") -> dict[str, Any]:
    """A line for people; ``name``: of what."""
    return {"status": text, "id": name} if name else {"status": text}


def step(text: str, digest: str) -> dict[str, Any]:
    """A layer has come to a new state."""
    return {"status": text, "progressDetail": {}, "id": short(digest)}


def amount(text: str, digest: str, current: int, total: int) -> dict[str, Any]:
    """How far a layer is in its state."""
    return {
        "status": text,
        "progressDetail": {"current": current, "total": total},
        "progress": bar(current, total),
        "id": short(digest),
    }


def bar(current: int, total: int) -> str:
    """``[=====>      ]  1.2MB/3.4MB`` as Docker's daemon writes it for clients that do not count themselves."""
    done = _WIDTH if total <= 0 else min(_WIDTH, _WIDTH * current // total)
    line = "=" * done + (">" if done < _WIDTH else "")
    return f"[{line.ljust(_WIDTH)}]  {_size(current)}/{_size(total)}"


def _size(count: float) -> str:
    place = 0
    while count >= 1000 and place < len(_UNITS) - 1:
        count /= 1000
        place += 1
    return f"{count:.4g}{_UNITS[place]}"


class Throttle:
    """Lets ``amount`` through ten times a second, a layer's last always."""

    def __init__(self, listener: Listener, now: Callable[[], float], text: str, digest: str, total: int) -> None:
        self._listener, self._now = listener, now
        self._text, self._digest, self._total = text, digest, total
        self._last = -EVERY

    def at(self, current: int) -> None:
        """The layer has come so far."""
        now = self._now()
        if current >= self._total or now - self._last >= EVERY:
            self._last = now
            self._listener(amount(self._text, self._digest, current, self._total))
