"""PURE: turns a checked OCI config into a LaunchPlan, the ordered kernel steps of one process.

A step is a name and its arguments; worker.runtime.init has one function a name. The order here is the meaning: mounts
before masks, sysctls before /proc turns read-only, hooks before the pivot, seccomp before the privileges it needs are
dropped, unless no_new_privileges makes them needless. Nothing is opened, read or mounted here.
"""

from __future__ import annotations

from worker.kernel import mounts, syscalls
from worker.kernel.bare import Any, Sequence
from worker.runtime import birth, capabilities, devices, hooks, mount_options, scheduling
from worker.runtime.birth import AT_CLONE, CLONE_FLAG
from worker.runtime.errors import SpecFault
from worker.runtime.mount_options import is_bind as is_bind
from worker.runtime.spec import Config
from worker.runtime.spec_linux import sysctl_namespace

_HOOKS_OF_CREATE = (*hooks.EARLY, "createContainer", "startContainer")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Step(tuple[str, dict[str, Any]]):
    """One thing for init to do: a name of its table and keyword arguments. A plain pair of the two means the same."""

    __slots__ = ()

    def __new__(cls, name: str, /, **arguments: Any) -> Step:
        return tuple.__new__(cls, (name, arguments))

    @property
    def name(self) -> str:
        return self[0]

    @property
    def arguments(self) -> dict[str, Any]:
        return self[1]

    def __repr__(self) -> str:
        return f"Step({self.name}, {self.arguments})"


Steps = Sequence[tuple[str, dict[str, Any]]]


class LaunchPlan:
    """Everything one process does, decided. create: steps until it waits. start: steps from there to execve.

    warnings: what of the bundle is left out, for the caller to tell (OCI runtime.md, "Warnings").
    """

    __slots__ = ("create", "start", "warnings")

    def __init__(self, create: list[Step], start: list[Step], warnings: list[str] | None = None) -> None:
        self.create = create
        self.start = start
        self.warnings = warnings or []


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
    joined = {kind for kind, _ in birth.joins_of(namespaces)}
    # First of all, while /proc is surely the host's.
    create = [oom_step(process), *_foreign_steps(namespaces, linux.get("sysctl") or {}), *_label_checks(process, linux)]
    # A joined mount namespace is somebody else's: how its mounts propagate is not ours to change.
    private = [] if namespaces["mount"] else _private_steps(config)
    if "user" in namespaces and not namespaces["mount"]:
        # While we still may pass where the machine's root may.
        own_mounts = [Step("unshare", flags=CLONE_FLAG["mount"]), *private, _hold_step(config)]
        create += _namespace_steps(namespaces, linux, joined, own_mounts)
    else:
        create += [*_namespace_steps(namespaces, linux, joined), *private]
    create.append(Step("open_root", path=config["root"]["path"]))
    create += mount_steps(config.get("mounts") or [], host, label=linux.get("mountLabel") or "")
    create += device_steps(linux, user_namespace="user" in namespaces)
    create += naming_steps(config)
    create += hiding_steps(linux)
    # The root of a user namespace may not write there: then the parent places it, which init waits for.
    entrances = [] if "user" in namespaces else host.cgroup_entrances
    new_cgroup_namespace = "cgroup" in namespaces and not namespaces["cgroup"]
    create.append(Step("join_cgroup", namespace=new_cgroup_namespace, entrances=entrances))
    if hooks.entries(config, *_HOOKS_OF_CREATE) or linux.get("netDevices"):
        create.append(Step("hooks_of_create", entries=hooks.entries(config, "createContainer")))
    create.append(Step("pivot"))
    create += root_steps(config)
    start = process_steps(process, host, config.get("covey") or {}, linux, hooks.entries(config, "startContainer"))
    return LaunchPlan(create, start, warnings_of(process, host))


def warnings_of(process: dict[str, Any], host: Host) -> list[str]:
    return capabilities.warnings(process.get("capabilities"), host.capabilities)


