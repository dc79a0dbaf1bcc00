"""Holds a service to what its image's name means now: every node, and every task to come, gets the same bytes.

It decides what is written into the spec; what the name means, the daemon asks the registry.
"""

from __future__ import annotations

import json
from typing import Any

from cli.output import warn
from cli.registry import auth_header
from covey.engine_api.light import Client
from covey.errors import CoveyError, Unavailable


def pin(api: Client, spec: dict[str, Any]) -> None:
    """The digest beside the image's tag, and the platforms it is for; a warning where no registry says."""
    template = spec.get("TaskTemplate") or {}
    container = template.get("ContainerSpec") or {}
    image = str(container.get("Image") or "")
    if not image or "@" in image:
        return
    if ":" not in image.rpartition("/")[2]:
        image += ":latest"
    try:
        with api.stream("GET", f"/distribution/{image}/json", headers=auth_header(image)) as response:
            found = json.loads(response.read())
        digest = str(found["Descriptor"]["digest"])
    except Unavailable:
        raise
    except (CoveyError, ValueError, KeyError, TypeError):
        warn(
            f"image {image} could not be accessed on a registry to record its digest: each node uses what it has, or gets, "
            "under this name, and nodes may come to run different versions of it; --no-resolve-image does not ask"
        )
        return
    container["Image"] = f"{image}@{digest}"
    platforms = [{"Architecture": one.get("architecture"), "OS": one.get("os")} for one in found.get("Platforms") or ()]
    if platforms:
        template["Placement"] = {**(template.get("Placement") or {}), "Platforms": platforms}
