"""Images as the Engine API shows them: ImageSummary, ImageInspect, history. Pure: an Image in, a JSON dict out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from covey.clock import parse_rfc3339, rfc3339
from worker.images.image import Image
from worker.images.listing import created_at
from worker.images.removal import Removed
from worker.images.steps import Kept

DRIVER = "overlay2"
_ZERO_TIME = "0001-01-01T00:00:00Z"
_CONFIG_FIELDS: Mapping[str, Any] = {"Env": None, "Cmd": None, "Entrypoint": None, "Labels": None, "WorkingDir": ""}


def image_summary(image: Image, *, containers: int = -1, shared_size: int = -1, digests: bool = True) -> dict[str, Any]:
    """ImageSummary. ``containers`` and ``shared_size`` are -1 where they were not counted."""
    return {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests) if digests else [],
        "Created": int(created_at(image)),
        "Size": image.size,
        "SharedSize": shared_size,
        "Labels": dict(image.labels) or None,
        "Containers": containers,
    }


def image_inspect(image: Image, layer_dirs: Sequence[Path] = ()) -> dict[str, Any]:
    """ImageInspect. ``layer_dirs``: topmost first, as ``ImageStore.layer_dirs`` gives them."""
    data: dict[str, str] = {}
    if layer_dirs:
        data["UpperDir"] = str(layer_dirs[0])
        if len(layer_dirs) > 1:
            data["LowerDir"] = ":".join(map(str, layer_dirs[1:]))
    document = image.document
    inspected = {
        "Id": image.id,
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests),
        "Parent": "",
        "Comment": _comment(image),
        "Created": image.created or _ZERO_TIME,
        "DockerVersion": "",
        "Author": document.get("author") or "",
        "Config": {**_CONFIG_FIELDS, **image.config},
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": {"Name": DRIVER, "Data": data},
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id for layer in image.layers]},
        "Metadata": {"LastTagTime": rfc3339(image.tagged_at)},
        "Descriptor": {
            "mediaType": image.manifest_type,
            "digest": image.manifest_digest,
            "size": image.manifest_size,
        },
    }
    if image.variant:
        inspected["Variant"] = image.variant
    if document.get("os.version"):
        inspected["OsVersion"] = document["os.version"]
    return inspected


def history(image: Image, layer_sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Items of ``GET /images/{name}/history``, newest first. ``layer_sizes``: lowest first, in bytes."""
    sizes = iter(layer_sizes)
    steps = image.document.get("history") or []
    filled = sum(1 for step in steps if not step.get("empty_layer"))
    # An image whose history does not cover its layers gets a nameless step for each one that is missing.
    steps = [*({} for _ in range(len(image.layers) - filled)), *steps]
    items: list[dict[str, Any]] = []
    for step in steps:
        created = created_at_text(step.get("created") or "")
        items.append(
            {
                "Id": "<missing>",
                "Created": created,
                "CreatedBy": step.get("created_by") or "",
                "Tags": None,
                "Size": 0 if step.get("empty_layer") else next(sizes, 0),
                "Comment": step.get("comment") or "",
            }
        )
    items.reverse()
    if items:
        items[0]["Id"] = image.id
        items[0]["Tags"] = list(image.repo_tags)
    return items


def build_cache(step: Kept, size: int) -> dict[str, Any]:
    """BuildCache of one cached step; ``size``: bytes that only it needs."""
    told = step.document.get("history") or [{}]
    return {
        "ID": step.draft.id.removeprefix("sha256:")[:25],
        "Parents": [step.parent.removeprefix("sha256:")[:25]],
        "Type": "regular",
        "Description": told[-1].get("created_by") or "",
        "InUse": False,
        "Shared": False,
        "Size": size,
        "CreatedAt": rfc3339(step.created),
        "LastUsedAt": rfc3339(step.used),
    }


def created_at_text(text: str) -> int:
    """Unix seconds of an RFC 3339 time, 0 when it is none."""
    try:
        return int(parse_rfc3339(text)) if text else 0
    except ValueError:
        return 0


def removed(result: Removed) -> list[dict[str, str]]:
    """ImageDeleteResponseItems of a removal."""
    return [{"Untagged": name} for name in result.untagged] + [{"Deleted": each} for each in result.deleted]


def pruned(result: Removed) -> dict[str, Any]:
    """ImagePruneResponse."""
    return {"ImagesDeleted": removed(result) or None, "SpaceReclaimed": result.freed}


def _comment(image: Image) -> str:
    steps = image.document.get("history") or []
    return (steps[-1].get("comment") or "") if steps else ""
