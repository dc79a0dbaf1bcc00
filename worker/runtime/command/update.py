"""The verb update: limits of a container in use, from a file of OCI linux.resources or from single options."""

from __future__ import annotations

from typing import Any

from worker.runtime.command import files
from worker.runtime.command.arguments import Arguments, UsageError
from worker.runtime.command.report import CommandError, Log
from worker.runtime.command.store import Store

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

_OPTIONS: tuple[tuple[str, str, str, str], ...] = (
    ("blkio_weight", "blockIO", "weight", "number"),
    ("cpu_period", "cpu", "period", "number"),
    ("cpu_quota", "cpu", "quota", "number"),
    ("cpu_burst", "cpu", "burst", "number"),
    ("cpu_share", "cpu", "shares", "number"),
    ("cpu_rt_period", "cpu", "realtimePeriod", "number"),
    ("cpu_rt_runtime", "cpu", "realtimeRuntime", "number"),
    ("cpu_idle", "cpu", "idle", "number"),
    ("cpuset_cpus", "cpu", "cpus", "text"),
    ("cpuset_mems", "cpu", "mems", "text"),
    ("memory", "memory", "limit", "bytes"),
    ("memory_reservation", "memory", "reservation", "bytes"),
    ("memory_swap", "memory", "swap", "bytes"),
    ("pids_limit", "pids", "limit", "number"),
)
"""(option, object of linux.resources, field, kind)"""


def update(arguments: Arguments, log: Log) -> int:
    resources = _resources(arguments)
    entry = Store(arguments.globals["root"]).lock(arguments.operands["id"])
    status = entry.status()
    if status not in ("created", "running", "paused"):
        raise CommandError(f"cannot update container {entry.ident!r}, which is {status}")
    entry.group().apply(resources, update=True)
    config = entry.config()
    config["linux"]["resources"] = merged(config["linux"].get("resources") or {}, resources)
    entry.save_config(config)
    return 0


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """``old`` with every field that ``new`` names."""
    result = dict(old)
    for key, value in new.items():
        result[key] = {**(old.get(key) or {}), **value} if isinstance(value, dict) else value
    return result


def _resources(arguments: Arguments) -> dict[str, Any]:
    source = arguments.options["resources"]
    if not source:
        return _from_options(arguments)
    body = files.json_object("--resources", source, "an object as linux.resources is", stdin=True)
    # Go's clients send every field, and mean nothing by a null.
    return {key: value for key, value in body.items() if value is not None}


def _from_options(arguments: Arguments) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for option, group, field, kind in _OPTIONS:
        word = arguments.options[option]
        if option in arguments.given:
            result.setdefault(group, {})[field] = word if kind == "text" else _number(option, word, kind)
    if not result:
        raise UsageError("update needs --resources FILE or an option that names a limit: covey-runtime update --help")
    return result


def _number(option: str, word: str, kind: str) -> int:
    text = word.strip().lower()
    unit = ""
    if kind == "bytes":
        text = text.removesuffix("ib").removesuffix("b") if not text.isdigit() else text
        if text[-1:] in ("k", "m", "g", "t"):
            text, unit = text[:-1], text[-1]
    try:
        return int(text) * _UNITS[unit]
    except ValueError:
        form = "a number of bytes, such as 100m" if kind == "bytes" else "a number"
        raise UsageError(f"--{option.replace('_', '-')} {word!r} is not {form}") from None
