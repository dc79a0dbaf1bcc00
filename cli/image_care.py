"""``cluster image fsck``, ``pin``, ``unpin``: what Covey does for a node's images beyond Docker."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.connection import client
from cli.output import clean


def fsck(repair: Annotated[bool, typer.Option("--repair", help="Mend what the node can mend by itself")] = False) -> None:
    """Look for damage in this node's images: blobs, unpacked layers, tables."""
    last: dict[str, Any] = {}
    with client() as api:
        for last in api.lines("POST", "/covey/images/fsck", {"repair": repair or None}):
            if "Path" in last:
                said = "; ".join(filter(None, (last["Done"], last["Step"])))
                print(clean(f"{last['Path']}: {last['What']}; {said}"), flush=True)
    found, left = last.get("Faults", 0), last.get("Left", 0)
    print("no fault found" if not found else f"{found} faults, {left} left")
    if left:
        raise typer.Exit(1)


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
