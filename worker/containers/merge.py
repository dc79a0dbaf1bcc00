"""A container's Config from what the client sent and what the image says. Pure.

Rules as Docker's: the client's value wins; environment, labels, ports and volumes are united; an own entrypoint drops the
image's command. It must not know host settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from covey.errors import InvalidArgument

_ENV_NAME = re.compile(r"[^=\x00]+")


def as_list(value: Any) -> list[str]:
    """A command as a list; clients may send one string."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def environment(first: Iterable[str], second: Iterable[str]) -> list[str]:
    """``first`` and those of ``second`` whose names it does not set, in this order."""
    out = list(first)
    names = {entry.partition("=")[0] for entry in out}
    out += [entry for entry in second if entry.partition("=")[0] not in names]
    return out


def check_environment(entries: Iterable[str]) -> None:
    """Raises InvalidArgument in Docker's words."""
    for entry in entries:
        if not _ENV_NAME.match(entry):
            raise InvalidArgument(f"invalid environment variable: {entry}")


def config(given: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` (ContainerCreate without HostConfig and NetworkingConfig) completed by the image's Config."""
    out = dict(given)
    check_environment(given.get("Env") or [])
    out["Env"] = environment(given.get("Env") or [], image.get("Env") or [])
    for key in ("Labels", "ExposedPorts", "Volumes"):
        union = {**(image.get(key) or {}), **(given.get(key) or {})}
        out[key] = union or ({} if key == "Labels" else None)
    for key in ("User", "WorkingDir", "StopSignal"):
        out[key] = given.get(key) or image.get(key) or ""
    entrypoint, command = _process(given, image)
    out["Entrypoint"], out["Cmd"] = entrypoint, command
    if image.get("Shell") and not given.get("Shell"):
        out["Shell"] = image["Shell"]
    health = healthcheck(given.get("Healthcheck"), image.get("Healthcheck"))
    if health:
        out["Healthcheck"] = health
    else:
        out.pop("Healthcheck", None)
    for key in ("AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce"):
        out[key] = bool(given.get(key))
    for key in ("Domainname", "Image"):
        out[key] = given.get(key) or ""
    for key in ("ExposedPorts", "Volumes", "StopSignal"):
        if not out[key]:
            out.pop(key)
    if "Volumes" not in out:
        out["Volumes"] = None
    out["OnBuild"] = given.get("OnBuild")
    return out


def _process(given: Mapping[str, Any], image: Mapping[str, Any]) -> tuple[list[str] | None, list[str] | None]:
    entrypoint, command = as_list(given.get("Entrypoint")), as_list(given.get("Cmd"))
    if entrypoint == [""]:
        return None, command or None
    if entrypoint:
        return entrypoint, command or None
    return as_list(image.get("Entrypoint")) or None, command or as_list(image.get("Cmd")) or None


def healthcheck(given: Mapping[str, Any] | None, image: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The health check: each unset field from the image's. Test ["NONE"] is kept, it switches the image's off."""
    if not image:
        return dict(given) if given else None
    if not given:
        return dict(image)
    out = dict(given)
    for key in ("Test", "Interval", "Timeout", "StartPeriod", "StartInterval", "Retries"):
        out[key] = given.get(key) or image.get(key) or ([] if key == "Test" else 0)
    return out


def argv(merged: Mapping[str, Any]) -> list[str]:
    """Entrypoint and command together. Raises InvalidArgument when there is nothing to run."""
    words = as_list(merged.get("Entrypoint")) + as_list(merged.get("Cmd"))
    if not words:
        raise InvalidArgument("no command specified: the image has no CMD or ENTRYPOINT, give a command")
    return words
