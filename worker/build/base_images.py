"""Where the image of a FROM, or of a ``--from``, comes from: this node's store, or a pull.

Decides when to pull. Who pulls it is told (``Pull``); without anybody, an absent image is an error in Docker's words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from covey.errors import NotFound
from worker.build.options import BuildOptions
from worker.build.output import Output
from worker.containers.host import Host
from worker.images import reference
from worker.images.image import Image


class Pull(Protocol):
    """Fetches ``name`` for ``platform`` ("" for this machine's). ``credentials``: X-Registry-Config."""

    async def __call__(
        self, name: str, *, platform: str, credentials: Mapping[str, Any], listener: Callable[[Mapping[str, Any]], None]
    ) -> Image: ...


async def ensure(host: Host, name: str, options: BuildOptions, platform: str, pull: Pull | None, output: Output) -> Image:
    """The image ``name`` means. NotFound, InvalidArgument."""
    wanted = platform or options.platform
    found: Image | None = None
    try:
        found = await host.run(host.images.resolve, name)
    except NotFound:
        pass
    fits = found is not None and (not wanted or found.platform.startswith(wanted))
    if found is not None and fits and not (options.pull and pull is not None):
        return found
    if pull is not None and reference.id_prefix(name) is None:
        return await pull(name, platform=wanted, credentials=options.credentials, listener=output.progress)
    if found is not None:
        raise NotFound(
            f"image with reference {name} was found but does not match the specified platform: "
            f"wanted {wanted}, actual: {found.platform}"
        )
    raise NotFound(
        f"pull access denied for {name}, repository does not exist or may require 'docker login': denied: "
        "requested access to the resource is denied"
    )
