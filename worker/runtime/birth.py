"""PURE: what a parent has to know of a process before it forks it, read off the config alone.

Everything else about a process is planned (worker.runtime.launch) by the process itself. A daemon computes it once and
sends it along with a bundle, so that a shim need not read the bundle; ``to_json`` and ``from_json`` are that trip.
"""

from __future__ import annotations

from worker.kernel.bare import Any
from worker.runtime import hooks
from worker.runtime.errors import SpecFault
from worker.runtime.mount_options import has_mapped_trees, map_text
from worker.runtime.namespaces import FLAGS

# Into these the parent goes for its child where that is not its root: in a user namespace.
_PARENT_CAN_JOIN = ("network", "ipc", "uts", "cgroup")
CLONE_FLAG = FLAGS
AT_CLONE = ("user", "pid")
"""Namespaces a process is born in; it enters the others itself."""


class Birth:
    """``clone_flags``: namespaces the process is born in. ``joins``: (OCI type, path) of those the parent enters for its
    children before the fork. ``user_namespace``: the path of one to join before that, or "". ``id_maps``: {"uid": text,
    "gid": text} for /proc/PID/{uid,gid}_map, or None without a new user namespace. ``placed_by_parent``: the parent makes
    its cgroup and puts it in. ``stdio_owner``: with a user namespace the uid, as the host counts, that must be able to open
    its pipes again (/dev/stdout); without one the process sees to it itself. ``outside``: the parent has to read the bundle
    too, for hooks, a seccomp listener, network devices or mounts that it makes. ``cgroup``: its path.
    """

    __slots__ = (
        "cgroup",
        "clone_flags",
        "id_maps",
        "joins",
        "outside",
        "placed_by_parent",
        "stdio_owner",
        "terminal",
        "user_namespace",
    )

    def __init__(
        self,
        clone_flags: int,
        joins: list[tuple[str, str]],
        terminal: bool,
        id_maps: dict[str, str] | None,
        stdio_owner: int,
        cgroup: str = "",
        *,
        user_namespace: str = "",
        placed_by_parent: bool = False,
        outside: bool = False,
    ) -> None:
        self.clone_flags = clone_flags
        self.joins = joins
        self.terminal = terminal
        self.id_maps = id_maps
        self.stdio_owner = stdio_owner
        self.cgroup = cgroup
        self.user_namespace = user_namespace
        self.placed_by_parent = placed_by_parent
        self.outside = outside

    @property
    def alone(self) -> bool:
        """Whether all its parent does for it is to clone it into a pid namespace and to hear of its end."""
        helped = self.joins or self.id_maps or self.user_namespace or self.placed_by_parent or self.outside
        return self.clone_flags == CLONE_FLAG["pid"] and not helped and not self.terminal

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Birth:
        return cls(**{**body, "joins": [(kind, path) for kind, path in body["joins"]]})


def of_container(config: dict[str, Any]) -> Birth:
    """The birth of a container's first process. Raises SpecFault."""
    linux = config.get("linux") or {}
    process = config["process"]
    namespaces = {entry["type"]: entry.get("path") or "" for entry in linux["namespaces"]}
    flags = 0
    for kind in AT_CLONE:
        if kind in namespaces and not namespaces[kind]:
            flags |= CLONE_FLAG[kind]
    inside = "user" in namespaces
    return Birth(
        flags,
        joins_of(namespaces),
        bool(process.get("terminal")),
        _id_maps(linux) if inside and not namespaces["user"] else None,
        host_uid(linux, process) if inside else 0,
        linux.get("cgroupsPath") or "",
        # With a joined pid namespace the way through another process would not tell its pid: it joins by itself.
        user_namespace=namespaces.get("user", "") if not namespaces.get("pid") else "",
        placed_by_parent=inside,
        outside=needs_parent(config),
    )


def joins_of(namespaces: dict[str, str]) -> list[tuple[str, str]]:
    """(OCI type, path) of the namespaces that the parent enters; ``namespaces``: OCI type → path, "" for a new one."""
    joins = [("pid", namespaces["pid"])] if namespaces.get("pid") else []
    if "user" in namespaces:
        joins += [(kind, namespaces[kind]) for kind in _PARENT_CAN_JOIN if namespaces.get(kind)]
    return joins


def needs_parent(config: dict[str, Any]) -> bool:
    """Whether something of the bundle is done by the parent: hooks, a seccomp listener, mapped binds, network devices."""
    linux = config.get("linux") or {}
    listens = bool((linux.get("seccomp") or {}).get("listenerPath"))
    return bool(hooks.entries(config, *hooks.KINDS) or listens or linux.get("netDevices") or has_mapped_trees(config))


def of_exec(process: dict[str, Any]) -> Birth:
    """The birth of one more process of a container: it enters what is there."""
    return Birth(0, [], bool(process.get("terminal")), None, 0)


def host_uid(linux: dict[str, Any], process: dict[str, Any]) -> int:
    """The process's uid as the host counts."""
    uid = int((process.get("user") or {}).get("uid", 0))
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
        maps[key] = map_text(entries)
    return maps
