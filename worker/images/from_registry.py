"""The registry as a place that images of tasks come from: pulls by name, as whoever the daemon's own configuration logs in.

It decides how a pull's progress becomes two numbers, and which failures mean that the image is not there. Logins are asked
for at each pull: a helper may have a fresh one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from worker.images.image import Image
from worker.images.pull import Puller
from worker.images.reference import Reference

Said = Callable[[int, int], None]
"""(bytes that came, bytes to come in all or 0 while nobody knows)."""


class FromRegistry:
    """``fetch`` has the image in the store under ``wanted``. NotFound: the registry does not have it, or not for us."""

    def __init__(self, puller: Puller) -> None:
        self._puller = puller

    async def fetch(self, wanted: Reference, said: Said) -> Image:
        pulled = await self._puller.pull(wanted, listener=_Sum(said))
        return pulled.image


class _Sum:
    """A listener that adds up what layers tell."""

    def __init__(self, said: Said) -> None:
        self._said = said
        self._layers: dict[str, tuple[int, int]] = {}

    def __call__(self, message: Mapping[str, Any]) -> None:
        detail = message.get("progressDetail")
        if message.get("status") != "Downloading" or not detail:
            return
        self._layers[str(message["id"])] = (int(detail["current"]), int(detail["total"]))
        self._said(sum(current for current, _ in self._layers.values()), sum(total for _, total in self._layers.values()))