def cgroup_owner(config: Config) -> int | None:
    """The uid, as the host counts, to give a v2 cgroup to, whose container may write in it; or None.

    OCI config-linux.md, "Cgroup ownership".
    """
    linux = config["linux"]
    own = any(entry["type"] == "cgroup" and not entry.get("path") for entry in linux["namespaces"])
    writes = any(
        mount.get("type") in ("cgroup", "cgroup2")
        and mount["destination"].rstrip("/") == "/sys/fs/cgroup"
        and "ro" not in (mount.get("options") or [])
        for mount in config.get("mounts") or []
    )
    return birth.host_uid(linux, config["process"]) if own and writes else None


def _foreign_steps(namespaces: dict[str, str], sysctls: dict[str, str]) -> list[Step]:
    """Checks that a sysctl meets no namespace of the machine's own that was "joined" by its path."""
    wanted: dict[str, list[str]] = {}
    for key in sysctls:
        wanted.setdefault(sysctl_namespace(key) or "", []).append(key)
    return [
        Step("foreign_namespace", kind=kind, path=namespaces[kind], keys=keys)
        for kind, keys in wanted.items()
        if namespaces.get(kind)
    ]


def _label_checks(process: dict[str, Any], linux: dict[str, Any]) -> list[Step]:
    wanted = (
        ("apparmor", "process.apparmorProfile", process.get("apparmorProfile")),
        ("selinux", "process.selinuxLabel", process.get("selinuxLabel")),
        ("selinux", "linux.mountLabel", linux.get("mountLabel")),
    )
    return [Step("require_module", module=module, field=field) for module, field, value in wanted if value]


def oom_step(process: dict[str, Any]) -> Step:
    return Step("oom_score_adj", value=int(process.get("oomScoreAdj") or 0))


def _root_propagation(linux: dict[str, Any]) -> int:
    """What all mounts get first; an unbindable root is made so at the end, as until then it has itself to be bound."""
    propagation = _propagation(linux.get("rootfsPropagation") or "", "rslave")
    return mounts.PROPAGATION["rprivate"] if propagation & syscalls.MS_UNBINDABLE else propagation


def private_steps(linux: dict[str, Any]) -> list[Step]:
    return [Step("private_mounts", propagation=_root_propagation(linux))]


def _private_steps(config: Config) -> list[Step]:
    steps = private_steps(config["linux"])
    if _root_propagation(config["linux"]) & syscalls.MS_SHARED:
        steps.append(Step("private_parent", path=config["root"]["path"]))
    return steps


def _hold_step(config: Config) -> Step:
    entries = config.get("mounts") or []
    binds = [mount for mount in entries if mount_options.is_bind(mount) and not mount_options.is_mapped(mount)]
    sources = [(mount["source"], "rbind" in (mount.get("options") or [])) for mount in binds]
    return Step("hold_sources", root=config["root"]["path"], binds=sources)


def mount_steps(entries: list[dict[str, Any]], host: Host, first: int = 0, label: str = "") -> list[Step]:
    """``first``: the number of the first entry among the bundle's mounts, for messages. ``label``: linux.mountLabel."""
    steps = []
    for index, mount in enumerate(entries):
        name, arguments = mount_options.step(mount, first + index, host.cgroup_mounts, label)
        steps.append(Step(name, **arguments))
    return steps


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
    create = [oom_step(process)]
    create += _label_checks(process, {})
    processors = {key: value for key, value in (process.get("execCPUAffinity") or {}).items() if value}
    for key, field in (("initial", "process.execCPUAffinity.initial"), ("final", "process.execCPUAffinity.final")):
        if key == "final":
            create.append(Step("join_cgroup", namespace=False, entrances=host.cgroup_entrances))
        if processors.get(key):
            create.append(Step("affinity", field=field, processors=sorted(scheduling.numbers(processors[key], field))))
    create.append(Step("enter", flags=flags, user="user" in kinds))
    if process.get("terminal"):
        create.append(Step("console", size=process.get("consoleSize") or {}, bind=False, uid=_user(process)["uid"]))
    start = process_steps(process, host, config.get("covey") or {}, config["linux"])
    return LaunchPlan(create, start, warnings_of(process, host))


