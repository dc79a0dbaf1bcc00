"""Which kind of machine an image is for, and which of several kinds serves a machine best.

Pure. The rules are those of containerd's platforms package (facts only): a machine also runs what its older relatives
run, the closest first. Knows no manifests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from covey.errors import InvalidArgument

_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386"}
#: Names that stand for an architecture with a variant.
_WITH_VARIANT = {"armhf": ("arm", "v7"), "armel": ("arm", "v6")}
#: A variant that says no more than the architecture does.
_IMPLIED = {("arm64", "v8"), ("arm64", "8"), ("amd64", "v1")}
_SYSTEMS = {"linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "solaris", "illumos", "aix", "plan9", "wasip1", "js"}
_PART = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Platform:
    """As manifests write it; ``str`` gives ``linux/arm/v7``."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def normal(self) -> Platform:
        """One spelling for what is the same machine."""
        system, architecture, variant = self.os.lower() or "linux", self.architecture.lower(), self.variant.lower()
        if architecture in _WITH_VARIANT:
            architecture, implied = _WITH_VARIANT[architecture]
            variant = variant or implied
        architecture = _ARCHITECTURES.get(architecture, architecture)
        if architecture == "arm":
            variant = f"v{variant}" if variant.isdigit() else variant or "v7"
        if (architecture, variant) in _IMPLIED:
            variant = ""
        return Platform(system, architecture, variant)


def parse(text: str, host: Platform) -> Platform:
    """``os[/arch[/variant]]``, or an architecture alone; what is not said is the host's. InvalidArgument otherwise."""
    parts = text.split("/")
    if len(parts) > 3 or not all(_PART.fullmatch(part) for part in parts):
        raise InvalidArgument(f"invalid platform {text!r}: expected os[/architecture[/variant]], as linux/arm64/v8")
    if len(parts) > 1:
        return Platform(*parts).normal
    if parts[0].lower() in _SYSTEMS:
        return replace(host, os=parts[0]).normal
    return Platform(host.os, parts[0]).normal


def served_by(wanted: Platform) -> list[Platform]:
    """The platforms a machine of the wanted one can run, best first, normalised."""
    one = wanted.normal
    number = int(one.variant[1:]) if re.fullmatch(r"v\d", one.variant) else None
    found = [one]
    if one.architecture == "amd64":
        found += [Platform(one.os, "amd64", f"v{older}") for older in range((number or 1) - 1, 1, -1)]
        found += [Platform(one.os, "amd64")] if number else []
        found.append(Platform(one.os, "386"))
    elif one.architecture == "arm":
        found += [Platform(one.os, "arm", f"v{older}") for older in range((number or 7) - 1, 4, -1)]
    elif one.architecture == "arm64":
        found += [Platform(one.os, "arm64")] if one.variant else []
        found += [Platform(one.os, "arm", f"v{older}") for older in range(8, 4, -1)]
    return found
