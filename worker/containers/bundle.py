"""PURE: a container's resolved settings → OCI config.json with Docker's defaults.

Everything that needs the machine (who the user is, where volumes lie, which devices, what seccomp compiled to, whose
namespaces are joined) comes in through ``Inputs``. Source: OCI runtime specification 1.2, Docker Engine 29.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.containers import defaults, limits, merge
from worker.containers.record import Mount
from worker.containers.remap import Remap
from worker.containers.users import User

OCI_VERSION = "1.2.0"


@dataclass(frozen=True)
class Inputs:
    """What a bundle is made of. Paths are the host's.

    ``joins``: namespace kind → path to join, "" for the host's own; kinds not named are new. ``seccomp``: the file
    with the compiled filter, "" for none. ``files``: destination → source of hostname, hosts, resolv.conf.
    ``ceilings``: the hard rlimits of this process. ``shm``: a directory to share as /dev/shm, "" for one of its own.
    ``remap``: the ids of its user namespace, None for the host's.
    """

    config: Mapping[str, Any]
    host_config: Mapping[str, Any]
    argv: Sequence[str]
    rootfs: str
    cgroup: str
    user: User
    hostname: str = ""
    mounts: Sequence[Mount] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    joins: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[Mapping[str, Any]] = ()
    seccomp: str = ""
    ceilings: Mapping[str, int] = field(default_factory=dict)
    cpus: int = 1
    shm: str = ""
    remap: Remap | None = None


def build(inputs: Inputs) -> dict[str, Any]:
    """The config.json."""
    host = inputs.host_config
    privileged = bool(host.get("Privileged"))
    config: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(inputs),
        "root": {"path": inputs.rootfs, "readonly": bool(host.get("ReadonlyRootfs"))},
        "mounts": _mounts(inputs, privileged),
        "linux": {
            "cgroupsPath": inputs.cgroup,
            "namespaces": namespaces(inputs.joins, user=inputs.remap is not None),
            **id_mappings(inputs.remap),
            "resources": limits.resources(host, inputs.devices),
            "devices": [{key: value for key, value in one.items() if key != "access"} for one in inputs.devices],
            "sysctl": _sysctls(inputs),
            "maskedPaths": masked_paths(host, inputs.cpus),
            "readonlyPaths": _paths(host, "ReadonlyPaths", defaults.READONLY_PATHS),
        },
    }
    if inputs.joins.get("uts") is None:
        config["hostname"] = inputs.hostname
        if inputs.config.get("Domainname"):
            config["domainname"] = inputs.config["Domainname"]
    if inputs.seccomp:
        config["covey"] = {"seccomp": {"path": inputs.seccomp}}
    propagations = {mount.propagation for mount in inputs.mounts}
    if propagations & {"shared", "rshared"}:
        config["linux"]["rootfsPropagation"] = "shared"
    elif propagations & {"slave", "rslave"}:
        config["linux"]["rootfsPropagation"] = "slave"
    return config


def id_mappings(remap: Remap | None) -> dict[str, Any]:
    """linux.uidMappings and gidMappings; nothing without a user namespace."""
    if remap is None:
        return {}
    return {
        key: [{"containerID": one.inside, "hostID": one.outside, "size": one.size} for one in found]
        for key, found in (("uidMappings", remap.uids), ("gidMappings", remap.gids))
    }


def namespaces(joins: Mapping[str, str], *, user: bool = False) -> list[dict[str, str]]:
    """linux.namespaces; see ``Inputs.joins``. ``user``: whether a user namespace is among them."""
    out = []
    for kind in ("mount", "pid", "network", "ipc", "uts", "cgroup", *(("user",) if user else ())):
        path = joins.get(kind)
        if path is None:
            out.append({"type": kind})
        elif path:
            out.append({"type": kind, "path": path})
    return out


def environment(config: Mapping[str, Any], hostname: str, home: str) -> list[str]:
    """PATH, HOSTNAME, TERM, then the container's own (which may replace them in place), HOME if nothing set it."""
    base = [f"PATH={defaults.PATH}", f"HOSTNAME={hostname}"]
    if config.get("Tty"):
        base.append("TERM=xterm")
    entries: dict[str, str | None] = {one.partition("=")[0]: one for one in base}
    for one in config.get("Env") or []:
        name, equals, _ = one.partition("=")
        # A name alone takes the variable away, as Docker's CLI uses it.
        entries[name] = one if equals else None
    if entries.get("HOME") is None:
        entries["HOME"] = f"HOME={home}"
    return [one for one in entries.values() if one is not None]


def _process(inputs: Inputs) -> dict[str, Any]:
    config, host = inputs.config, inputs.host_config
    names = limits.capabilities(host)
    process: dict[str, Any] = {
        "terminal": bool(config.get("Tty")),
        "user": user_object(inputs.user),
        "args": list(inputs.argv),
        "env": environment(config, inputs.hostname, inputs.user.home),
        "cwd": config.get("WorkingDir") or "/",
        "capabilities": limits.capability_sets(names, inputs.user.uid),
        "rlimits": limits.rlimits(host.get("Ulimits") or [], inputs.ceilings),
        "noNewPrivileges": no_new_privileges(host),
        "oomScoreAdj": int(host.get("OomScoreAdj") or 0),
    }
    if config.get("Tty"):
        process.update(_console(host))
    return process


