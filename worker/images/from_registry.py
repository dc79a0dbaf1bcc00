"""The registry as a place that images of tasks and builds come from.

It decides how a pull's progress becomes two numbers, and which of a build's logins is sent. A task's image is pulled as whoever
the daemon's own configuration logs in, asked for at each pull: a helper may have a fresh login.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from covey.credentials import of_server
from worker.images import reference
from worker.images.image import Image
from worker.images.progress import Listener
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

    async def pull(self, name: str, *, platform: str, credentials: Mapping[str, Any], listener: Listener) -> Image:
        """The image of a build's FROM. ``credentials``: by server, as the header ``X-Registry-Config`` has them."""
        named = reference.parse_tagged(name)
        auth = of_server(credentials, named.domain, "X-Registry-Config header")
        pulled = await self._puller.pull(named, auth=auth, platform=platform, listener=listener)
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
