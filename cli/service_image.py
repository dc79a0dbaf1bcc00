"""Holds a service to what its image's name means now: every node, and every task to come, gets the same bytes.

It decides what is written into the spec; what the name means, the daemon asks the registry.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from cli.output import warn
from cli.registry import auth_header
from covey.engine_api.light import Client
from covey.errors import CoveyError, Unavailable

_AT_ONCE = 8


class Meaning(NamedTuple):
    """What a tag means at its registry: a digest, and the platforms it is for."""

    digest: str
    platforms: tuple[tuple[str, str], ...]


def image_of(spec: Mapping[str, Any]) -> str:
    """The image's name with its tag; empty when the spec has none, or a digest beside it."""
    image = str(((spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}).get("Image") or "")
    if not image or "@" in image:
        return ""
    return image if ":" in image.rpartition("/")[2] else f"{image}:latest"


def meaning(api: Client, image: str) -> Meaning | None:
    """What ``image`` means now; None where no registry says it. Raises Unavailable when the daemon does not answer."""
    try:
        with api.stream("GET", f"/distribution/{image}/json", headers=auth_header(image)) as response:
            found = json.loads(response.read())
        platforms = tuple((str(one["architecture"]), str(one["os"])) for one in found.get("Platforms") or ())
        return Meaning(str(found["Descriptor"]["digest"]), platforms)
    except Unavailable:
        raise
    except (CoveyError, ValueError, KeyError, TypeError):
        return None


def meanings(host: str, images: Iterable[str]) -> dict[str, Meaning | None]:
    """``meaning`` of each, asked at once of the daemon at ``host``: a registry that is not there takes seconds to say so."""

    def ask(image: str) -> Meaning | None:
        with Client(host) as api:
            return meaning(api, image)

    names = list(dict.fromkeys(images))
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return dict(zip(names, threads.map(ask, names), strict=True))


def hold(spec: dict[str, Any], found: Meaning) -> None:
    """Write the digest beside the image's tag, and the platforms it is for."""
    template = spec["TaskTemplate"]
    template["ContainerSpec"]["Image"] = f"{image_of(spec)}@{found.digest}"
    if found.platforms:
        platforms = [{"Architecture": architecture, "OS": system} for architecture, system in found.platforms]
        template["Placement"] = {**(template.get("Placement") or {}), "Platforms": platforms}


def pin(api: Client, spec: dict[str, Any]) -> None:
    """Hold the service to what its image means now; a warning where no registry says."""
    image = image_of(spec)
    if not image:
        return
    if found := meaning(api, image):
        hold(spec, found)
    else:
        unpinned([image])


def unpinned(images: Iterable[str], option: str = "--no-resolve-image") -> None:
    """The warning that nodes may come to run different things; nothing for no images. ``option``: the one that does not ask."""
    names = list(images)
    if not names:
        return
    single = ("image", "its digest", "this name")
    what, digest, name = single if len(names) == 1 else ("images", "their digests", "these names")
    warn(
        f"{what} {', '.join(names)} could not be accessed on a registry to record {digest}: each node uses what it has, or "
        f"gets, under {name}, and nodes may come to run different versions; with {option} no registry is asked"
    )
