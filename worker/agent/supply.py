"""Where a task's image comes from: this node, the cluster, then each other place. Two that need one image wait for one fetch.

It decides the order and the words of a failure. How an image comes from a place is the place's own affair: the cluster
(worker.agent.cluster_images), a registry.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from covey.errors import CoveyError, NotFound
from worker.images import reference
from worker.images.image import Image
from worker.images.reference import Reference
from worker.images.store import ImageStore

log = logging.getLogger(__name__)

NEXT_STEP = "load it with `cluster image load --all-nodes` or give a registry"

#: (bytes that came, bytes to come in all or 0 while nobody knows).
Said = Callable[[int, int], None]


class Place(Protocol):
    """Where images can be had besides this node: a registry."""

    async def fetch(self, wanted: Reference, said: Said) -> Image:
        """The image, in this node's store under that name. NotFound: the place does not have it; the next is asked."""


class Cluster(Place, Protocol):
    """The other nodes. When none has an image, one of those that need it looks elsewhere, and the others get it from there."""

    async def sought(self, wanted: Reference, error: str) -> None:
        """This node has looked elsewhere: the image is here now, or why not."""


class Supply:
    """``places`` are asked in their order, once no node of the ``cluster`` has the image. Use as an async context."""

    def __init__(self, images: ImageStore, cluster: Cluster, places: Sequence[Place] = ()) -> None:
        self._images = images
        self._cluster = cluster
        self._places = tuple(places)
        self._fetches: dict[str, _Fetch] = {}

    async def __aenter__(self) -> Supply:
        return self

    async def __aexit__(self, *fault: object) -> None:
        tasks = [fetch.task for fetch in self._fetches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ensure(self, name: str, said: Callable[[str], None] = lambda message: None) -> bool:
        """The image is on this node; whether it had to come first. ``said`` is told of progress in words.

        Raises NotFound, or why it cannot come now.
        """
        if not name or await asyncio.to_thread(self._has, name):
            return False
        wanted = reference.parse_tagged(name)
        key = str(wanted)
        fetch = self._fetches.get(key)
        if fetch is None:
            fetch = self._fetches[key] = _Fetch()
            fetch.task = asyncio.create_task(self._fetch(wanted, fetch), name=f"image {wanted.familiar}")
            fetch.task.add_done_callback(lambda task: self._over(key, task))
        fetch.listeners.append(said)
        try:
            # Whoever waits may be cancelled; the others' fetch goes on.
            await asyncio.shield(fetch.task)
            return True
        finally:
            fetch.listeners.remove(said)

    def _over(self, key: str, task: asyncio.Task[None]) -> None:
        del self._fetches[key]
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.info("image %s: %s", key, fault)

    def _has(self, name: str) -> bool:
        try:
            self._images.resolve(name)
        except NotFound:
            return False
        return True

    async def _fetch(self, wanted: Reference, fetch: _Fetch) -> None:
        told = ""

        def say(current: int, total: int) -> None:
            nonlocal told
            words = f"receiving image {wanted.familiar}" + (f": {current * 100 // total} %" if total else "")
            if words != told:
                told = words
                for listener in tuple(fetch.listeners):
                    listener(words)

        try:
            image = await self._cluster.fetch(wanted, say)
        except NotFound as lack:
            log.info("image %s: %s", wanted.familiar, lack.message)
            image = await self._look_elsewhere(wanted, say)
        except CoveyError as error:
            raise type(error)(f"image {wanted.familiar} does not come: {error.message}") from error
        log.info("image %s has come: %s", wanted.familiar, image.short_id)

    async def _look_elsewhere(self, wanted: Reference, say: Said) -> Image:
        """From the first place that has it. NotFound says why not, also where a place cannot be reached: so does Docker."""
        why, lacks = "it was given up", list[str]()
        try:
            for place in self._places:
                try:
                    image = await place.fetch(wanted, say)
                except CoveyError as lack:
                    lacks.append(lack.message)
                    continue
                why = ""
                return image
            besides = f" ({'; '.join(lacks)})" if lacks else ""
            why = f"No such image: {wanted.familiar} on any node{besides}: {NEXT_STEP}"
            raise NotFound(why)
        finally:
            await self._cluster.sought(wanted, why)

    def statistics(self) -> dict[str, Any]:
        return {"fetching": sorted(self._fetches)}


class _Fetch:
    """An image that is being fetched, and who is told."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[str], None]] = []
        self.task: asyncio.Task[None]
