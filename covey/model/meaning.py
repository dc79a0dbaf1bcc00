"""The normal form of a service's spec: two specs with one normal form ask for the same. Pure.

It decides which fields say nothing: null, "", empty lists and objects, false, a default spelled out, and 0 where 0 is the
default. A 0 that means something (no replicas, no grace, no delay, all tasks at a time) stays, and what users name themselves
(labels, options) stays as it is. It must not know who compares, nor what follows from a difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from covey.model.resources import NANO

#: Objects whose keys are the user's own words.
NAMED_BY_USERS = frozenset({"Labels", "Options", "Sysctls", "DriverOpts"})

#: What a field says that is not there. The delay of restarts is the cluster's, so it has no place here.
_DEFAULTS: Mapping[str, Any] = {
    "Condition": "any",
    "Isolation": "default",
    "Mode": "vip",
    "Protocol": "tcp",
    "PublishMode": "ingress",
    "Runtime": "container",
    "StopGracePeriod": 10 * NANO,
}
_ZERO = frozenset(
    {
        *("NanoCPUs", "MemoryBytes", "Pids", "MaxAttempts", "Window", "ForceUpdate", "MaxReplicas", "PublishedPort"),
        *("OomScoreAdj", "Interval", "Timeout", "Retries", "StartPeriod", "StartInterval", "SizeBytes", "Priority"),
    }
)
#: False is not the same as nothing here: without it the daemon's configuration decides.
_MEANT = frozenset({"Init"})

_POLICY: Mapping[str, Any] = {
    "Parallelism": 1,
    "Delay": 0,
    "FailureAction": "pause",
    "Monitor": 5 * NANO,
    "MaxFailureRatio": 0,
    "Order": "stop-first",
}


def meaning(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The normal form of a whole service spec as the Engine API has it."""
    template = dict(spec.get("TaskTemplate") or {})
    if not template.get("Networks") and spec.get("Networks"):
        template["Networks"] = spec["Networks"]
    whole = {name: value for name, value in spec.items() if name != "Networks"}
    whole |= {"TaskTemplate": template, "Mode": _mode(spec.get("Mode"))}
    for name in ("UpdateConfig", "RollbackConfig"):
        whole[name] = _policy(spec.get(name))
    said: dict[str, Any] = _said(whole, "")
    return said


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two service specs ask for the same."""
    return one == other or meaning(one) == meaning(other)


def _mode(raw: Mapping[str, Any] | None) -> dict[str, Any]:
    given = {name: dict(value or {}) for name, value in (raw or {}).items()} or {"Replicated": {}}
    if "Replicated" in given and given["Replicated"].get("Replicas") is None:
        given["Replicated"]["Replicas"] = 1
    return {name: {key: entry for key, entry in value.items() if entry is not None} for name, value in given.items()}


def _policy(raw: Mapping[str, Any] | None) -> dict[str, Any]:
    """As covey.model.spec reads it: in a policy that is there, no parallelism is all at once."""
    if raw is None:
        return {}
    filled = {**raw, "Parallelism": raw.get("Parallelism") or 0, "Monitor": raw.get("Monitor") or _POLICY["Monitor"]}
    return {name: value for name, value in filled.items() if value is not None and value not in ("", _POLICY.get(name))}


def _said(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        if name in NAMED_BY_USERS or name == "Mode":
            return dict(value)
        inner = {key: _said(entry, key) for key, entry in value.items()}
        return {key: entry for key, entry in inner.items() if not _empty(key, entry)}
    if isinstance(value, (list, tuple)):
        return [_said(entry, "") for entry in value]
    return value


def _empty(name: str, value: Any) -> bool:
    if value is None or value is False:
        return name not in _MEANT or value is None
    if isinstance(value, (str, list, dict)) and not value:
        return True
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not value and name in _ZERO:
        return True
    return type(value) is type(_DEFAULTS.get(name)) and value == _DEFAULTS[name]
