"""A compose service → the Engine API's service spec, as `docker stack deploy` makes it. Pure.

It knows compose's short and long forms and Docker's names for what they mean. What exists in the cluster (ids of secrets and
configs) is given. Unknown keys were refused before (cli.stack.keys).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from cli.stack.keys import mapping, sequence
from cli.stack.modes import awaited, dependency_label, mode_of
from cli.stack.ports import ports
from cli.stack.units import integer, nano_cpus, nanoseconds, size, truth
from cli.stack.volumes import mounts
from covey.errors import InvalidArgument

NAMESPACE = "com.docker.stack.namespace"
IMAGE = "com.docker.stack.image"
STRATEGY_LABEL = "covey.placement.strategy"
STRATEGIES = ("binpack", "spread", "pack", "pack-small")

Ids = Mapping[tuple[str, str], tuple[str, str]]


def scoped(stack: str, name: str) -> str:
    """The cluster-wide name of something of a stack."""
    return f"{stack}_{name}"


def labels(value: Any, path: str) -> dict[str, str]:
    """A mapping, or a list of ``key=value``."""
    if isinstance(value, list):
        pairs = (str(entry).partition("=") for entry in value)
        return {key: text for key, _, text in pairs}
    return {str(key): "" if text is None else _text(text) for key, text in mapping(value, path).items()}


def environment(value: Any, path: str, variables: Mapping[str, str]) -> dict[str, str]:
    """A mapping or a list; a key without a value takes it from the caller's environment, or is left out."""
    entries: dict[str, str | None] = {}
    if isinstance(value, list):
        for entry in value:
            key, equals, text = str(entry).partition("=")
            entries[key] = text if equals else None
    else:
        entries = {str(key): None if text is None else _text(text) for key, text in mapping(value, path).items()}
    filled = {key: variables.get(key) if text is None else text for key, text in entries.items()}
    return {key: text for key, text in filled.items() if text is not None}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def command(value: Any, path: str) -> list[str] | None:
    """A list as it is, a text cut as a shell would."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            return shlex.split(value)
        except ValueError as error:
            raise InvalidArgument(f"{path}: {error} in {value!r}") from None
    return [_text(word) for word in sequence(value, path)]


def healthcheck(value: Any, path: str) -> dict[str, Any] | None:
    """Docker's Healthcheck; ``disable`` is the test NONE."""
    check = mapping(value, path)
    if not check:
        return None
    if truth(check.get("disable", False), f"{path}.disable"):
        return {"Test": ["NONE"]}
    test = check.get("test")
    out: dict[str, Any] = {}
    if isinstance(test, str):
        out["Test"] = ["CMD-SHELL", test]
    elif test is not None:
        words = [_text(word) for word in sequence(test, f"{path}.test")]
        if not words or words[0] not in ("NONE", "CMD", "CMD-SHELL"):
            raise InvalidArgument(f"{path}.test: the first word of a list is NONE, CMD or CMD-SHELL")
        out["Test"] = words
    for key, theirs in _DURATIONS.items():
        if check.get(key) is not None:
            out[theirs] = nanoseconds(check[key], f"{path}.{key}")
    if check.get("retries") is not None:
        out["Retries"] = integer(check["retries"], f"{path}.retries")
    return out


_DURATIONS = {
    "interval": "Interval",
    "timeout": "Timeout",
    "start_period": "StartPeriod",
    "start_interval": "StartInterval",
}

#: Service key → ContainerSpec key where a list or text is taken as it is.
_LISTS = {"cap_add": "CapabilityAdd", "cap_drop": "CapabilityDrop", "group_add": "Groups"}
_TEXTS = {"hostname": "Hostname", "user": "User", "working_dir": "Dir", "stop_signal": "StopSignal"}
_TRUTHS = {"tty": "TTY", "stdin_open": "OpenStdin", "read_only": "ReadOnly", "init": "Init"}


