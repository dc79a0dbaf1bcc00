"""PURE: turns a checked OCI config into a LaunchPlan, the ordered kernel steps of one process.

A step is a name and its arguments; worker.runtime.init has one function a name. The order here is the meaning: mounts
before masks, sysctls before /proc turns read-only, seccomp before the privileges it needs are dropped, unless
no_new_privileges makes them needless. Nothing is opened, read or mounted here.
"""

from __future__ import annotations

from typing import Any

from worker.kernel import mounts, syscalls
from worker.runtime import capabilities, devices
from worker.runtime.errors import SpecFault
from worker.runtime.spec import Config

CLONE_FLAG = {
    "user": syscalls.CLONE_NEWUSER,
    "pid": syscalls.CLONE_NEWPID,
    "network": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "mount": syscalls.CLONE_NEWNS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}
PROC_NAME = {"network": "net", "mount": "mnt"}
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_AT_CLONE = ("user", "pid")
_IGNORED_OPTIONS = ("bind", "rbind", "defaults", "auto", "noauto", "user", "nouser", "_netdev")


class Step:
    """One thing for init to do: a name of its table and keyword arguments."""

    __slots__ = ("arguments", "name")

    def __init__(self, name: str, /, **arguments: Any) -> None:
        self.name = name
        self.arguments = arguments

    def __repr__(self) -> str:
        return f"Step({self.name}, {self.arguments})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and (self.name, self.arguments) == (other.name, other.arguments)

    __hash__ = None  # type: ignore[assignment]


class LaunchPlan:
    """Everything one process needs, decided.

    clone_flags: namespaces the process is born in (user, pid). parent_joins: (clone flag, path) the parent enters for
    its children before the fork (pid by path). create: steps until the process waits. start: steps from there to
    execve. id_maps: {"uid": text, "gid": text} for /proc/PID/{uid,gid}_map, or None without a user namespace.
    stdio_owner: the uid, as the host counts, that must be able to open its pipes again (/dev/stdout).
    """

    __slots__ = ("clone_flags", "create", "id_maps", "parent_joins", "start", "stdio_owner", "terminal")

    def __init__(
        self,
        clone_flags: int,
        parent_joins: list[tuple[int, str]],
        create: list[Step],
        start: list[Step],
        terminal: bool,
        id_maps: dict[str, str] | None,
        stdio_owner: int,
    ) -> None:
        self.clone_flags = clone_flags
        self.parent_joins = parent_joins
        self.create = create
        self.start = start
        self.terminal = terminal
        self.id_maps = id_maps
        self.stdio_owner = stdio_owner


class Host:
    """What planning needs to know of the machine: capabilities it can give, and the container's cgroup directories.

    cgroup_mounts: (name below /sys/fs/cgroup or "" for v2's only one, directory on the host, aliases).
    cgroup_entrances: the files a process of the container writes 0 into to be in its cgroups.
    """

    __slots__ = ("capabilities", "cgroup_entrances", "cgroup_mounts")

    def __init__(
        self, capabilities: int, cgroup_mounts: list[tuple[str, str, tuple[str, ...]]], cgroup_entrances: list[str]
    ) -> None:
        self.capabilities = capabilities
        self.cgroup_mounts = cgroup_mounts
        self.cgroup_entrances = cgroup_entrances


