"""Which of a stack's services are held to a new digest, which to the one they have: ``--resolve-image``, as Docker means it.

always: every service is held to what its image's name means at its registry now. changed: those whose name in the file is
another than the one last deployed. never: none. What is not asked for keeps its digest while its name stays the same, and so
does what no registry tells of: a deployment without its registry must not replace what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cli.service_image import Meaning, hold, image_of, unpinned
from cli.stack.convert import IMAGE
from covey.errors import InvalidArgument

MODES = ("always", "changed", "never")
Ask = Callable[[Iterable[str]], Mapping[str, Meaning | None]]
Resolve = Callable[[Mapping[str, dict[str, Any]], Mapping[str, Mapping[str, Any]]], None]


def resolving(mode: str, ask: Ask) -> Resolve:
    """What holds specs, by name, to digests; it is given the services that are there too. Raises InvalidArgument."""
    if mode not in MODES:
        raise InvalidArgument(f"--resolve-image {mode!r}: one of {', '.join(MODES)}")

    def resolve(specs: Mapping[str, dict[str, Any]], present: Mapping[str, Mapping[str, Any]]) -> None:
        same = {name for name, spec in specs.items() if name in present and _deployed(present[name]["Spec"]) == _deployed(spec)}
        named = {name: image for name, spec in specs.items() if (image := image_of(spec))}
        asked = [image for name, image in named.items() if mode == "always" or (mode == "changed" and name not in same)]
        found = ask(asked) if asked else {}
        for name, image in named.items():
            if meaning := found.get(image):
                hold(specs[name], meaning)
            elif name in same:
                _keep(specs[name], present[name]["Spec"])
        unpinned([image for image in dict.fromkeys(asked) if found.get(image) is None], "--resolve-image never")

    return resolve


def _deployed(spec: Mapping[str, Any]) -> str | None:
    """The image's name as the file had it."""
    return (spec.get("Labels") or {}).get(IMAGE)


def _keep(spec: dict[str, Any], before: Mapping[str, Any]) -> None:
    """The digest, and the platforms that came with it, as they are now."""
    template, former = spec["TaskTemplate"], before.get("TaskTemplate") or {}
    image = str((former.get("ContainerSpec") or {}).get("Image") or "")
    if image.partition("@")[0] not in (image_of(spec), template["ContainerSpec"]["Image"]):
        return
    template["ContainerSpec"]["Image"] = image
    if platforms := (former.get("Placement") or {}).get("Platforms"):
        template["Placement"] = {**(template.get("Placement") or {}), "Platforms": platforms}
