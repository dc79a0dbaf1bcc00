"""Inspect and list: joins records with what is live, for view and list_filters to shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from covey.errors import CoveyError
from worker.containers import list_filters, record, view
from worker.containers.host import Host, Live
from worker.containers.record import Container
from worker.network.endpoint import Attachment


def _sizes(host: Host, container: Container) -> tuple[int, int]:
    try:
        root = host.images.resolve(container.image_id).size
    except CoveyError:
        root = 0
    written = host.overlay.size(container.id)
    return written, root + written


def _ports(attachment: Attachment | None) -> Mapping[str, Sequence[Mapping[str, str]]]:
    return attachment.port_map() if attachment is not None else {}


async def live_view(host: Host, live: Live, *, size: bool = False, detailed: bool = False) -> view.Live:
    """What view needs beside the record."""
    container, attachment = live.container, live.attachment
    written, root = await host.run(_sizes, host, container) if size else (None, None)
    upper: dict[str, str] = {}
    if detailed:
        upper = await host.run(_graph, host, container)
    return view.Live(
        directory=str(host.registry.directory(container.id)),
        run_directory=str(host.options.run_directory(container.id)),
        networks=attachment.networks() if attachment is not None else {},
        ports=_ports(attachment),
        sandbox=container.id if attachment is not None else "",
        exec_ids=[key for key, one in live.execs.items() if one.running],
        upper=upper,
        image_name=_image_name(host, container),
        size_rw=written,
        size_root=root,
    )


def _graph(host: Host, container: Container) -> dict[str, str]:
    try:
        upper = host.overlay.upper(container.id)
        lowers = host.overlay.lowers(container.id)
    except CoveyError:
        return {}
    return {
        "LowerDir": ":".join(map(str, lowers)),
        "MergedDir": str(host.options.run_directory(container.id) / "rootfs"),
        "UpperDir": str(upper),
        "WorkDir": str(upper.parent / "work"),
    }


def _image_name(host: Host, container: Container) -> str:
    """The name it was made from while that still means the same image, else the id."""
    name = str(container.config.get("Image") or "")
    try:
        if host.images.resolve(name).id == container.image_id:
            return name
    except CoveyError:
        pass
    return container.image_id


async def inspect(host: Host, live: Live, *, size: bool = False) -> dict[str, Any]:
    """ContainerInspectResponse."""
    return view.inspect(live.container, await live_view(host, live, size=size, detailed=True))


async def listed(
    host: Host, *, everything: bool = False, limit: int = 0, size: bool = False, filters: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """ContainerSummaries, newest first. Raises InvalidArgument, NotFound (before, since)."""
    list_filters.check(filters)
    everything = everything or limit > 0 or any(filters.get(key) for key in ("status", "exited"))
    ancestors = {name: _image_ids(host, name) for name in filters.get("ancestor", ())}
    oldest, newest = _bounds(host, filters)
    out: list[dict[str, Any]] = []
    now = host.clock.now()
    for container in sorted(host.registry, key=lambda one: one.created, reverse=True):
        if not everything and not container.state.running and container.state.status != record.RESTARTING:
            continue
        if not oldest < container.created < newest:
            continue
        shown = view.summary(container, await live_view(host, host.live(container)), now)
        if not list_filters.fits(container, shown, filters, ancestors):
            continue
        if size:
            shown = view.summary(container, await live_view(host, host.live(container), size=True), now)
        out.append(shown)
        if limit > 0 and len(out) == limit:
            break
    return out


def _bounds(host: Host, filters: Mapping[str, Sequence[str]]) -> tuple[float, float]:
    since = [host.registry.resolve(ref).created for ref in filters.get("since", ())]
    before = [host.registry.resolve(ref).created for ref in filters.get("before", ())]
    return max(since, default=-1.0), min(before, default=float("inf"))


def _image_ids(host: Host, name: str) -> frozenset[str]:
    try:
        return frozenset({host.images.resolve(name).id})
    except CoveyError:
        return frozenset()
