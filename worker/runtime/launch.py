"""PURE: turns a checked OCI config into a LaunchPlan, the ordered kernel steps of one process.

A step is a name and its arguments; worker.runtime.init has one function a name. The order here is the meaning: mounts
before masks, sysctls before /proc turns read-only, seccomp before the privileges it needs are dropped, unless
no_new_privileges makes them needless. Nothing is opened, read or mounted here.
"""

from __future__ import annotations

from typing import Any

from worker.kernel import mounts, syscalls
from worker.runtime import capabilities, devices
from worker.runtime.birth import AT_CLONE, CLONE_FLAG
from worker.runtime.errors import SpecFault
from worker.runtime.spec import Config

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
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
    """Everything one process does, decided. create: steps until it waits. start: steps from there to execve."""

    __slots__ = ("create", "start")

    def __init__(self, create: list[Step], start: list[Step]) -> None:
        self.create = create
        self.start = start


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
    create = [oom_step(process), *_namespace_steps(namespaces), *private_steps(linux)]
    if _root_propagation(linux) & syscalls.MS_SHARED:
        create.append(Step("private_parent", path=config["root"]["path"]))
    create.append(Step("open_root", path=config["root"]["path"]))
    create += mount_steps(config.get("mounts") or [], host)
    create += device_steps(linux, user_namespace="user" in namespaces)
    create += naming_steps(config)
    create += hiding_steps(linux)
    # The root of a user namespace may not write there: then the parent places it, which init waits for.
    entrances = [] if "user" in namespaces else host.cgroup_entrances
    create.append(Step("join_cgroup", namespace="cgroup" in namespaces, entrances=entrances))
    create.append(Step("pivot"))
    create += root_steps(config)
    return LaunchPlan(create, process_steps(process, host, config.get("covey") or {}))


def oom_step(process: dict[str, Any]) -> Step:
    return Step("oom_score_adj", value=int(process.get("oomScoreAdj") or 0))


def _root_propagation(linux: dict[str, Any]) -> int:
    """What all mounts get first; an unbindable root is made so at the end, as until then it has itself to be bound."""
    propagation = _propagation(linux.get("rootfsPropagation") or "", "rslave")
    return mounts.PROPAGATION["rprivate"] if propagation & syscalls.MS_UNBINDABLE else propagation


def private_steps(linux: dict[str, Any]) -> list[Step]:
    return [Step("private_mounts", propagation=_root_propagation(linux))]


def mount_steps(entries: list[dict[str, Any]], host: Host, first: int = 0) -> list[Step]:
    """``first``: the number of the first entry among the bundle's mounts, for messages."""
    return [_mount_step(mount, first + index, host) for index, mount in enumerate(entries)]


def naming_steps(config: Config) -> list[Step]:
    """Console, working directory and the names of the machine."""
    process = config["process"]
    steps = []
    if process.get("terminal"):
        steps.append(Step("console", size=process.get("consoleSize") or {}, bind=True, uid=_user(process)["uid"]))
    steps.append(Step("make_directory", path=process["cwd"]))
    if config.get("hostname"):
        steps.append(Step("hostname", name=config["hostname"]))
    if config.get("domainname"):
        steps.append(Step("domainname", name=config["domainname"]))
    return steps


def hiding_steps(linux: dict[str, Any]) -> list[Step]:
    """Sysctls, then what makes /proc/sys read-only and hides the rest."""
    steps = [Step("sysctl", key=key, value=value) for key, value in (linux.get("sysctl") or {}).items()]
    steps += [Step("readonly_path", path=path) for path in linux.get("readonlyPaths") or []]
    if linux.get("maskedPaths"):
        steps.append(Step("mask_paths", paths=list(linux["maskedPaths"])))
    return steps


def root_steps(config: Config) -> list[Step]:
    """What is set on the root once it is the root."""
    steps = []
    if config["root"].get("readonly"):
        steps.append(Step("readonly_root"))
    name = config["linux"].get("rootfsPropagation")
    if name:
        steps.append(Step("root_propagation", propagation=_propagation(name, "")))
    return steps


def plan_exec(config: Config, process: dict[str, Any], host: Host) -> LaunchPlan:
    """The plan of one more process in a running container; its namespaces are those of the container's config."""
    kinds = {entry["type"] for entry in config["linux"]["namespaces"]}
    flags = 0
    for kind in kinds - {"pid"}:
        flags |= CLONE_FLAG[kind]
    create = [
        oom_step(process),
        Step("join_cgroup", namespace=False, entrances=host.cgroup_entrances),
        Step("enter", flags=flags, user="user" in kinds),
    ]
    if process.get("terminal"):
        create.append(Step("console", size=process.get("consoleSize") or {}, bind=False, uid=_user(process)["uid"]))
    return LaunchPlan(create, process_steps(process, host, config.get("covey") or {}))


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
        if path and kind not in AT_CLONE
    ]
    if "user" in namespaces:
        steps.append(Step("become_mapped_root"))
    new = 0
    for kind, path in namespaces.items():
        if not path and kind not in AT_CLONE and kind != "cgroup":
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


def is_bind(mount: dict[str, Any]) -> bool:
    options = mount.get("options") or []
    return mount.get("type") == "bind" or "bind" in options or "rbind" in options


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
    if is_bind(mount):
        if data:
            raise SpecFault(f"mounts[{index}].options", f"{', '.join(data)}: not possible with a bind")
        return Step("mount_bind", source=mount["source"], recursive="rbind" in options, **arguments)
    return Step("mount_filesystem", fstype=kind, source=mount.get("source"), options=data, **arguments)


def device_steps(linux: dict[str, Any], *, user_namespace: bool) -> list[Step]:
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
