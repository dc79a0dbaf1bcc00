"""``GET /system/df``: the rows of each kind, in the older form and, since 1.52, summed up. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
TYPES = {"image": "Images", "container": "Containers", "volume": "Volumes", "build-cache": "BuildCache"}


def legacy(rows: Mapping[str, Sequence[Row]], layers_size: int) -> dict[str, Any]:
    """What clients before 1.52 read. ``rows``: type → rows, of the types asked for only."""
    out: dict[str, Any] = {field: list(rows[kind]) if kind in rows else None for kind, field in TYPES.items()}
    return {"LayersSize": layers_size, **out, "BuilderSize": sum(int(row["Size"]) for row in rows.get("build-cache", ()))}


def _sum(rows: Sequence[Row], active: Callable[[Row], bool], size: Callable[[Row], int], items: bool) -> dict[str, Any]:
    used = [row for row in rows if active(row)]
    out = {
        "ActiveCount": len(used),
        "TotalCount": len(rows),
        "Reclaimable": sum(max(0, size(row)) for row in rows if not active(row)),
        "TotalSize": sum(max(0, size(row)) for row in rows),
    }
    return {**out, "Items": list(rows)} if items else out


def _own_size(image: Row) -> int:
    return int(image["Size"]) - max(0, int(image["SharedSize"]))


def summed(rows: Mapping[str, Sequence[Row]], layers_size: int, verbose: bool) -> dict[str, Any]:
    """SystemDataUsageResponse of 1.52; ``verbose`` adds the rows."""
    out: dict[str, Any] = {}
    if "image" in rows:
        out["ImageUsage"] = _sum(rows["image"], lambda row: row["Containers"] > 0, _own_size, verbose)
        out["ImageUsage"]["TotalSize"] = layers_size
    if "container" in rows:
        running = ("running", "paused", "restarting")
        out["ContainerUsage"] = _sum(
            rows["container"], lambda row: row["State"] in running, lambda row: int(row["SizeRw"] or 0), verbose
        )
    if "volume" in rows:
        out["VolumeUsage"] = _sum(
            rows["volume"],
            lambda row: row["UsageData"]["RefCount"] > 0,
            lambda row: int(row["UsageData"]["Size"]),
            verbose,
        )
    if "build-cache" in rows:
        out["BuildCacheUsage"] = _sum(
            rows["build-cache"], lambda row: bool(row["InUse"]), lambda row: int(row["Size"]), verbose
        )
    return out
