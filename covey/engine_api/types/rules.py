"""Rules of values that several request objects share: names, image references, mounts, ports, durations.

Each function raises InvalidArgument in Docker's or SwarmKit's words, with the field's path. It must not know which
object it is called for.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from typing import Literal

from covey.engine_api.types.base import refuse
from covey.engine_api.types.service import HealthcheckFields, Mount

DNS_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
OBJECT_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")
RESTRICTED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]+")
_HOST = r"(?:(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
REFERENCE = re.compile(
    rf"(?:{_HOST}(?::[0-9]+)?/)?{_COMPONENT}(?:/{_COMPONENT})*(?::[\w][\w.-]{{0,127}})?"
    r"(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?",
    re.ASCII,
)
REFERENCE_LIMIT = 512
MOUNT_TYPES = ("bind", "volume", "tmpfs", "image", "cluster", "npipe")
MINIMUM_NANO_CPUS = 1_000_000
MINIMUM_MEMORY = 4 * 1024 * 1024


def check_dns_name(field: str, name: str | None) -> None:
    """Names of services and networks of the cluster. Words: SwarmKit's validateAnnotations."""
    if not name:
        raise refuse(field, "meta: name must be provided")
    if len(name) > 63:
        raise refuse(field, "name must be 63 characters or fewer")
    if not DNS_NAME.fullmatch(name):
        raise refuse(field, "name must be valid as a DNS name component")


def check_object_name(field: str, name: str | None) -> None:
    """Names of secrets and configs."""
    if not name or len(name) > 64 or not OBJECT_NAME.fullmatch(name):
        raise refuse(field, "only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]")


def is_reference(text: str) -> bool:
    """Whether ``text`` can name an image. Source: the distribution project's reference grammar."""
    return len(text) <= REFERENCE_LIMIT and REFERENCE.fullmatch(text) is not None


def check_image(field: str, image: str | None) -> None:
    """The image of a service. Words: SwarmKit's validateContainerSpec."""
    if not image:
        raise refuse(field, "ContainerSpec: image reference must be provided")
    if not is_reference(image):
        shown = image if len(image) <= 80 else image[:77] + "..."
        hint = ": repository name must be lowercase" if is_reference(image.lower()) else ""
        raise refuse(field, f'ContainerSpec: "{shown}" is not a valid repository/tag{hint}')


def check_not_negative(field: str, value: int | float | None, what: str) -> None:
    """``what`` is SwarmKit's name of the setting, such as ``TaskSpec: restart-delay``."""
    if value is not None and value < 0:
        raise refuse(field, f"{what} cannot be negative")


def check_cpus(field: str, nano_cpus: int | None) -> None:
    """0 is unset; else at least 0.001 of a processor."""
    if nano_cpus and nano_cpus < MINIMUM_NANO_CPUS:
        raise refuse(field, f"invalid cpu value {nano_cpus / 1e9:g}: Must be at least {MINIMUM_NANO_CPUS / 1e9:g}")


def check_memory(field: str, size: int | None) -> None:
    """0 is unset; else at least 4 MiB."""
    if size and size < MINIMUM_MEMORY:
        raise refuse(field, f"invalid memory value {size}: Must be at least 4MiB")


def check_environment(field: str, environment: Iterable[str]) -> None:
    """``NAME=value`` or ``NAME``; a name is not empty."""
    for number, entry in enumerate(environment):
        if not entry or entry.startswith("=") or "\0" in entry:
            raise refuse(f"{field}[{number}]", f"invalid environment variable: {entry!r}")


def check_mounts(field: str, mounts: Iterable[Mount], default_type: Literal["", "bind"] = "bind") -> None:
    """Type known, source and target given and absolute where they must be, no target twice. Words: dockerd's."""
    targets: set[str] = set()
    for number, mount in enumerate(mounts):
        where = f"{field}[{number}]"
        kind = mount.Type or default_type
        if kind not in MOUNT_TYPES:
            raise refuse(f"{where}.Type", f'mount type unknown: "{kind}": use one of {", ".join(MOUNT_TYPES)}')
        start = f'invalid mount config for type "{kind}"'
        if not mount.Target:
            raise refuse(f"{where}.Target", f"{start}: field Target must not be empty")
        target = posixpath.normpath(mount.Target)
        if not target.startswith("/") or "\0" in target:
            raise refuse(f"{where}.Target", f"{start}: invalid mount path: '{mount.Target}' mount path must be absolute")
        if target == "/":
            raise refuse(f"{where}.Target", f"{start}: invalid specification: destination can't be '/'")
        if target in targets:
            raise refuse(f"{where}.Target", f"ContainerSpec: duplicate mount point: {mount.Target}")
        targets.add(target)
        if kind == "bind" and not mount.Source:
            raise refuse(f"{where}.Source", f"{start}: field Source must not be empty")
        if kind == "bind" and not (mount.Source or "").startswith("/"):
            raise refuse(f"{where}.Source", f"{start}: invalid mount path: '{mount.Source}' mount path must be absolute")
        if kind == "tmpfs" and mount.Source:
            raise refuse(f"{where}.Source", f"{start}: field Source must not be specified")
        if kind == "volume" and mount.Source and not RESTRICTED_NAME.fullmatch(mount.Source):
            raise refuse(
                f"{where}.Source",
                f'{start}: "{mount.Source}" includes invalid characters for a local volume name, '
                "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
            )


def check_healthcheck(field: str, health: HealthcheckFields | None) -> None:
    """Nothing negative; a durations's least is 1 ms. Words: SwarmKit's validateHealthCheck, dockerd's for the least."""
    if health is None:
        return
    for name in ("Interval", "Timeout", "Retries", "StartPeriod", "StartInterval"):
        value = getattr(health, name)
        if value is not None and value < 0:
            raise refuse(f"{field}.{name}", f"ContainerSpec: {name} in HealthConfig cannot be negative")
        if name != "Retries" and value and value < 1_000_000:
            raise refuse(f"{field}.{name}", f"{name} in Healthcheck cannot be less than one millisecond")
    if health.Test and health.Test[0] not in ("", "NONE", "CMD", "CMD-SHELL"):
        raise refuse(f"{field}.Test", f"unknown health check type {health.Test[0]!r}: use NONE, CMD or CMD-SHELL")
