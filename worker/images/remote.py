"""All that asks registries, made and imported when it is first asked for: most nodes of a cluster pull nothing themselves.

It must not know what is pulled or pushed; it only knows what that takes, and ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from worker.images.reference import Reference
from worker.images.registry import endpoints
from worker.images.registry.endpoints import RegistryOptions
from worker.images.sources import BlobSource
from worker.images.store import ImageStore

if TYPE_CHECKING:
    from worker.images.pull import Pulled, Puller
    from worker.images.push import Pusher
    from worker.images.registry.access import Registries


class Remote:
    """Use as an async context. Raises InvalidArgument at once for options that cannot be.

    ``sources``: where pulls look for blobs before they ask a registry; to be set before the first pull.
    """

    def __init__(self, images: ImageStore, options: RegistryOptions) -> None:
        self.sources: Sequence[BlobSource] = ()
        self._images = images
        self._options = endpoints.check(options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        made = vars(self)
        for name in ("pusher", "puller"):
            if name in made:
                made[name].close()
        if "registries" in made:
            await self.registries.__aexit__(kind, fault, trace)

    @cached_property
    def registries(self) -> Registries:
        from worker.images.registry.access import Registries

        return Registries(self._options)

    @cached_property
    def puller(self) -> Puller:
        from worker.images.pull import Puller

        return Puller(self._images, self.registries, self.sources)

    @cached_property
    def pusher(self) -> Pusher:
        from worker.images.push import Pusher

        return Pusher(self._images, self.registries)

    async def pull(self, named: Reference, **how: Any) -> Pulled:
        """As ``Puller.pull``."""
        return await self.puller.pull(named, **how)
