"""Volumes as the Engine API shows them. Pure: a Volume in, a JSON dict out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from covey.clock import rfc3339
from worker.rootfs.volumes import Volume


def volume(of: Volume, *, size: int | None = None, users: int = -1) -> dict[str, Any]:
    """Volume; with ``size`` (bytes, -1 unknown) also the UsageData of ``/system/df``."""
    shown: dict[str, Any] = {
        "Name": of.name,
        "Driver": of.driver,
        "Mountpoint": str(of.mountpoint),
        "CreatedAt": rfc3339(of.created_at),
        "Labels": dict(of.labels) or None,
        "Scope": "local",
        "Options": dict(of.options) or None,
    }
    if size is not None:
        shown["UsageData"] = {"Size": size, "RefCount": users}
    return shown


def volume_list(volumes: Sequence[Volume]) -> dict[str, Any]:
    """VolumeListResponse."""
    return {"Volumes": [volume(each) for each in volumes], "Warnings": None}


def volumes_pruned(names: Sequence[str], freed: int) -> dict[str, Any]:
    """VolumePruneResponse."""
    return {"VolumesDeleted": list(names) or None, "SpaceReclaimed": freed}
