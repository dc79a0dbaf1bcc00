"""``cluster image fsck``, ``pin``, ``unpin``: what Covey does for a node's images beyond Docker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.connection import client
from cli.output import clean
from covey.errors import Internal, InvalidArgument


def fsck(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what the node can mend by itself")] = False,
    data_root: Annotated[
        str | None, typer.Option("--data-root", help="Look there, without a daemon; mends nothing", show_default=False)
    ] = None,
) -> None:
    """Look for damage in this node's images: blobs, unpacked layers, tables."""
    if data_root and repair:
        raise InvalidArgument("--repair is the daemon's: start it and leave --data-root out")
    found = left = 0
    for line in _on_disk(Path(data_root)) if data_root else _by_daemon(repair):
        said = "; ".join(filter(None, (line["Done"], line["Step"])))
        print(clean(f"{line['Path']}: {line['What']}; {said}"), flush=True)
        found, left = found + 1, left + bool(line["Step"])
    print("no fault found" if not found else f"{found} faults, {left} left")
    if left:
        raise typer.Exit(1)


def _by_daemon(repair: bool) -> Iterator[dict[str, Any]]:
    line: dict[str, Any] = {}
    with client() as api:
        for line in api.lines("POST", "/covey/images/fsck", {"repair": repair or None}):
            if "Path" in line:
                yield line
    if "Faults" not in line:
        raise Internal("the daemon stopped looking before the end: its log says why")


def _on_disk(data_root: Path) -> Iterator[dict[str, Any]]:
    from worker.images import fsck

    if not (data_root / "images").is_dir():
        raise InvalidArgument(f"{data_root} holds no images: name a daemon's --data-root")
    try:
        for fault in fsck.check(data_root / "images", data_root / "rootfs" / "layers"):
            yield {"Path": str(fault.path), "What": fault.what, "Step": fault.step, "Done": ""}
    except PermissionError as error:
        raise InvalidArgument(f"cannot read {error.filename}: run it with sudo") from None


def pin(name: Annotated[str, typer.Argument(metavar="[IMAGE]", show_default=False)] = "") -> None:
    """Keep an image when others are collected or pruned; without IMAGE list those that are kept."""
    with client() as api:
        if name:
            api.post(f"/covey/images/{name}/pin")
            return
        for one in api.get("/covey/images/pins"):
            print(clean(", ".join(one["RepoTags"] or one["RepoDigests"]) or one["Id"]))


def unpin(name: Annotated[str, typer.Argument(metavar="IMAGE", show_default=False)]) -> None:
    """Let an image be collected and pruned again."""
    with client() as api:
        api.post(f"/covey/images/{name}/pin", {"pinned": "0"})