def _console(settings: Mapping[str, Any]) -> dict[str, Any]:
    """consoleSize from a ConsoleSize of [height, width]; nothing when it is unset."""
    size = settings.get("ConsoleSize") or []
    return {"consoleSize": {"height": size[0], "width": size[1]}} if len(size) == 2 and all(size) else {}


def user_object(user: User) -> dict[str, Any]:
    """OCI's process.user. The group itself is in the additional ones, as Docker does."""
    return {"uid": user.uid, "gid": user.gid, "additionalGids": list(dict.fromkeys([user.gid, *user.groups]))}


def no_new_privileges(host: Mapping[str, Any]) -> bool:
    """Whether a security option says so."""
    options = host.get("SecurityOpt") or []
    return any(one in ("no-new-privileges", "no-new-privileges=true", "no-new-privileges:true") for one in options)


def exec_process(
    inputs_config: Mapping[str, Any], host: Mapping[str, Any], user: User, request: Mapping[str, Any], hostname: str
) -> dict[str, Any]:
    """The OCI process of an exec: the container's environment and limits with the request's command (ExecConfig)."""
    merged = {**inputs_config, "Tty": bool(request.get("Tty"))}
    merged["Env"] = [*(inputs_config.get("Env") or []), *(request.get("Env") or [])]
    privileged = bool(request.get("Privileged")) or bool(host.get("Privileged"))
    names = limits.capabilities({"Privileged": True} if privileged else host)
    process: dict[str, Any] = {
        "terminal": bool(request.get("Tty")),
        "user": user_object(user),
        "args": merge.as_list(request.get("Cmd")),
        "env": environment(merged, hostname, user.home),
        "cwd": request.get("WorkingDir") or inputs_config.get("WorkingDir") or "/",
        "capabilities": limits.capability_sets(names, user.uid),
        "noNewPrivileges": no_new_privileges(host),
        "oomScoreAdj": int(host.get("OomScoreAdj") or 0),
    }
    if request.get("Tty"):
        process.update(_console(request))
    return process


def masked_paths(host: Mapping[str, Any], cpus: int) -> list[str]:
    """What is hidden: Docker's list, the client's own, nothing when privileged."""
    masked = _paths(host, "MaskedPaths", defaults.MASKED_PATHS)
    if host.get("MaskedPaths") is None and not host.get("Privileged"):
        masked += [defaults.MASKED_CPU_PATH.format(number) for number in range(cpus)]
    return masked


def _paths(host: Mapping[str, Any], field_name: str, default: Sequence[str]) -> list[str]:
    given = host.get(field_name)
    if given is not None:
        return list(given)
    return [] if host.get("Privileged") else list(default)


def _sysctls(inputs: Inputs) -> dict[str, str]:
    out: dict[str, str] = {}
    if inputs.joins.get("network") is None:
        # Docker's two: an unprivileged process may bind any port and ping inside its own network namespace.
        out = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
        if inputs.remap is not None:
            # Not all of these groups exist in its user namespace, which the kernel minds.
            del out["net.ipv4.ping_group_range"]
    return {**out, **{key: str(value) for key, value in (inputs.host_config.get("Sysctls") or {}).items()}}


def _mounts(inputs: Inputs, privileged: bool) -> list[dict[str, Any]]:
    taken = {mount.destination for mount in inputs.mounts}
    out: list[dict[str, Any]] = []
    for destination, kind, source, options in defaults.MOUNTS:
        if destination in taken:
            continue
        words = [word for word in options if not (privileged and word == "ro")]
        out.append({"destination": destination, "type": kind, "source": source, "options": words})
    if "/dev/shm" not in taken and inputs.host_config.get("IpcMode") != "none":
        out.append(_shm(inputs))
    for destination, source in inputs.files.items():
        if destination not in taken:
            words = ["rbind", "rprivate"] + (["ro"] if inputs.host_config.get("ReadonlyRootfs") else [])
            out.append(_bind(source, destination, words))
    out += [_user_mount(mount) for mount in inputs.mounts]
    return out


def _shm(inputs: Inputs) -> dict[str, Any]:
    if inputs.shm:
        return _bind(inputs.shm, "/dev/shm", ["rbind", "nosuid", "noexec", "nodev"])
    size = inputs.host_config.get("ShmSize") or defaults.SHM_BYTES
    words = ["nosuid", "noexec", "nodev", "mode=1777", f"size={size}"]
    return {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": words}


def _bind(source: str, destination: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": options}


def _user_mount(mount: Mount) -> dict[str, Any]:
    access = ["rw"] if mount.read_write else ["ro"]
    if mount.type == "tmpfs":
        mode = [] if any(word.startswith("mode=") for word in mount.options) else ["mode=1777"]
        words = [*mount.options, *mode, *access]
        return {"destination": mount.destination, "type": "tmpfs", "source": "tmpfs", "options": words}
    recursion = [] if "bind" in mount.options else ["rbind"]
    words = recursion + list(mount.options) + access + [mount.propagation or "rprivate"]
    return _bind(mount.source, mount.destination, words)
