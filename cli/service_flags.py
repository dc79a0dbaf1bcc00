"""The options of ``cluster service create`` and ``update``: tables of what exists and which field of the spec it fills. Data.

An option that may be given several times is a ``Collection``: ``--env`` on create, ``--env-add`` and ``--env-rm`` on update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from cli.flags import Flag
from cli.mounts import parse_mounts
from cli.publish import service_ports
from cli.run_flags import HEALTH
from cli.run_spec import ulimits
from cli.stack.units import integer, nano_cpus, nanoseconds, size
from cli.words import environment, fields, host_entries, pairs
from covey.errors import InvalidArgument

TASK = ("TaskTemplate",)
CONTAINER = (*TASK, "ContainerSpec")
PLACEMENT = (*TASK, "Placement")
RESERVED = (*TASK, "Resources", "Reservations")
STRATEGY_LABEL = "covey.placement.strategy"
PRIORITY_LABEL = "covey.placement.priority"
GROUP_LABEL = "covey.placement.group"
HIGHEST_PRIORITY = 1000
DEPENDS_ON_LABEL = "covey.depends_on"

Path = tuple[str, ...]


class Scalar(NamedTuple):
    """An option with one value: its flag, the field it fills, and how its text is read (value, option → value)."""

    flag: Flag
    path: Path
    read: Callable[[Any, str], Any]


def _as_is(value: Any, option: str) -> Any:
    return value


def _one_of(*allowed: str) -> Callable[[Any, str], Any]:
    def read(value: Any, option: str) -> Any:
        if value not in allowed:
            raise InvalidArgument(f"{option} {value!r} is none of {', '.join(allowed)}")
        return value

    return read


def _natural(value: Any, option: str) -> int:
    number = integer(value, option)
    if number < 0:
        raise InvalidArgument(f"{option} {value!r} is negative")
    return number


def _ratio(value: Any, option: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise InvalidArgument(f"{option} {value!r} is not a number from 0 to 1") from None
    if not 0 <= number <= 1:
        raise InvalidArgument(f"{option} {value!r} is not a number from 0 to 1")
    return number


def _dependencies(value: Any, option: str) -> str:
    from covey.model.dependencies import parse_dependencies

    try:
        parse_dependencies({"Labels": {DEPENDS_ON_LABEL: value}})
    except ValueError as error:
        raise InvalidArgument(f"{option}: {error}") from None
    return str(value)


def _cron(key: str) -> Path:
    return ("Labels", f"covey.cron.{key}")


def _count(value: Any, option: str) -> str:
    """A label is a text."""
    return str(_natural(value, option))


def _priority(value: Any, option: str) -> str:
    number = _natural(value, option)
    if number > HIGHEST_PRIORITY:
        raise InvalidArgument(f"{option} {value!r} is not a number from 0 to {HIGHEST_PRIORITY}")
    return str(number)


def _policy(prefix: str, key: str) -> tuple[Scalar, ...]:
    """The options of UpdateConfig or RollbackConfig."""
    actions = ("pause", "continue", "rollback") if prefix == "update" else ("pause", "continue")
    rows: tuple[tuple[str, str, str, Callable[[Any, str], Any]], ...] = (
        ("parallelism", "Parallelism", "Tasks at a time; 0 is all", _natural),
        ("delay", "Delay", "Between them, as 10s", nanoseconds),
        ("monitor", "Monitor", "How long one is watched for failure", nanoseconds),
        ("order", "Order", "stop-first or start-first", _one_of("stop-first", "start-first")),
        ("failure-action", "FailureAction", " or ".join(actions), _one_of(*actions)),
        ("max-failure-ratio", "MaxFailureRatio", "Failures that are borne, 0 to 1", _ratio),
    )
    return tuple(Scalar(Flag(f"--{prefix}-{name}", str, text), (key, field), read) for name, field, text, read in rows)


SCALARS: tuple[Scalar, ...] = (
    Scalar(Flag("--hostname", str, "The containers' host name"), (*CONTAINER, "Hostname"), _as_is),
    Scalar(Flag("--user -u", str, "uid[:gid] or names"), (*CONTAINER, "User"), _as_is),
    Scalar(Flag("--workdir -w", str, "Where it starts"), (*CONTAINER, "Dir"), _as_is),
    Scalar(Flag("--stop-signal", str, "What ends a task"), (*CONTAINER, "StopSignal"), _as_is),
    Scalar(Flag("--stop-grace-period", str, "From it to SIGKILL, as 10s"), (*CONTAINER, "StopGracePeriod"), nanoseconds),
    Scalar(Flag("--oom-score-adj", int, "-1000 to 1000"), (*CONTAINER, "OomScoreAdj"), integer),
    Scalar(Flag("--limit-cpu", str, "As 0.5"), (*TASK, "Resources", "Limits", "NanoCPUs"), nano_cpus),
    Scalar(Flag("--limit-memory", str, "As 64M"), (*TASK, "Resources", "Limits", "MemoryBytes"), size),
    Scalar(Flag("--limit-pids", int, "How many processes"), (*TASK, "Resources", "Limits", "Pids"), integer),
    Scalar(Flag("--reserve-cpu", str, "As 0.5"), (*TASK, "Resources", "Reservations", "NanoCPUs"), nano_cpus),
    Scalar(Flag("--reserve-memory", str, "As 64M"), (*TASK, "Resources", "Reservations", "MemoryBytes"), size),
    Scalar(
        Flag("--restart-condition", str, "none, on-failure or any"),
        (*TASK, "RestartPolicy", "Condition"),
        _one_of("none", "on-failure", "any"),
    ),
    Scalar(Flag("--restart-delay", str, "As 5s"), (*TASK, "RestartPolicy", "Delay"), nanoseconds),
    Scalar(Flag("--restart-max-attempts", str, "Then give up"), (*TASK, "RestartPolicy", "MaxAttempts"), _natural),
    Scalar(Flag("--restart-window", str, "In which they are counted"), (*TASK, "RestartPolicy", "Window"), nanoseconds),
    Scalar(Flag("--replicas-max-per-node", str, "0 is without limit"), (*PLACEMENT, "MaxReplicas"), _natural),
    Scalar(
        Flag("--strategy", str, "binpack, spread, pack or pack-small"),
        ("Labels", STRATEGY_LABEL),
        _one_of("binpack", "spread", "pack", "pack-small"),
    ),
    Scalar(Flag("--priority", int, "0 to 1000: who makes room for whom"), ("Labels", PRIORITY_LABEL), _priority),
    Scalar(Flag("--placement-group", str, "Placed with the others of it or not at all"), ("Labels", GROUP_LABEL), _as_is),
    Scalar(
        Flag("--depends-on", str, "Services its tasks wait for, as db=healthy,migrate=completed"),
        ("Labels", DEPENDS_ON_LABEL),
        _dependencies,
    ),
    Scalar(Flag("--schedule", str, "When a cron job runs, as '*/5 * * * *' or @daily"), _cron("schedule"), _as_is),
    Scalar(Flag("--timezone", str, "Of the schedule, as Europe/Berlin; UTC unless given"), _cron("timezone"), _as_is),
    Scalar(
        Flag("--overlap", str, "A run that is due while another goes on: allow, forbid or replace"),
        _cron("overlap"),
        _one_of("allow", "forbid", "replace"),
    ),
    Scalar(Flag("--history", str, "How many runs of a cron job are kept"), _cron("history"), _count),
    Scalar(Flag("--failed-history", str, "How many failed ones"), _cron("failed-history"), _count),
    Scalar(Flag("--catch-up", str, "How many missed runs are made up for"), _cron("catch-up"), _count),
    Scalar(Flag("--endpoint-mode", str, "vip or dnsrr"), ("EndpointSpec", "Mode"), _one_of("vip", "dnsrr")),
    Scalar(Flag("--log-driver", str, "json-file, local or none"), (*TASK, "LogDriver", "Name"), _as_is),
    *_policy("update", "UpdateConfig"),
    *_policy("rollback", "RollbackConfig"),
)

#: Flags that are there or not; update can take them back with --flag=false, hence not only true.
TRUTHS: tuple[tuple[Flag, Path], ...] = (
    (Flag("--tty -t", bool, "With a terminal"), (*CONTAINER, "TTY")),
    (Flag("--read-only", bool, "Their root is read-only"), (*CONTAINER, "ReadOnly")),
    (Flag("--init", bool, "With an init that reaps processes"), (*CONTAINER, "Init")),
)


class Collection(NamedTuple):
    """Values of which there may be many. ``read``: texts → entries, list or mapping; ``key``: entry → what --…-rm names."""

    name: str
    path: Path
    read: Callable[[list[str], str], Any]
    key: Callable[[Any], str]
    help: str


def _texts(given: list[str], option: str) -> list[str]:
    return list(given)


def _self(entry: Any) -> str:
    return str(entry)


def _before_equals(entry: Any) -> str:
    return str(entry).partition("=")[0]


def _preferences(given: list[str], option: str) -> list[dict[str, Any]]:
    out = []
    for text in given:
        kind, equals, descriptor = text.partition("=")
        if kind != "spread" or not equals or not descriptor:
            raise InvalidArgument(f"{option} {text!r} is not of the form spread=node.labels.NAME")
        out.append({"Spread": {"SpreadDescriptor": descriptor}})
    return out


def _preference_key(entry: Any) -> str:
    return f"spread={(entry.get('Spread') or {}).get('SpreadDescriptor', '')}"


def _networks(given: list[str], option: str) -> list[dict[str, Any]]:
    """Names here; the command puts ids in their place."""
    out = []
    for text in given:
        entry: dict[str, Any] = {"Target": text}
        if "=" in text:
            words = fields(text, option)
            if unknown := [key for key, _ in words if key not in ("name", "alias", "driver-opt")]:
                raise InvalidArgument(f"{option} {text!r}: unknown key {unknown[0]!r}; known are name, alias, driver-opt")
            entry = {"Target": next((value for key, value in words if key == "name"), "")}
            entry |= {"Aliases": aliases} if (aliases := [value for key, value in words if key == "alias"]) else {}
            options = pairs([value or "" for key, value in words if key == "driver-opt"], option)
            entry |= {"DriverOpts": options} if options else {}
        if not entry["Target"]:
            raise InvalidArgument(f"{option} {text!r} names no network")
        out.append(entry)
    return out


def _generic(given: list[str], option: str) -> list[dict[str, Any]]:
    """Names are the nodes'; a service says how many of a kind it wants."""
    out = []
    for text in given:
        kind, _, number = text.partition("=")
        if not kind or not number.isdecimal():
            raise InvalidArgument(f"{option} {text!r} is not of the form kind=number, as gpu=2")
        out.append({"DiscreteResourceSpec": {"Kind": kind, "Value": int(number)}})
    return out