def _container(
    stack: str, service: Mapping[str, Any], path: str, env: Mapping[str, str], volumes: Mapping[str, Any], ids: Ids
) -> dict[str, Any]:
    image = service.get("image")
    if not image:
        raise InvalidArgument(f"{path}.image is missing: a service of a stack runs an image that the nodes have")
    spec: dict[str, Any] = {
        "Image": str(image),
        "Labels": {**labels(service.get("labels"), f"{path}.labels"), NAMESPACE: stack},
    }
    if (words := command(service.get("entrypoint"), f"{path}.entrypoint")) is not None:
        spec["Command"] = words
    if (words := command(service.get("command"), f"{path}.command")) is not None:
        spec["Args"] = words
    if env:
        spec["Env"] = sorted(f"{key}={value}" for key, value in env.items())
    for key, theirs in _LISTS.items():
        if service.get(key):
            spec[theirs] = [_text(entry) for entry in sequence(service[key], f"{path}.{key}")]
    spec.update({theirs: _text(service[key]) for key, theirs in _TEXTS.items() if service.get(key) is not None})
    spec.update(
        {theirs: truth(service[key], f"{path}.{key}") for key, theirs in _TRUTHS.items() if service.get(key) is not None}
    )
    if service.get("oom_score_adj") is not None:
        spec["OomScoreAdj"] = integer(service["oom_score_adj"], f"{path}.oom_score_adj")
    if service.get("stop_grace_period") is not None:
        spec["StopGracePeriod"] = nanoseconds(service["stop_grace_period"], f"{path}.stop_grace_period")
    if (check := healthcheck(service.get("healthcheck"), f"{path}.healthcheck")) is not None:
        spec["Healthcheck"] = check
    if service.get("sysctls"):
        spec["Sysctls"] = labels(service["sysctls"], f"{path}.sysctls")
    if service.get("extra_hosts"):
        spec["Hosts"] = _hosts(service["extra_hosts"], f"{path}.extra_hosts")
    if (dns := _dns(service, path)) is not None:
        spec["DNSConfig"] = dns
    if service.get("ulimits"):
        spec["Ulimits"] = _ulimits(service["ulimits"], f"{path}.ulimits")
    spec["Mounts"] = mounts(stack, service, path, volumes)
    for kind in ("secret", "config"):
        if references := _references(service.get(f"{kind}s"), kind, f"{path}.{kind}s", ids):
            spec[f"{kind.title()}s"] = references
    return spec


def _one_or_many(value: Any, path: str) -> list[str]:
    return [value] if isinstance(value, str) else [str(entry) for entry in sequence(value, path)]


