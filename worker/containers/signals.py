"""Signal names and numbers as the API takes them: ``KILL``, ``SIGKILL``, ``9``, ``SIGRTMIN+3``. Pure."""

from __future__ import annotations

import re
import signal

from covey.errors import InvalidArgument

_REALTIME = re.compile(r"RT(MIN|MAX)(?:([+-])(\d+))?")


def parse(text: str) -> int:
    """The number. Raises InvalidArgument in Docker's words."""
    bare = text.strip().upper().removeprefix("SIG")
    if bare.isdigit():
        number = int(bare)
        if 0 < number <= signal.NSIG - 1:
            return number
        raise InvalidArgument(f"invalid signal: {text}")
    realtime = _REALTIME.fullmatch(bare)
    if realtime:
        # The C library keeps two for itself; Docker counts from the kernel's 34 as it does.
        base = int(signal.SIGRTMIN) if realtime[1] == "MIN" else int(signal.SIGRTMAX)
        offset = int(realtime[3] or 0) * (-1 if realtime[2] == "-" else 1)
        if int(signal.SIGRTMIN) <= base + offset <= int(signal.SIGRTMAX):
            return base + offset
        raise InvalidArgument(f"invalid signal: {text}")
    try:
        return int(signal.Signals[f"SIG{bare}"])
    except KeyError:
        raise InvalidArgument(f"invalid signal: {text}") from None
