"""A writable view of an image in the making, mounted for as long as it is used: where COPY writes, and what --from reads.

Decides only where it lies. It is an overlay like a container's, without a container.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from covey.entropy import container_id
from worker.build.threads import whole
from worker.containers.host import Host
from worker.images.draft import Draft
from worker.kernel import trees


@dataclass(frozen=True, slots=True)
class Workspace:
    """``overlay_id`` names its upper directory, ``place`` is where it is mounted, ``fd`` that directory."""

    overlay_id: str
    place: Path
    fd: int


def directory(host: Host) -> Path:
    """Where builds mount; a daemon's start clears it."""
    return host.options.exec_root / "builds"


def secrets_directory(host: Host) -> Path:
    """Where secrets of running steps lie."""
    return host.options.exec_root / "build-secrets"


@asynccontextmanager
async def of_draft(host: Host, draft: Draft) -> AsyncIterator[Workspace]:
    """The image's file system; one without layers is empty."""
    layers = await whole(host, host.images.layer_dirs, draft.as_image())
    async with of_directories(host, layers or [await whole(host, _empty, host)]) as workspace:
        yield workspace


@asynccontextmanager
async def of_directories(host: Host, layers: Sequence[Path]) -> AsyncIterator[Workspace]:
    """``layers``: topmost first."""
    overlay_id = container_id()
    place = directory(host) / overlay_id
    opened: list[int] = []
    try:
        await whole(host, _open, host, overlay_id, layers, place, opened)
        yield Workspace(overlay_id, place, opened[0])
    finally:
        for fd in opened:
            os.close(fd)
        await host.carry(host.run(_close, host, overlay_id, place), "build: workspace")


def _open(host: Host, overlay_id: str, layers: Sequence[Path], place: Path, opened: list[int]) -> None:
    ids = host.options.remap
    host.overlay.prepare(overlay_id, layers, ids.as_lists() if ids else None)
    host.overlay.mount(overlay_id, place)
    opened.append(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def _close(host: Host, overlay_id: str, place: Path) -> None:
    host.overlay.unmount(place)
    with contextlib.suppress(FileNotFoundError):
        place.rmdir()
    host.overlay.remove(overlay_id)


def _empty(host: Host) -> Path:
    path = host.options.data_root / "build" / "empty"
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    return path


def clear(host: Host) -> None:
    """Unmount what a daemon that died left. Blocking."""
    trees.remove_path(secrets_directory(host))
    left = directory(host)
    for place in sorted(left.iterdir()) if left.is_dir() else ():
        _close(host, place.name, place)