def _generic_kind(entry: Any) -> str:
    return str((entry.get("DiscreteResourceSpec") or entry.get("NamedResourceSpec") or {}).get("Kind"))


def _files(kind: str) -> Callable[[list[str], str], list[dict[str, Any]]]:
    """Secrets or configs: names here; the command puts ids beside them."""

    def read(given: list[str], option: str) -> list[dict[str, Any]]:
        out = []
        for text in given:
            words = dict(fields(text, option)) if "=" in text else {"source": text}
            if unknown := sorted(set(words) - {"source", "src", "target", "uid", "gid", "mode"}):
                raise InvalidArgument(
                    f"{option} {text!r}: unknown key {unknown[0]!r}; known are source, target, uid, gid, mode"
                )
            source = words.get("source") or words.get("src")
            if not source:
                raise InvalidArgument(f"{option} {text!r}: source is missing")
            try:
                mode = int(words.get("mode") or "0444", 8)
            except ValueError:
                raise InvalidArgument(f"{option} {text!r}: mode is a file mode such as 0444") from None
            target = words.get("target") or (source if kind == "Secret" else f"/{source}")
            file = {"Name": target, "UID": words.get("uid") or "0", "GID": words.get("gid") or "0", "Mode": mode}
            out.append({f"{kind}Name": source, "File": file})
        return out

    return read


