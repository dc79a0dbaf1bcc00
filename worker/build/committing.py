"""``POST /commit``: a container's changes as an image.

Decides what of the container's config the image keeps and what its history says; a running container stands still while
it is read, if asked. Words: Docker's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covey.clock import rfc3339
from covey.errors import Conflict
from worker.build import layer_tar
from worker.containers import copying, merge, record
from worker.containers.engine import Engine
from worker.containers.host import Host, Live
from worker.dockerfile import config as dockerfile
from worker.images import commit, draft
from worker.images.content import Lease
from worker.images.image import Image, Layer
from worker.images.reference import Reference
from worker.rootfs import changes

_OF_IMAGES = (
    "Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "Shell", "StopSignal", "User", "Volumes",
    "WorkingDir",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client asks of a commit. ``config``: a ContainerConfig that wins over the container's, perhaps empty."""

    name: Reference | None
    config: Mapping[str, Any]
    changes: Sequence[str]
    author: str = ""
    comment: str = ""
    pause: bool = True


def image_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a container's config that an image has, empty values left out."""
    return {key: config[key] for key in _OF_IMAGES if config.get(key) not in (None, "", {}, [])}


async def container(engine: Engine, ref: str, wish: Wish) -> Image:
    """The new image. Raises NotFound, Conflict, InvalidArgument."""
    # To its end also when the client leaves: it must not leave the container paused.
    return await engine.host.carry(_container(engine, ref, wish), "commit")


async def _container(engine: Engine, ref: str, wish: Wish) -> Image:
    host = engine.host
    live = host.resolve(ref)
    if live.container.state.status in (record.REMOVING, record.DEAD):
        raise Conflict(f"cannot commit container {live.container.id} which is being removed or is dead")
    own = image_config(live.container.config)
    given = dockerfile.changed(image_config(wish.config) if wish.config else own, wish.changes)
    config = image_config(merge.config(given, own))
    paused = wish.pause and live.container.state.status == record.RUNNING
    if paused:
        await engine.pause(ref)
    try:
        return await host.run(_commit, host, live, config, wish)
    finally:
        if paused:
            await engine.unpause(ref)


def _commit(host: Host, live: Live, config: Mapping[str, Any], wish: Wish) -> Image:
    images, one = host.images, live.container
    with images.content.lease() as lease:
        base = draft.begin(images.get(one.image_id))
        layer = layer_of(host, one.id, base.layers, lease)
        created_by = " ".join(merge.as_list(one.config.get("Cmd")))
        made = draft.follow(
            base, config, rfc3339(host.clock.now()), created_by, layer=layer, author=wish.author, comment=wish.comment
        )
        return commit.store(images, made, [wish.name] if wish.name else [], lease)


def layer_of(host: Host, overlay_id: str, below: Sequence[Layer], lease: Lease, left_out: Collection[str] = ()) -> Layer | None:
    """What lies in an overlay's upper directory as a layer on ``below``; None when that is nothing. Blocking.

    ``left_out``: paths that are no part of it, beside what the engine itself put there.
    """
    upper = host.overlay.upper(overlay_id)
    without = changes.made_by_engine(upper, host.overlay.lowers(overlay_id)) | set(left_out)
    return packed(host, overlay_id, below, lease, without)


def packed(host: Host, overlay_id: str, below: Sequence[Layer], lease: Lease, left_out: Collection[str] = ()) -> Layer | None:
    """The same of an upper directory that only we wrote."""
    for layer in below:
        lease.pin(layer.chain_id)
        lease.pin(layer.digest)
    owners = copying.owners_of(host, overlay_id, to_host=False)
    pieces = layer_tar.pack(host.overlay.upper(overlay_id), left_out, owners)
    return commit.add_layer(host.images, below, layer_tar.Stream(pieces), lease)
