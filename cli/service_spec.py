"""Options of ``service create`` and ``update`` → a service spec. Pure: names of networks and files are resolved by the caller.

Create fills an empty spec, update a copy of the present one; both through the tables of cli.service_flags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from cli.run_spec import healthcheck, words_of
from cli.service_flags import COLLECTIONS, CONTAINER, SCALARS, TASK, TRUTHS, Collection
from cli.stack.units import integer
from cli.words import environment, pairs
from covey.errors import InvalidArgument

Flags = Mapping[str, Any]
Spec = dict[str, Any]


def _at(spec: Spec, path: Sequence[str], default: Any) -> Any:
    """What is at ``path``, made when it is not there."""
    for step in path[:-1]:
        inner = spec.get(step)
        if inner is None:
            inner = spec[step] = {}
        spec = inner
    if spec.get(path[-1]) is None:
        spec[path[-1]] = default
    return spec[path[-1]]


def _put(spec: Spec, path: Sequence[str], value: Any) -> None:
    inner = _at(spec, path[:-1], {}) if path[:-1] else spec
    inner[path[-1]] = value


def created(image: str, words: Sequence[str], flags: Flags) -> Spec:
    """The spec of a new service."""
    spec: Spec = {"Labels": {}, "TaskTemplate": {"ContainerSpec": {"Image": image}}, "Mode": _mode(flags)}
    if flags["name"]:
        spec["Name"] = flags["name"]
    if words:
        _put(spec, (*CONTAINER, "Args"), list(words))
    if flags["env_file"]:
        _put(spec, (*CONTAINER, "Env"), environment(None, flags["env_file"]))
    for one in COLLECTIONS:
        name = one.name.split()[0]
        if given := flags[name.replace("-", "_")]:
            _add(spec, one, one.read(given, f"--{name}"))
    _common(spec, flags)
    return spec


def _mode(flags: Flags) -> dict[str, Any]:
    mode, replicas = flags["mode"] or "replicated", flags["replicas"]
    most = flags["max_concurrent"]
    if (mode == "cron") != (flags["schedule"] is not None) and not mode.endswith("-job"):
        raise InvalidArgument("--mode cron and --schedule go together, as --schedule '*/5 * * * *'")
    mode = "replicated-job" if mode == "cron" else mode
    if most is not None and mode != "replicated-job":
        raise InvalidArgument("--max-concurrent can only be used with replicated-job mode")
    if mode in ("global", "global-job"):
        if replicas is not None:
            raise InvalidArgument(f"--replicas goes with replicated mode only: a {mode} service has one task a node")
        return {"Global": {}} if mode == "global" else {"GlobalJob": {}}
    count = 1 if replicas is None else replica_count(replicas, "--replicas")
    if mode == "replicated":
        return {"Replicated": {"Replicas": count}}
    if mode == "replicated-job":
        at_once = count if most is None else replica_count(most, "--max-concurrent")
        return {"ReplicatedJob": {"MaxConcurrent": at_once, "TotalCompletions": count}}
    raise InvalidArgument(f"--mode {mode!r} is none of replicated, global, replicated-job, global-job")


def replica_count(text: str, option: str) -> int:
    """A number of replicas. Raises InvalidArgument."""
    count = integer(text, option)
    if count < 0:
        raise InvalidArgument(f"{option} {text!r} is negative")
    return count


def updated(present: Spec, flags: Flags) -> Spec:
    """``present`` with the options' changes."""
    spec = deepcopy(present)
    container = _at(spec, CONTAINER, {})
    if flags["image"]:
        container["Image"] = flags["image"]
    if flags["args"] is not None:
        container["Args"] = words_of(flags["args"])
    if flags["replicas"] is not None:
        set_replicas(spec, replica_count(flags["replicas"], "--replicas"))
    if flags["max_concurrent"] is not None:
        job = (spec.get("Mode") or {}).get("ReplicatedJob")
        if job is None:
            raise InvalidArgument("--max-concurrent can only be used with replicated-job mode")
        job["MaxConcurrent"] = replica_count(flags["max_concurrent"], "--max-concurrent")
    for one in COLLECTIONS:
        name = one.name.split()[0]
        key = name.replace("-", "_")
        if gone := flags[f"{key}_rm"]:
            _remove(spec, one, gone)
        if given := flags[f"{key}_add"]:
            _add(spec, one, one.read(given, f"--{name}-add"))
    _common(spec, flags)
    if flags["force"]:
        template = spec["TaskTemplate"]
        template["ForceUpdate"] = int(template.get("ForceUpdate") or 0) + 1
    return spec


def set_replicas(spec: Spec, count: int) -> None:
    """Scale. Raises InvalidArgument for a service that has no number of replicas."""
    mode = spec.get("Mode") or {}
    if "ReplicatedJob" in mode:
        mode["ReplicatedJob"] = {**(mode["ReplicatedJob"] or {}), "TotalCompletions": count}
        return
    if mode and "Replicated" not in mode:
        raise InvalidArgument(
            f"service {spec.get('Name')} runs on every node: scale can only be used with replicated or replicated-job mode"
        )
    spec["Mode"] = {"Replicated": {"Replicas": count}}


def _add(spec: Spec, one: Collection, entries: Any) -> None:
    """Entries over those of the same key."""
    if isinstance(entries, Mapping):
        _at(spec, one.path, {}).update(entries)
        return
    held = _at(spec, one.path, [])
    fresh = {one.key(entry) for entry in entries}
    # A port may be published twice, under different numbers.
    kept = held if one.path[-1] == "Ports" else [entry for entry in held if one.key(entry) not in fresh]
    _put(spec, one.path, [*kept, *(entry for entry in entries if entry not in kept)])


def _remove(spec: Spec, one: Collection, names: Sequence[str]) -> None:
    held: Any = spec
    for step in one.path:
        held = held.get(step) or {}
    if not held:
        return
    if isinstance(held, dict):
        _put(spec, one.path, {key: value for key, value in held.items() if key not in names})
        return
    if one.path[-1] == "Ports":
        names = [name if "/" in name else f"{name}/tcp" for name in (text.rpartition(":")[2] for text in names)]
    if one.path[-1] == "Hosts":
        names = [" ".join(reversed(text.split(":", 1))) for text in names]
    _put(spec, one.path, [entry for entry in held if one.key(entry) not in names])


def _common(spec: Spec, flags: Flags) -> None:
    """What create and update have in common."""
    for scalar in SCALARS:
        if (value := flags[scalar.flag.key]) is not None:
            _put(spec, scalar.path, scalar.read(value, f"--{scalar.flag.key.replace('_', '-')}"))
    for flag, path in TRUTHS:
        if flags[flag.key]:
            _put(spec, path, True)
    for name, field in (("cap_add", "CapabilityAdd"), ("cap_drop", "CapabilityDrop")):
        if flags[name]:
            held = _at(spec, (*CONTAINER, field), [])
            _put(spec, (*CONTAINER, field), list(dict.fromkeys([*held, *flags[name]])))
    if flags["log_opt"]:
        _at(spec, (*TASK, "LogDriver", "Options"), {}).update(pairs(flags["log_opt"], "--log-opt"))
    if flags["entrypoint"] is not None:
        _put(spec, (*CONTAINER, "Command"), words_of(flags["entrypoint"]))
    if (check := healthcheck(flags)) is not None:
        held = _at(spec, (*CONTAINER, "Healthcheck"), {})
        _put(spec, (*CONTAINER, "Healthcheck"), check if check.get("Test") == ["NONE"] else {**held, **check})
