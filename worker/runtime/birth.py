"""PURE: what a parent has to know of a process before it forks it, read off the config alone.

Everything else about a process is planned (worker.runtime.launch) by the process itself. A daemon computes it once and
sends it along with a bundle, so that a shim need not read the bundle; ``to_json`` and ``from_json`` are that trip.
"""

from __future__ import annotations

from typing import Any

from worker.kernel import syscalls
from worker.runtime.errors import SpecFault

CLONE_FLAG = {
    "user": syscalls.CLONE_NEWUSER,
    "pid": syscalls.CLONE_NEWPID,
    "network": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "mount": syscalls.CLONE_NEWNS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}
AT_CLONE = ("user", "pid")
"""Namespaces a process is born in; it enters the others itself."""


class Birth:
    """``clone_flags``: namespaces the process is born in. ``joins``: (clone flag, path) the parent enters for its
    children before the fork. ``id_maps``: {"uid": text, "gid": text} for /proc/PID/{uid,gid}_map, or None without a user
    namespace. ``stdio_owner``: with a user namespace the uid, as the host counts, that must be able to open its pipes
    again (/dev/stdout); without one the process sees to it itself. ``cgroup``: its path.
    """

    __slots__ = ("cgroup", "clone_flags", "id_maps", "joins", "stdio_owner", "terminal")

    def __init__(
        self,
        clone_flags: int,
        joins: list[tuple[int, str]],
        terminal: bool,
        id_maps: dict[str, str] | None,
        stdio_owner: int,
        cgroup: str = "",
    ) -> None:
        self.clone_flags = clone_flags
        self.joins = joins
        self.terminal = terminal
        self.id_maps = id_maps
        self.stdio_owner = stdio_owner
        self.cgroup = cgroup

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Birth:
        return cls(**{**body, "joins": [(flag, path) for flag, path in body["joins"]]})


def of_container(config: dict[str, Any]) -> Birth:
    """The birth of a container's first process. Raises SpecFault."""
    linux = config.get("linux") or {}
    process = config["process"]
    namespaces = {entry["type"]: entry.get("path") or "" for entry in linux["namespaces"]}
    flags = 0
    for kind in AT_CLONE:
        if kind in namespaces and not namespaces[kind]:
            flags |= CLONE_FLAG[kind]
    joins = [(CLONE_FLAG["pid"], namespaces["pid"])] if namespaces.get("pid") else []
    maps = _id_maps(linux) if "user" in namespaces else None
    owner = host_uid(linux, process) if maps else 0
    return Birth(flags, joins, bool(process.get("terminal")), maps, owner, linux.get("cgroupsPath") or "")


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
        maps[key] = "".join(f"{e['containerID']} {e['hostID']} {e['size']}\n" for e in entries)
    return maps
