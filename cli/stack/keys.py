"""Which keys of a compose file are taken, which are ignored with a warning, and which are refused. Tables; pure.

Nothing is dropped in silence: a key in none of the tables is an error that names its place and, if one is near, the key that
was meant. Keys that begin with ``x-`` are the user's own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from covey.errors import InvalidArgument

Warn = Callable[[str], None]

#: ``version`` says nothing any more, but Debian's docker command wants it.
TOP = {"services", "networks", "volumes", "configs", "secrets", "version"}
TOP_IGNORED = {
    "name": "the stack's name is the command's argument",
}
TOP_REFUSED = {
    "include": "give the files with several -c instead",
    "models": "models are not supported",
}

SERVICE = {
    "cap_add", "cap_drop", "command", "configs", "depends_on", "deploy", "dns", "dns_opt", "dns_search", "entrypoint",
    "env_file", "environment", "extra_hosts", "group_add", "healthcheck", "hostname", "image", "init", "labels", "logging",
    "networks", "oom_score_adj", "ports", "read_only", "secrets", "stdin_open", "stop_grace_period", "stop_signal", "sysctls",
    "tmpfs", "tty", "ulimits", "user", "volumes", "working_dir",
}  # fmt: skip
#: Known to compose, without effect on a cluster: said by name.
SERVICE_IGNORED = {
    "attach": "it concerns compose up only",
    "build": "images are not built on deploy; build and load the image first",
    "container_name": "a service has several containers; they are named by service, slot and task",
    "develop": "it concerns compose watch only",
    "expose": "containers of one network reach each other on every port",
    "external_links": "use a network",
    "links": "services of one network reach each other by name",
    "profiles": "every service of the file is deployed",
    "pull_refresh_after": "images are taken as the nodes have them",
    "pull_policy": "images are taken as the nodes have them",
    "restart": "use deploy.restart_policy",
    "scale": "use deploy.replicas",
}
SERVICE_REFUSED = {
    "extends": "write the service out",
    "network_mode": "services use networks; for the host's ports publish with mode: host",
}
#: The rest of what the compose specification gives a service.
SERVICE_NOT_YET = frozenset({
    "annotations", "blkio_config", "cgroup", "cgroup_parent", "cpu_count", "cpu_percent", "cpu_period", "cpu_quota",
    "cpu_rt_period", "cpu_rt_runtime", "cpu_shares", "cpus", "cpuset", "credential_spec", "device_cgroup_rules", "devices",
    "domainname", "gpus", "ipc", "isolation", "label_file", "mac_address", "mem_limit", "mem_reservation", "mem_swappiness",
    "memswap_limit", "models", "oom_kill_disable", "pid", "pids_limit", "platform", "post_start", "pre_stop", "privileged",
    "provider", "runtime", "security_opt", "shm_size", "storage_opt", "use_api_socket", "userns_mode", "uts", "volumes_from",
})  # fmt: skip
_NOT_YET = "not supported for services of a stack in this release; remove it"

DEPLOY = {
    "endpoint_mode", "labels", "max_concurrent", "mode", "placement", "replicas", "resources", "restart_policy",
    "rollback_config", "update_config",
}  # fmt: skip
NETWORK = {"attachable", "driver", "driver_opts", "enable_ipv6", "external", "internal", "ipam", "labels", "name"}
VOLUME = {"driver", "driver_opts", "external", "labels", "name"}
FILE_OBJECT = {"content", "environment", "external", "file", "labels", "name"}

#: Place (as in a path, services and such by their kind) → keys taken there.
INNER: Mapping[str, set[str]] = {
    "deploy": DEPLOY,
    "deploy.placement": {"constraints", "max_replicas_per_node", "preferences", "strategy"},
    "deploy.resources": {"limits", "reservations"},
    "deploy.resources.limits": {"cpus", "memory", "pids"},
    "deploy.resources.reservations": {"cpus", "generic_resources", "memory"},
    "deploy.restart_policy": {"condition", "delay", "max_attempts", "window"},
    "deploy.update_config": {"delay", "failure_action", "max_failure_ratio", "monitor", "order", "parallelism"},
    "deploy.rollback_config": {"delay", "failure_action", "max_failure_ratio", "monitor", "order", "parallelism"},
    "healthcheck": {"disable", "interval", "retries", "start_interval", "start_period", "test", "timeout"},
    "logging": {"driver", "options"},
}


def check(document: Mapping[str, Any], warn: Warn) -> None:
    """Refuse unknown and unsupported keys of a merged document; warn of ignored ones."""
    _check_level(document, "", TOP, TOP_IGNORED, TOP_REFUSED, warn)
    for kind, known in (("networks", NETWORK), ("volumes", VOLUME), ("configs", FILE_OBJECT), ("secrets", FILE_OBJECT)):
        for name, body in mapping(document.get(kind), kind).items():
            _check_level(mapping(body, f"{kind}.{name}"), f"{kind}.{name}", known, {}, {}, warn)
    for name, body in mapping(document.get("services"), "services").items():
        path = f"services.{name}"
        service = mapping(body, path)
        _check_level(service, path, SERVICE, SERVICE_IGNORED, SERVICE_REFUSED, warn, rest=SERVICE_NOT_YET)
        for place, known in INNER.items():
            inner = _at(service, place, path)
            _check_level(inner, f"{path}.{place}", known, {}, {}, warn)


def mapping(value: Any, path: str) -> Mapping[str, Any]:
    """``value`` if it is a mapping, empty for nothing. Raises InvalidArgument."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{path} must be a mapping, not {_kind(value)}")
    return value


def sequence(value: Any, path: str) -> list[Any]:
    """``value`` if it is a list, empty for nothing. Raises InvalidArgument."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidArgument(f"{path} must be a list, not {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return {
        "str": "text",
        "int": "a number",
        "float": "a number",
        "bool": "a truth",
        "list": "a list",
        "dict": "a mapping",
    }.get(type(value).__name__, type(value).__name__)


def _at(service: Mapping[str, Any], place: str, path: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = service
    for step in place.split("."):
        path = f"{path}.{step}"
        found = mapping(found.get(step), path)
    return found


def _check_level(
    level: Mapping[str, Any],
    path: str,
    known: set[str],
    ignored: Mapping[str, str],
    refused: Mapping[str, str],
    warn: Warn,
    rest: frozenset[str] = frozenset(),
) -> None:
    for key in level:
        place = f"{path}.{key}" if path else key
        if key in known or key.startswith("x-"):
            continue
        if key in ignored:
            warn(f"ignoring {place}: {ignored[key]}")
        elif key in refused:
            raise InvalidArgument(f"unsupported key {place}: {refused[key]}")
        elif key in rest:
            raise InvalidArgument(f"unsupported key {place}: {_NOT_YET}")
        else:
            near = difflib.get_close_matches(key, [*known, *ignored], 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known here are {', '.join(sorted(known))}"
            raise InvalidArgument(f"unknown key {place}{hint}")