def plan_container(config: Config, host: Host) -> LaunchPlan:
    """The plan of a container's first process. Raises SpecFault."""
    linux = config["linux"]
    process = config["process"]
    namespaces = {entry["type"]: entry.get("path") or "" for entry in linux["namespaces"]}
    for kind in ("mount", "user", "cgroup"):
        if namespaces.get(kind):
            raise SpecFault("linux.namespaces", f"joining a {kind} namespace by path is not possible here")
    # First of all, while /proc is surely the host's.
    create = [Step("oom_score_adj", value=int(process.get("oomScoreAdj") or 0))]
    create += _namespace_steps(namespaces)
    propagation = _propagation(linux.get("rootfsPropagation") or "", "rslave")
    if propagation & syscalls.MS_UNBINDABLE:
        # Set at the end; until then the root itself has to be bound.
        propagation = mounts.PROPAGATION["rprivate"]
    create.append(Step("private_mounts", propagation=propagation))
    if propagation & syscalls.MS_SHARED:
        create.append(Step("private_parent", path=config["root"]["path"]))
    create.append(Step("open_root", path=config["root"]["path"]))
    create += [_mount_step(mount, index, host) for index, mount in enumerate(config.get("mounts") or [])]
    create += _device_steps(linux, user_namespace="user" in namespaces)
    if process.get("terminal"):
        create.append(Step("console", size=process.get("consoleSize") or {}, bind=True, uid=_user(process)["uid"]))
    create.append(Step("make_directory", path=process["cwd"]))
    if config.get("hostname"):
        create.append(Step("hostname", name=config["hostname"]))
    if config.get("domainname"):
        create.append(Step("domainname", name=config["domainname"]))
    create += [Step("sysctl", key=key, value=value) for key, value in (linux.get("sysctl") or {}).items()]
    create += [Step("readonly_path", path=path) for path in linux.get("readonlyPaths") or []]
    if linux.get("maskedPaths"):
        create.append(Step("mask_paths", paths=list(linux["maskedPaths"])))
    # The root of a user namespace may not write there: then the parent places it, which init waits for.
    entrances = [] if "user" in namespaces else host.cgroup_entrances
    create.append(Step("join_cgroup", namespace="cgroup" in namespaces, entrances=entrances))
    create.append(Step("pivot"))
    if config["root"].get("readonly"):
        create.append(Step("readonly_root"))
    if linux.get("rootfsPropagation"):
        create.append(Step("root_propagation", propagation=_propagation(linux["rootfsPropagation"], "")))
    clone_flags = 0
    for kind in _AT_CLONE:
        if kind in namespaces and not namespaces[kind]:
            clone_flags |= CLONE_FLAG[kind]
    joins = [(CLONE_FLAG["pid"], namespaces["pid"])] if namespaces.get("pid") else []
    return LaunchPlan(
        clone_flags,
        joins,
        create,
        process_steps(process, host, config.get("covey") or {}),
        bool(process.get("terminal")),
        _id_maps(linux) if "user" in namespaces else None,
        _host_uid(linux, process),
    )


def plan_exec(config: Config, process: dict[str, Any], host: Host) -> LaunchPlan:
    """The plan of one more process in a running container; its namespaces are those of the container's config."""
    kinds = {entry["type"] for entry in config["linux"]["namespaces"]}
    flags = 0
    for kind in kinds - {"pid"}:
        flags |= CLONE_FLAG[kind]
    create = [
        Step("oom_score_adj", value=int(process.get("oomScoreAdj") or 0)),
        Step("join_cgroup", namespace=False, entrances=host.cgroup_entrances),
        Step("enter", flags=flags, user="user" in kinds),
    ]
    if process.get("terminal"):
        create.append(Step("console", size=process.get("consoleSize") or {}, bind=False, uid=_user(process)["uid"]))
    start = process_steps(process, host, config.get("covey") or {})
    owner = _host_uid(config["linux"], process)
    return LaunchPlan(0, [], create, start, bool(process.get("terminal")), None, owner)


def process_steps(process: dict[str, Any], host: Host, covey: dict[str, Any]) -> list[Step]:
    """From "start" to execve: limits, credentials, seccomp, program."""
    user = _user(process)
    sets = capabilities.masks(process.get("capabilities"))
    sets = {name: mask & host.capabilities for name, mask in sets.items()}
    sets["effective"] &= sets["permitted"]
    sets["ambient"] &= sets["permitted"] & sets["inheritable"]
    no_new_privileges = bool(process.get("noNewPrivileges"))
    seccomp = [Step("seccomp", **covey["seccomp"])] if covey.get("seccomp") else []
    steps = [
        Step("rlimit", name=limit["type"], soft=limit["soft"], hard=limit["hard"]) for limit in process.get("rlimits") or []
    ]
    steps.append(Step("stdio", terminal=bool(process.get("terminal"))))
    steps.append(Step("session_keyring"))
    steps.append(Step("find_program", args=list(process["args"]), env=list(process.get("env") or [])))
    steps.append(Step("working_directory", path=process["cwd"], last=False))
    steps.append(Step("announce_exec"))
    if not no_new_privileges:
        steps += seccomp
    steps.append(Step("bounding", keep=sets["bounding"]))
    steps.append(Step("identity", uid=user["uid"], gid=user["gid"], groups=user["groups"], umask=user["umask"]))
    steps.append(
        Step(
            "capabilities",
            effective=sets["effective"],
            permitted=sets["permitted"],
            inheritable=sets["inheritable"],
            ambient=sets["ambient"],
        )
    )
    steps.append(Step("working_directory", path=process["cwd"], last=True))
    if no_new_privileges:
        steps.append(Step("no_new_privileges"))
        steps += seccomp
    steps.append(Step("execve"))
    return steps


