"""PURE: a container's log driver and its options: what Docker refuses, in its words, and what the shim is to be told.

The rules are those of moby's daemon/logger (factory, jsonfilelog, local, loginfo).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from covey.errors import InvalidArgument
from worker.containers.record import Container

DRIVERS = ("json-file", "local", "none")
COMMON = frozenset(("mode", "max-buffer-size"))
OPTIONS = frozenset(("max-file", "max-size", "compress", "labels", "labels-regex", "env", "env-regex", "tag"))
RING_BYTES = 1_000_000
LOCAL_SIZE, LOCAL_FILES = 20 * 1024 * 1024, 5

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_PLACE = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_TAG_FIELDS = ("ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "DaemonName")


def size(text: str, unit: int) -> int:
    """``10m`` in bytes; ``unit`` is what a k is: 1000 for files, 1024 for memory. ValueError for what is no size."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"invalid size: '{text}'")
    return int(float(found[1]) * unit ** " kmgtp".index(found[2].lower() or " "))


def check(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The LogConfig with its driver. Raises InvalidArgument in Docker's words."""
    driver = (config or {}).get("Type") or "json-file"
    options: Mapping[str, str] = (config or {}).get("Config") or {}
    if driver == "none":
        return {"Type": driver, "Config": dict(options)}
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise InvalidArgument(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise InvalidArgument("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        _sized(options, "max-buffer-size", 1024)
    if driver not in DRIVERS:
        raise InvalidArgument(f"logger: no log driver named '{driver}' is registered")
    for key in options:
        if key not in OPTIONS and key not in COMMON:
            whose = "log driver local" if driver == "local" else "json-file log driver"
            raise InvalidArgument(f"unknown log opt '{key}' for {whose}")
    rotation(driver, options)
    for key in ("labels-regex", "env-regex"):
        _pattern(options, key)
    _tag(options.get("tag", ""), dict.fromkeys(_TAG_FIELDS, ""))
    return {"Type": driver, "Config": dict(options)}


def _sized(options: Mapping[str, str], key: str, unit: int) -> int:
    try:
        return size(options[key], unit)
    except ValueError as error:
        raise InvalidArgument(f"error parsing option {key}: {error}") from None


def _pattern(options: Mapping[str, str], key: str) -> re.Pattern[str] | None:
    if not options.get(key):
        return None
    try:
        return re.compile(options[key])
    except re.error as error:
        raise InvalidArgument(f"error parsing option {key}: {options[key]!r}: {error}") from None


def rotation(driver: str, options: Mapping[str, str]) -> tuple[int | None, int, bool]:
    """(largest file in bytes or None, number of files, whether older ones are compressed). Raises InvalidArgument."""
    local = driver == "local"
    limit = LOCAL_SIZE if local else None
    if options.get("max-size") and options["max-size"] != "-1":
        limit = _sized(options, "max-size", 1000)
        if limit <= 0:
            raise InvalidArgument("max-size must be a positive number")
    text = options.get("max-file") or str(LOCAL_FILES if local else 1)
    if not re.fullmatch(r"-?\d+", text):
        raise InvalidArgument(f"error parsing option max-file: {text!r} is no whole number")
    if int(text) < 1:
        raise InvalidArgument("max-file cannot be less than 1")
    wanted = options.get("compress", "true" if local else "false")
    if wanted not in _BOOLEANS:
        raise InvalidArgument(f"error parsing option compress: {wanted!r} is neither true nor false")
    if _BOOLEANS[wanted] and int(text) < 2 and local:
        raise InvalidArgument("compression cannot be enabled when max file count is 1")
    if _BOOLEANS[wanted] and (int(text) < 2 or limit is None):
        raise InvalidArgument("compress cannot be true when max-file is less than 2 or max-size is not set")
    return limit, int(text), _BOOLEANS[wanted]


def _tag(template: str, values: Mapping[str, str]) -> str:
    """A tag's template filled in. Raises InvalidArgument for what is no plain field."""
    if not template:
        return ""

    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise InvalidArgument(f"log opt tag: {found[0]} is none of {', '.join(f'{{{{.{name}}}}}' for name in values)}")
        return values[found[1]]

    text = _PLACE.sub(value, template)
    if "{{" in _PLACE.sub("", template):
        raise InvalidArgument(f"log opt tag: {template!r}: only plain fields such as {{{{.Name}}}} are supported")
    return text


def attributes(container: Container, options: Mapping[str, str], node: str) -> dict[str, str]:
    """What every entry carries: the labels and environment asked for, and the tag."""
    environment = dict(one.split("=", 1) for one in container.config.get("Env") or [] if "=" in one)
    out: dict[str, str] = {}
    for key, source in (("labels", container.labels), ("env", environment)):
        out |= {name: source[name] for name in (options.get(key) or "").split(",") if name in source}
        pattern = _pattern(options, f"{key}-regex")
        if pattern is not None:
            out |= {name: value for name, value in source.items() if pattern.search(name)}
    image = container.image_id.removeprefix("sha256:")
    tag = _tag(
        options.get("tag") or "",
        {
            "ID": container.short,
            "FullID": container.id,
            "Name": container.name,
            "ImageID": f"sha256:{image}"[:12],
            "ImageFullID": f"sha256:{image}",
            "ImageName": str(container.config.get("Image") or ""),
            "DaemonName": node,
        },
    )
    return {**out, "tag": tag} if tag else out


def driver_of(container: Container) -> str:
    return str((container.host_config.get("LogConfig") or {}).get("Type") or "json-file")


def file_name(container: Container) -> str:
    """The log's file in the container's directory, "" where nothing is kept; the names are Docker's."""
    driver = driver_of(container)
    return {"json-file": f"{container.id}-json.log", "local": "local-logs/container.log"}.get(driver, "")


def for_shim(container: Container, path: str, node: str) -> dict[str, Any]:
    """The ``log`` of the shim's create request."""
    driver = driver_of(container)
    if driver == "none":
        return {"path": path, "driver": driver}
    options = (container.host_config.get("LogConfig") or {}).get("Config") or {}
    limit, count, compress = rotation(driver, options)
    out: dict[str, Any] = {"path": path, "driver": driver, "max_size": limit, "max_file": count}
    if compress:
        out["compress"] = True
    if attrs := attributes(container, options, node):
        out["attrs"] = attrs
    if options.get("mode") == "non-blocking":
        out["ring"] = size(options.get("max-buffer-size") or str(RING_BYTES), 1024)
    return out
