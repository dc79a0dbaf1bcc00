"""What a build tells its client while it runs: the JSON stream of Docker's classic builder.

It decides words' form, nothing of when. Lines wait in a queue of bounded length: a client that does not read holds the
build up, not our memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from covey.engine_api import framing

_RED, _PLAIN = "\x1b[91m", "\x1b[0m"
_WAITING = 256


class Output:
    """``quiet``: only the result and errors are told."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=_WAITING)
        self._ended = False

    async def say(self, text: str) -> None:
        if not self._quiet:
            await self._lines.put(framing.line({"stream": text}))

    async def printed(self, text: str, stream: int) -> None:
        """What a step's process wrote; Docker shows its standard error red."""
        await self.say(text if stream == framing.STDOUT else f"{_RED}{text}{_PLAIN}")

    def progress(self, message: Mapping[str, Any]) -> None:
        """A line of a pull's progress; nobody waits for a client that does not read them."""
        if not self._quiet and not self._lines.full():
            self._lines.put_nowait(framing.line(message))

    async def image(self, image_id: str) -> None:
        if not self._quiet:
            await self._lines.put(framing.line({"aux": {"ID": image_id}}))

    async def result(self, text: str) -> None:
        """Told even to a quiet client."""
        await self._lines.put(framing.line({"stream": text}))

    async def failed(self, message: str, code: int = 0) -> None:
        await self._lines.put(framing.error_line(message, code))

    def end(self) -> None:
        """Nothing more is told; waits for nobody."""
        self._ended = True
        if not self._lines.full():
            self._lines.put_nowait(None)

    async def next(self) -> bytes | None:
        """The next line; None at the end."""
        return None if self._ended and self._lines.empty() else await self._lines.get()
