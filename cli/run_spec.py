"""Options of ``cluster run`` → the body of a container's create. Pure, but for files that options name.

Tables say which field an option fills; what needs more than a copy has a function of its own.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.mounts import parse_mounts
from cli.publish import container_ports
from cli.stack.units import nano_cpus, nanoseconds, size
from cli.words import environment, fields, pairs
from covey.errors import InvalidArgument

Flags = Mapping[str, Any]

#: Option → field, copied when given.
_CONFIG = {
    "hostname": "Hostname",
    "domainname": "Domainname",
    "user": "User",
    "workdir": "WorkingDir",
    "stop_signal": "StopSignal",
    "stop_timeout": "StopTimeout",
}
_HOST = {
    "oom_score_adj": "OomScoreAdj",
    "publish_all": "PublishAllPorts",
    "oom_kill_disable": "OomKillDisable",
    "read_only": "ReadonlyRootfs",
    "privileged": "Privileged",
    "cap_add": "CapAdd",
    "cap_drop": "CapDrop",
    "dns": "Dns",
    "dns_search": "DnsSearch",
    "dns_option": "DnsOptions",
    "add_host": "ExtraHosts",
    "group_add": "GroupAdd",
    "volumes_from": "VolumesFrom",
    "pid": "PidMode",
    "ipc": "IpcMode",
    "uts": "UTSMode",
    "userns": "UsernsMode",
    "cgroupns": "CgroupnsMode",
    "cgroup_parent": "CgroupParent",
    "runtime": "Runtime",
    "rm": "AutoRemove",
}
_LIMITS = {
    "cpu_shares": "CpuShares",
    "cpu_period": "CpuPeriod",
    "cpu_quota": "CpuQuota",
    "cpuset_cpus": "CpusetCpus",
    "cpuset_mems": "CpusetMems",
    "pids_limit": "PidsLimit",
}
_SIZES = {"memory": "Memory", "memory_reservation": "MemoryReservation"}


def container_body(image: str, words: Sequence[str], flags: Flags) -> dict[str, Any]:
    """The JSON of POST /containers/create."""
    stdin, attached = bool(flags["interactive"]), not flags["detach"]
    opened, bindings = container_ports(flags["publish"], flags["expose"])
    body: dict[str, Any] = {
        "Image": image,
        "AttachStdin": stdin and attached,
        "AttachStdout": attached,
        "AttachStderr": attached,
        "OpenStdin": stdin,
        "StdinOnce": stdin and attached,
        "Tty": bool(flags["tty"]),
        "Env": environment(flags["env"], flags["env_file"]),
        "Labels": {**_label_files(flags["label_file"]), **pairs(flags["label"], "--label")},
        "ExposedPorts": opened,
    }
    body.update({field: flags[name] for name, field in _CONFIG.items() if flags[name] is not None})
    if words:
        body["Cmd"] = list(words)
    if flags["entrypoint"] is not None:
        body["Entrypoint"] = [flags["entrypoint"]] if flags["entrypoint"] else [""]
    if (check := healthcheck(flags)) is not None:
        body["Healthcheck"] = check
    binds, anonymous = _volumes(flags["volume"])
    if anonymous:
        body["Volumes"] = {target: {} for target in anonymous}
    body["HostConfig"] = {**_host_config(flags), "PortBindings": bindings, **({"Binds": binds} if binds else {})}
    mode, endpoints = _networks(flags)
    body["HostConfig"]["NetworkMode"] = mode
    if endpoints:
        body["NetworkingConfig"] = {"EndpointsConfig": endpoints}
    return body


def healthcheck(flags: Flags) -> dict[str, Any] | None:
    """A Healthcheck of the health options; None when none was given."""
    durations = {
        "health_interval": "Interval",
        "health_timeout": "Timeout",
        "health_start_period": "StartPeriod",
        "health_start_interval": "StartInterval",
    }
    check: dict[str, Any] = {
        field: nanoseconds(flags[name], _option(name)) for name, field in durations.items() if flags[name] is not None
    }
    if flags["health_retries"] is not None:
        check["Retries"] = flags["health_retries"]
    if flags["health_cmd"]:
        check["Test"] = ["CMD-SHELL", flags["health_cmd"]]
    if not flags["no_healthcheck"]:
        return check or None
    if check:
        raise InvalidArgument("--no-healthcheck conflicts with the --health-… options")
    return {"Test": ["NONE"]}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _label_files(files: Sequence[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in files or ():
        found |= pairs(environment(None, [path]), "--label-file")
    return found


def limits(flags: Flags) -> dict[str, Any]:
    """The fields of ``run_flags.LIMITS``, those that were given."""
    found: dict[str, Any] = {field: flags[name] for name, field in _LIMITS.items() if flags[name] is not None}
    found.update({field: size(flags[name], _option(name)) for name, field in _SIZES.items() if flags[name] is not None})
    if flags["memory_swap"] is not None:
        found["MemorySwap"] = -1 if flags["memory_swap"] == "-1" else size(flags["memory_swap"], "--memory-swap")
    if flags["cpus"] is not None:
        found["NanoCpus"] = nano_cpus(flags["cpus"], "--cpus")
    return found


def _host_config(flags: Flags) -> dict[str, Any]:
    host: dict[str, Any] = {field: flags[name] for name, field in _HOST.items() if flags[name]}
    host.update({field: limit for field, limit in limits(flags).items() if limit})
    if flags["shm_size"] is not None:
        host["ShmSize"] = size(flags["shm_size"], "--shm-size")
    if flags["init"]:
        host["Init"] = True
    for name, field, read in _PARSED:
        if flags[name]:
            host[field] = read(flags[name])
    if flags["log_driver"] or flags["log_opt"]:
        host["LogConfig"] = {"Type": flags["log_driver"] or "", "Config": pairs(flags["log_opt"], "--log-opt")}
    if flags["restart"]:
        host["RestartPolicy"] = restart_policy(flags["restart"])
        if flags["rm"] and host["RestartPolicy"]["Name"] not in ("", "no"):
            raise InvalidArgument("conflicting options: --rm and --restart: a container that is removed cannot start again")
    return host


def restart_policy(text: str) -> dict[str, Any]:
    """``on-failure:3`` → a RestartPolicy."""
    name, colon, times = text.partition(":")
    if name not in ("no", "always", "unless-stopped", "on-failure") or (colon and name != "on-failure"):
        raise InvalidArgument(f"--restart {text!r} is none of no, always, unless-stopped, on-failure[:times]")
    if colon and not times.isdigit():
        raise InvalidArgument(f"--restart {text!r}: {times!r} is not a number of times")
    return {"Name": name, "MaximumRetryCount": int(times or 0)}


def ulimits(given: Sequence[str]) -> list[dict[str, Any]]:
    """``nofile=1024:2048`` → Ulimits."""
    out = []
    for text in given:
        name, equals, limits = text.partition("=")
        soft, _, hard = limits.partition(":")
        try:
            out.append({"Name": name, "Soft": int(soft), "Hard": int(hard or soft)})
        except ValueError:
            raise InvalidArgument(f"--ulimit {text!r} is not of the form name=soft[:hard]") from None
        if not equals or not name:
            raise InvalidArgument(f"--ulimit {text!r} is not of the form name=soft[:hard]")
    return out


def _devices(given: Sequence[str]) -> list[dict[str, str]]:
    out = []
    for text in given:
        host, _, rest = text.partition(":")
        inside, _, rights = rest.rpartition(":") if ":" in rest else ("", "", "")
        if rest and not inside:
            inside, rights = (host, rest) if set(rest) <= set("rwm") else (rest, "")
        out.append({"PathOnHost": host, "PathInContainer": inside or host, "CgroupPermissions": rights or "rwm"})
    return out


def _security(given: Sequence[str]) -> list[str]:
    """A seccomp profile is read here and sent whole, for the daemon may be on another machine."""
    out = []
    for text in given:
        key, separator, value = text.partition("=" if "=" in text else ":")
        if key == "seccomp" and separator and value not in ("unconfined", "builtin", "default"):
            try:
                text = "seccomp=" + json.dumps(json.loads(Path(value).read_text()), separators=(",", ":"))
            except OSError as error:
                raise InvalidArgument(f"--security-opt: cannot read seccomp profile {value}: {error.strerror}") from None
            except ValueError as error:
                raise InvalidArgument(f"--security-opt: seccomp profile {value} is no JSON: {error}") from None
        out.append(text)
    return out


def _tmpfs(given: Sequence[str]) -> dict[str, str]:
    return {target: options for target, _, options in (text.partition(":") for text in given)}


_PARSED: tuple[tuple[str, str, Callable[[Sequence[str]], Any]], ...] = (
    ("mount", "Mounts", parse_mounts),
    ("ulimit", "Ulimits", ulimits),
    ("device", "Devices", _devices),
    ("security_opt", "SecurityOpt", _security),
    ("tmpfs", "Tmpfs", _tmpfs),
    ("sysctl", "Sysctls", lambda given: pairs(given, "--sysctl")),
    ("storage_opt", "StorageOpt", lambda given: pairs(given, "--storage-opt")),
)


def _volumes(given: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """(binds, anonymous volumes' targets); a source on this machine becomes an absolute path."""
    binds: list[str] = []
    anonymous: list[str] = []
    for text in given or ():
        source, colon, rest = text.partition(":")
        if not colon:
            if not text.startswith("/"):
                raise InvalidArgument(f"--volume {text!r}: the target must be an absolute path")
            anonymous.append(text)
            continue
        if source.startswith((".", "~")):
            source = os.path.abspath(os.path.expanduser(source))
        if not source or not rest.startswith("/"):
            raise InvalidArgument(f"--volume {text!r} is not of the form [source:]target[:options], with an absolute target")
        binds.append(f"{source}:{rest}")
    return binds, anonymous


def _networks(flags: Flags) -> tuple[str, dict[str, Any]]:
    """(NetworkMode, endpoints of all networks): the first network named is the mode, as Docker has it."""
    endpoints: dict[str, Any] = {}
    for text in flags["network"] or ():
        words = dict(fields(text, "--network")) if text.startswith("name=") else {"name": text}
        if unknown := sorted(set(words) - {"name", "alias", "ip", "ip6"}):
            raise InvalidArgument(f"--network {text!r}: unknown key {unknown[0]!r}; known are name, alias, ip, ip6")
        endpoint: dict[str, Any] = {"Aliases": [words["alias"]]} if words.get("alias") else {}
        address = {field: words[key] for key, field in (("ip", "IPv4Address"), ("ip6", "IPv6Address")) if words.get(key)}
        endpoints[str(words["name"])] = {**endpoint, **({"IPAMConfig": address} if address else {})}
    mode = next(iter(endpoints), "default")
    if flags["network_alias"]:
        if not endpoints:
            raise InvalidArgument("--network-alias needs a --network of your own: the default network has no names")
        endpoints[mode]["Aliases"] = [*endpoints[mode].get("Aliases", []), *flags["network_alias"]]
    if flags["ip"]:
        endpoints.setdefault(mode, {}).setdefault("IPAMConfig", {})["IPv4Address"] = flags["ip"]
    plain = len(endpoints) == 1 and not endpoints[mode]
    return mode, {} if plain else endpoints


def words_of(text: str) -> list[str]:
    """A command line cut as a shell would. Raises InvalidArgument for an open quote."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidArgument(f"{text!r}: {error}") from None