def _port_key(entry: Any) -> str:
    return f"{entry.get('TargetPort')}/{entry.get('Protocol') or 'tcp'}"


def _field(name: str) -> Callable[[Any], str]:
    return lambda entry: str(entry.get(name))


COLLECTIONS: tuple[Collection, ...] = (
    Collection("env -e", (*CONTAINER, "Env"), lambda given, _: environment(given, None), _before_equals, "KEY=value"),
    Collection("label -l", ("Labels",), pairs, _self, "key=value, of the service"),
    Collection("container-label", (*CONTAINER, "Labels"), pairs, _self, "key=value, of its containers"),
    Collection("mount", (*CONTAINER, "Mounts"), parse_mounts, _field("Target"), "type=volume,source=…,target=…"),
    Collection("publish -p", ("EndpointSpec", "Ports"), service_ports, _port_key, "published:target, or the long form"),
    Collection("network", (*TASK, "Networks"), _networks, _field("Target"), "A network its tasks join"),
    Collection("constraint", (*PLACEMENT, "Constraints"), _texts, _self, "node.labels.zone==east"),
    Collection("placement-pref", (*PLACEMENT, "Preferences"), _preferences, _preference_key, "spread=node.labels.zone"),
    Collection(
        "generic-resource", (*RESERVED, "GenericResources"), _generic, _generic_kind, "kind=number of what nodes have of it"
    ),
    Collection("dns", (*CONTAINER, "DNSConfig", "Nameservers"), _texts, _self, "A name server"),
    Collection("dns-search", (*CONTAINER, "DNSConfig", "Search"), _texts, _self, "A search domain"),
    Collection("dns-option", (*CONTAINER, "DNSConfig", "Options"), _texts, _self, "A resolver option"),
    Collection("host", (*CONTAINER, "Hosts"), host_entries, _self, "name:address for /etc/hosts"),
    Collection("group", (*CONTAINER, "Groups"), _texts, _self, "A further group"),
    Collection("sysctl", (*CONTAINER, "Sysctls"), pairs, _self, "key=value"),
    Collection("ulimit", (*CONTAINER, "Ulimits"), lambda given, _: ulimits(given), _field("Name"), "name=soft[:hard]"),
    Collection("secret", (*CONTAINER, "Secrets"), _files("Secret"), _field("SecretName"), "name, or source=…,target=…"),
    Collection("config", (*CONTAINER, "Configs"), _files("Config"), _field("ConfigName"), "name, or source=…,target=…"),
)