def _dns(service: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    names = {"dns": "Nameservers", "dns_search": "Search", "dns_opt": "Options"}
    found = {theirs: _one_or_many(service[key], f"{path}.{key}") for key, theirs in names.items() if service.get(key)}
    return found or None


def _hosts(value: Any, path: str) -> list[str]:
    """``host:ip`` or ``host=ip`` → ``ip host``, the form of ContainerSpec.Hosts."""
    if isinstance(value, Mapping):
        return [f"{address} {host}" for host, address in value.items()]
    out = []
    for entry in sequence(value, path):
        host, separator, address = str(entry).partition("=" if "=" in str(entry) else ":")
        if not separator or not address:
            raise InvalidArgument(f"{path}: {entry!r} is not of the form host:address")
        out.append(f"{address.strip('[]')} {host}")
    return out


def _ulimits(value: Any, path: str) -> list[dict[str, Any]]:
    out = []
    for name, limit in mapping(value, path).items():
        if isinstance(limit, Mapping):
            soft, hard = limit.get("soft"), limit.get("hard")
            if soft is None or hard is None:
                raise InvalidArgument(f"{path}.{name}: give soft and hard")
        else:
            soft = hard = limit
        place = f"{path}.{name}"
        out.append({"Name": name, "Soft": integer(soft, place), "Hard": integer(hard, place)})
    return out


def _references(value: Any, kind: str, path: str, ids: Ids) -> list[dict[str, Any]]:
    out = []
    for index, entry in enumerate(sequence(value, path)):
        long = {"source": entry} if isinstance(entry, str) else dict(mapping(entry, f"{path}.{index}"))
        source = str(long.get("source") or "")
        if (kind, source) not in ids:
            raise InvalidArgument(f"{path}.{index}: the {kind} {source!r} is not declared under the top-level {kind}s")
        object_id, name = ids[kind, source]
        default = source if kind == "secret" else f"/{source}"
        mode = long.get("mode")
        out.append(
            {
                f"{kind.title()}ID": object_id,
                f"{kind.title()}Name": name,
                "File": {
                    "Name": str(long.get("target") or default),
                    "UID": str(long.get("uid") or "0"),
                    "GID": str(long.get("gid") or "0"),
                    "Mode": 0o444 if mode is None else _mode(mode, f"{path}.{index}.mode"),
                },
            }
        )
    return out


def _mode(value: Any, path: str) -> int:
    if isinstance(value, int):
        return value
    try:
        return int(str(value).removeprefix("0o"), 8)
    except ValueError:
        raise InvalidArgument(f"{path}: {value!r} is not a file mode such as 0440") from None


def _resources(deploy: Mapping[str, Any], path: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for kind, theirs in (("limits", "Limits"), ("reservations", "Reservations")):
        given = mapping(mapping(deploy.get("resources"), path).get(kind), f"{path}.{kind}")
        amounts: dict[str, Any] = {}
        if given.get("cpus") is not None:
            amounts["NanoCPUs"] = nano_cpus(given["cpus"], f"{path}.{kind}.cpus")
        if given.get("memory") is not None:
            amounts["MemoryBytes"] = size(given["memory"], f"{path}.{kind}.memory")
        if given.get("pids") is not None:
            amounts["Pids"] = integer(given["pids"], f"{path}.{kind}.pids")
        if given.get("generic_resources"):
            amounts["GenericResources"] = [
                {"DiscreteResourceSpec": {"Kind": str(one["kind"]), "Value": integer(one["value"], f"{path}.{kind}")}}
                for entry in sequence(given["generic_resources"], f"{path}.{kind}.generic_resources")
                if (one := mapping(mapping(entry, path).get("discrete_resource_spec"), path))
            ]
        if amounts:
            out[theirs] = amounts
    return out


def _restart(deploy: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    policy = mapping(deploy.get("restart_policy"), path)
    if not policy:
        return None
    out: dict[str, Any] = {}
    if policy.get("condition") is not None:
        if policy["condition"] not in ("none", "on-failure", "any"):
            raise InvalidArgument(f"{path}.condition: {policy['condition']!r} is none of none, on-failure, any")
        out["Condition"] = policy["condition"]
    for key, theirs in (("delay", "Delay"), ("window", "Window")):
        if policy.get(key) is not None:
            out[theirs] = nanoseconds(policy[key], f"{path}.{key}")
    if policy.get("max_attempts") is not None:
        out["MaxAttempts"] = integer(policy["max_attempts"], f"{path}.max_attempts")
    return out


def _update(value: Any, path: str) -> dict[str, Any] | None:
    policy = mapping(value, path)
    if not policy:
        return None
    out: dict[str, Any] = {"Parallelism": integer(policy.get("parallelism", 1), f"{path}.parallelism")}
    for key, theirs in (("delay", "Delay"), ("monitor", "Monitor")):
        if policy.get(key) is not None:
            out[theirs] = nanoseconds(policy[key], f"{path}.{key}")
    for key, theirs in (("failure_action", "FailureAction"), ("order", "Order")):
        if policy.get(key) is not None:
            out[theirs] = str(policy[key])
    if policy.get("max_failure_ratio") is not None:
        out["MaxFailureRatio"] = float(policy["max_failure_ratio"])
    return out


def _constraints(value: Any, path: str) -> list[str]:
    """As written, each checked: a daemon would refuse it only after the stack's networks were made."""
    from covey.model.filters import parse_constraint

    texts = [str(entry) for entry in sequence(value, path)]
    for text in texts:
        try:
            parse_constraint(text)
        except ValueError as error:
            raise InvalidArgument(f"{path}: {error}") from None
    return texts


def _placement(deploy: Mapping[str, Any], path: str) -> dict[str, Any]:
    given = mapping(deploy.get("placement"), path)
    out: dict[str, Any] = {}
    if given.get("constraints"):
        out["Constraints"] = _constraints(given["constraints"], f"{path}.constraints")
    if given.get("preferences"):
        out["Preferences"] = [
            {"Spread": {"SpreadDescriptor": str(mapping(entry, path).get("spread"))}}
            for entry in sequence(given["preferences"], f"{path}.preferences")
        ]
    if given.get("max_replicas_per_node") is not None:
        out["MaxReplicas"] = integer(given["max_replicas_per_node"], f"{path}.max_replicas_per_node")
    return out


def _strategy(deploy: Mapping[str, Any], path: str) -> dict[str, str]:
    """Ours, as a label: Docker's API has no field for it."""
    strategy = mapping(deploy.get("placement"), path).get("strategy")
    if strategy is None:
        return {}
    if strategy not in STRATEGIES:
        raise InvalidArgument(f"{path}.strategy: {strategy!r} is none of {', '.join(STRATEGIES)}")
    return {STRATEGY_LABEL: strategy}


def _networks(stack: str, name: str, service: Mapping[str, Any], path: str, names: Mapping[str, str]) -> list[dict[str, Any]]:
    given = service.get("networks")
    wanted: Mapping[str, Any]
    if given is None:
        wanted = {"default": None}
    elif isinstance(given, list):
        wanted = {str(entry): None for entry in given}
    else:
        wanted = mapping(given, f"{path}.networks")
    out = []
    for network, settings in wanted.items():
        if network not in names:
            raise InvalidArgument(f"{path}.networks: {network!r} is not declared under the top-level networks")
        place = f"{path}.networks.{network}"
        extra = mapping(settings, place)
        if unsupported := sorted(set(extra) - {"aliases"}):
            raise InvalidArgument(f"unsupported key {place}.{unsupported[0]}: in a cluster only aliases can be set")
        aliases = [name, *(str(alias) for alias in sequence(extra.get("aliases"), f"{place}.aliases"))]
        out.append({"Target": names[network], "Aliases": aliases})
    return sorted(out, key=lambda entry: str(entry["Target"]))


def service_spec(
    stack: str,
    name: str,
    service: Mapping[str, Any],
    env: Mapping[str, str],
    *,
    networks: Mapping[str, str],
    volumes: Mapping[str, Any],
    ids: Ids,
    services: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The spec of one service. ``networks``: compose name → cluster name; ``ids``: (kind, name) → (id, cluster name).

    ``services``: all of the stack, by compose name.
    """
    services = services or {}
    path = f"services.{name}"
    deploy = mapping(service.get("deploy"), f"{path}.deploy")
    template: dict[str, Any] = {
        "ContainerSpec": _container(stack, service, path, env, volumes, ids),
        "Placement": _placement(deploy, f"{path}.deploy.placement"),
        "Networks": _networks(stack, name, service, path, networks),
        "ForceUpdate": 0,
    }
    if resources := _resources(deploy, f"{path}.deploy.resources"):
        template["Resources"] = resources
    if (restart := _restart(deploy, f"{path}.deploy.restart_policy")) is not None:
        template["RestartPolicy"] = restart
    if logging := mapping(service.get("logging"), f"{path}.logging"):
        options = labels(logging.get("options"), f"{path}.logging.options")
        template["LogDriver"] = {"Name": str(logging.get("driver") or "json-file"), "Options": options}
    spec: dict[str, Any] = {
        "Name": scoped(stack, name),
        "Labels": {
            **labels(deploy.get("labels"), f"{path}.deploy.labels"),
            **_strategy(deploy, f"{path}.deploy.placement"),
            **dependency_label({other: scoped(stack, other) for other in services}, service, path),
            NAMESPACE: stack,
            IMAGE: str(service.get("image")),
        },
        "TaskTemplate": template,
        "Mode": mode_of(deploy, f"{path}.deploy", awaited=name in awaited(services)),
        "EndpointSpec": {"Ports": ports(service.get("ports"), f"{path}.ports")},
    }
    if deploy.get("endpoint_mode"):
        spec["EndpointSpec"]["Mode"] = str(deploy["endpoint_mode"])
    for key, theirs in (("update_config", "UpdateConfig"), ("rollback_config", "RollbackConfig")):
        if (policy := _update(deploy.get(key), f"{path}.deploy.{key}")) is not None:
            spec[theirs] = policy
    return spec