def _user(process: dict[str, Any]) -> dict[str, Any]:
    user = process.get("user") or {}
    return {
        "uid": user.get("uid", 0),
        "gid": user.get("gid", 0),
        "groups": list(user.get("additionalGids") or []),
        "umask": user.get("umask", 0o022),
    }


def _namespace_steps(namespaces: dict[str, str]) -> list[Step]:
    steps = [
        Step("join_namespace", flag=CLONE_FLAG[kind], path=path)
        for kind, path in namespaces.items()
        if path and kind not in _AT_CLONE
    ]
    if "user" in namespaces:
        steps.append(Step("become_mapped_root"))
    new = 0
    for kind, path in namespaces.items():
        if not path and kind not in _AT_CLONE and kind != "cgroup":
            new |= CLONE_FLAG[kind]
    steps.append(Step("unshare", flags=new))
    return steps


def _propagation(name: str, default: str) -> int:
    if not name:
        return mounts.PROPAGATION[default]
    wanted = name if name.startswith("r") else f"r{name}"
    if wanted not in mounts.PROPAGATION:
        raise SpecFault("linux.rootfsPropagation", f"{name!r} is not one of shared, slave, private, unbindable")
    return mounts.PROPAGATION[wanted]


def _mount_step(mount: dict[str, Any], index: int, host: Host) -> Step:
    """One OCI mount: attributes (plain and recursive), propagation and filesystem options told apart."""
    options = list(mount.get("options") or [])
    kind = mount.get("type") or ""
    plain_set = plain_clear = recursive_set = recursive_clear = 0
    propagation: list[int] = []
    data: list[str] = []
    for option in options:
        if option in mounts.ATTRIBUTES:
            on, off, recursive = mounts.ATTRIBUTES[option]
            if recursive:
                recursive_set, recursive_clear = (recursive_set & ~off) | on, (recursive_clear & ~on) | off
            else:
                plain_set, plain_clear = (plain_set & ~off) | on, (plain_clear & ~on) | off
        elif option in mounts.PROPAGATION:
            propagation.append(mounts.PROPAGATION[option])
        elif option not in _IGNORED_OPTIONS:
            data.append(option)
    arguments: dict[str, Any] = {
        "destination": mount["destination"],
        "attributes": (plain_set, plain_clear),
        "recursive_attributes": (recursive_set, recursive_clear),
        "propagation": propagation,
    }
    if kind in ("cgroup", "cgroup2"):
        return Step("mount_cgroup", directories=host.cgroup_mounts, **arguments)
    if kind == "bind" or "bind" in options or "rbind" in options:
        if data:
            raise SpecFault(f"mounts[{index}].options", f"{', '.join(data)}: not possible with a bind")
        return Step("mount_bind", source=mount["source"], recursive="rbind" in options, **arguments)
    return Step("mount_filesystem", fstype=kind, source=mount.get("source"), options=data, **arguments)


def _device_steps(linux: dict[str, Any], *, user_namespace: bool) -> list[Step]:
    wanted: dict[str, dict[str, Any]] = {entry["path"]: entry for entry in devices.DEFAULT}
    for entry in linux.get("devices") or []:
        wanted[entry["path"]] = entry
    steps = [
        Step(
            "device",
            path=path,
            type=entry["type"],
            major=entry.get("major", 0),
            minor=entry.get("minor", 0),
            mode=entry.get("fileMode", 0o666) & 0o7777,
            uid=entry.get("uid", 0),
            gid=entry.get("gid", 0),
            bind=user_namespace,
        )
        for path, entry in wanted.items()
    ]
    return steps + [Step("link", path=path, target=target) for path, target in devices.LINKS]


def _host_uid(linux: dict[str, Any], process: dict[str, Any]) -> int:
    uid = int(_user(process)["uid"])
    for entry in linux.get("uidMappings") or []:
        if 0 <= uid - entry["containerID"] < entry["size"]:
            return int(entry["hostID"] + uid - entry["containerID"])
    return uid


def _id_maps(linux: dict[str, Any]) -> dict[str, str]:
    maps = {}
    for key, field in (("uid", "uidMappings"), ("gid", "gidMappings")):
        entries = linux.get(field) or []
        if not entries:
            raise SpecFault(f"linux.{field}", "is required with a user namespace")
        maps[key] = "".join(f"{e['containerID']} {e['hostID']} {e['size']}\n" for e in entries)
    return maps