_ALWAYS = (
    Flag("--cap-add", list, "A capability more"),
    Flag("--cap-drop", list, "A capability less"),
    Flag("--log-opt", list, "key=value"),
    Flag("--entrypoint", str, "In place of the image's"),
    Flag("--replicas", str, "How many tasks; of a job, how many completions"),
    Flag("--max-concurrent", str, "Of a job, how many tasks at a time; all of them unless given"),
    *HEALTH,
    Flag("--detach -d", bool, "Do not wait until it has converged"),
    Flag("--quiet -q", bool, "No progress"),
    Flag("--timeout", str, "How long to wait, as 2m"),
    Flag("--plan", bool, "Only show what would happen: exit status 0 nothing, 1 changes, 255 error"),
    Flag("--format", str, "How a plan is shown: json"),
    Flag("--with-registry-auth", bool, "Nodes pull with your login to the image's registry"),
    Flag("--no-resolve-image", bool, "Do not ask the registry for the digest to hold the service to"),
    *(scalar.flag for scalar in SCALARS),
    *(flag for flag, _ in TRUTHS),
)


def _many(one: Collection, suffix: str) -> Flag:
    name, _, short = one.name.partition(" ")
    return Flag(f"--{name}{suffix}" + (f" {short}" if short and not suffix else ""), list, one.help)


CREATE = (
    Flag("--name", str, "Its name"),
    Flag("--mode", str, "replicated, global, replicated-job, global-job or cron"),
    Flag("--env-file", list, "A file of KEY=value lines"),
    *(_many(one, "") for one in COLLECTIONS),
    *_ALWAYS,
)
UPDATE = (
    Flag("--image", str, "Another image"),
    Flag("--args", str, "Another command, as one text"),
    Flag("--force", bool, "Replace the tasks even if nothing changes"),
    Flag("--rollback", bool, "Back to the spec before the last update"),
    *(_many(one, "-add") for one in COLLECTIONS),
    *(_many(one, "-rm") for one in COLLECTIONS),
    *_ALWAYS,
)