def process_steps(
    process: dict[str, Any],
    host: Host,
    covey: dict[str, Any],
    linux: dict[str, Any],
    start_hooks: hooks.Entries | None = None,
) -> list[Step]:
    """From "start" to execve: limits, credentials, seccomp, hooks inside, program."""
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
    steps += [Step(name, **arguments) for name, arguments in scheduling.steps(process, linux)]
    steps.append(Step("stdio", terminal=bool(process.get("terminal"))))
    steps.append(Step("session_keyring"))
    steps.append(Step("find_program", args=list(process["args"]), env=list(process.get("env") or [])))
    steps.append(Step("working_directory", path=process["cwd"], last=False))
    if process.get("apparmorProfile"):
        steps.append(Step("label", module="apparmor", text=f"exec {process['apparmorProfile']}"))
    if process.get("selinuxLabel"):
        steps.append(Step("label", module="", text=process["selinuxLabel"]))
    steps.append(Step("announce_exec"))
    if not no_new_privileges:
        steps += seccomp
    steps.append(Step("bounding", keep=sets["bounding"]))
    steps.append(Step("identity", uid=user["uid"], gid=user["gid"], groups=user["groups"], umask=user["umask"]))
    steps.append(Step("capabilities", **{name: mask for name, mask in sets.items() if name != "bounding"}))
    steps.append(Step("working_directory", path=process["cwd"], last=True))
    if no_new_privileges:
        steps.append(Step("no_new_privileges"))
        steps += seccomp
    if start_hooks:
        # As the container's own user and behind its filter: the programs are the image's.
        steps.append(Step("hooks_of_start", entries=start_hooks))
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


def _namespace_steps(
    namespaces: dict[str, str], linux: dict[str, Any], joined: set[str], own_mounts: Sequence[Step] = ()
) -> list[Step]:
    """``own_mounts``: with a user namespace, the steps that make the mount namespace, before the ids change."""
    steps = []
    if namespaces.get("user"):
        if namespaces.get("pid"):
            steps.append(Step("join_namespace", kind="user", path=namespaces["user"]))
        steps += [*own_mounts, Step("become_mapped_root", wait=False)]
    elif "user" in namespaces:
        steps += [*own_mounts, Step("become_mapped_root", wait=True)]
    # The mount namespace comes last: the paths of the others are the runtime's.
    for kind, path in sorted(namespaces.items(), key=lambda entry: entry[0] == "mount"):
        if path and kind not in AT_CLONE and kind not in joined:
            steps.append(Step("join_namespace", kind=kind, path=path))
    new = 0
    for kind, path in namespaces.items():
        if not path and kind not in AT_CLONE and kind not in ("cgroup", "time", "mount" if own_mounts else ""):
            new |= CLONE_FLAG[kind]
    steps.append(Step("unshare", flags=new))
    if "time" in namespaces and not namespaces["time"]:
        offsets = [
            (clock, int(entry.get("secs") or 0), int(entry.get("nanosecs") or 0))
            for clock, entry in (linux.get("timeOffsets") or {}).items()
        ]
        steps.append(Step("time_namespace", offsets=offsets))
    return steps


def _propagation(name: str, default: str) -> int:
    if not name:
        return mounts.PROPAGATION[default]
    wanted = name if name.startswith("r") else f"r{name}"
    if wanted not in mounts.PROPAGATION:
        raise SpecFault("linux.rootfsPropagation", f"{name!r} is not one of shared, slave, private, unbindable")
    return mounts.PROPAGATION[wanted]


def device_steps(linux: dict[str, Any], *, user_namespace: bool) -> list[Step]:
    wanted: dict[str, dict[str, Any]] = {entry["path"]: entry for entry in devices.DEFAULT}
    for entry in linux.get("devices") or []:
        wanted[entry["path"]] = entry
    nodes = [
        (
            path,
            entry["type"],
            entry.get("major", 0),
            entry.get("minor", 0),
            entry.get("fileMode", 0o666) & 0o7777,
            entry.get("uid", 0),
            entry.get("gid", 0),
        )
        for path, entry in wanted.items()
    ]
    return [Step("devices", nodes=nodes, bind=user_namespace), Step("links", links=list(devices.LINKS))]
