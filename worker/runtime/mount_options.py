"""PURE: one entry of an OCI config's ``mounts`` → the step that mounts it: attributes, propagation, data told apart.

Option names and what they must do: OCI config.md, "Linux mount options", and mount(8). An option nobody knows is the
filesystem's own; the kernel refuses it by name.
"""

from __future__ import annotations

from worker.kernel import mounts
from worker.kernel.bare import Any
from worker.runtime.errors import SpecFault

# For whoever mounts at boot, or about what the kernel prints or, by now, does by itself (i_version).
_WITHOUT_EFFECT = frozenset(
    ("defaults", "auto", "noauto", "user", "nouser", "_netdev", "silent", "loud", "iversion", "noiversion")
)
_OF_THE_SUPERBLOCK = frozenset(("sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand"))
_OWN = frozenset(("bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap"))

KNOWN: tuple[str, ...] = tuple(sorted({*mounts.ATTRIBUTES, *mounts.PROPAGATION, *_WITHOUT_EFFECT, *_OF_THE_SUPERBLOCK, *_OWN}))
"""Every option that is not a filesystem's own (for ``features``)."""

Mapping = list[dict[str, int]]


class MappedTree:
    """A bind whose owners are mapped: made by the parent, which may map ids, and handed to init in the order of use."""

    __slots__ = ("field", "gid_map", "recursive", "recursive_map", "source", "uid_map")

    def __init__(self, field: str, source: str, recursive: bool, recursive_map: bool, uid_map: str, gid_map: str) -> None:
        self.field = field
        self.source = source
        self.recursive = recursive
        self.recursive_map = recursive_map
        self.uid_map = uid_map
        self.gid_map = gid_map


def map_text(entries: Mapping) -> str:
    """Entries of OCI uidMappings as /proc/PID/uid_map takes them."""
    return "".join(f"{entry['containerID']} {entry['hostID']} {entry['size']}\n" for entry in entries)


def is_bind(mount: dict[str, Any]) -> bool:
    options = mount.get("options") or []
    return mount.get("type") == "bind" or "bind" in options or "rbind" in options


def sort_options(options: list[str]) -> tuple[dict[str, Any], list[str], set[str]]:
    """({attributes, recursive_attributes, propagation}, the superblock's and the filesystem's options, our own ones)."""
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
        elif option not in _WITHOUT_EFFECT and option not in _OWN:
            data.append(option)
    how = {
        "attributes": (plain_set, plain_clear),
        "recursive_attributes": (recursive_set, recursive_clear),
        "propagation": propagation,
    }
    return how, data, set(options) & _OWN


def step(
    mount: dict[str, Any], index: int, cgroup_mounts: list[tuple[str, str, tuple[str, ...]]], label: str = ""
) -> tuple[str, dict[str, Any]]:
    """(name of init's step, its arguments). ``label``: the SELinux context of new filesystems. Raises SpecFault."""
    field = f"mounts[{index}].options"
    kind = mount.get("type") or ""
    how, data, own = sort_options(list(mount.get("options") or []))
    how["destination"] = mount["destination"]
    bind = is_bind(mount)
    if "tmpcopyup" in own and (bind or kind != "tmpfs"):
        raise SpecFault(field, "tmpcopyup is for a tmpfs only")
    if own & {"idmap", "ridmap"} and not bind:
        raise SpecFault(field, "idmap is for a bind mount only: its filesystem has to exist with owners to map")
    if bind:
        data = [option for option in data if option not in _OF_THE_SUPERBLOCK]
        if data:
            raise SpecFault(field, f"{', '.join(data)}: not possible with a bind")
        if is_mapped(mount):
            return "mount_mapped", {"source": mount["source"], **how}
        return "mount_bind", {"source": mount["source"], "recursive": "rbind" in own, **how}
    if "remount" in own:
        del how["propagation"]
        return "remount", {"fstype": kind, "options": data, **how}
    if kind in ("cgroup", "cgroup2"):
        return "mount_cgroup", {"directories": cgroup_mounts, **how}
    if label:
        data.append(f"context={label}")
    return "mount_filesystem", {
        "fstype": kind,
        "source": mount.get("source"),
        "options": data,
        "copy_up": "tmpcopyup" in own,
        **how,
    }


def is_mapped(mount: dict[str, Any]) -> bool:
    if not is_bind(mount):
        return False
    options = mount.get("options") or ()
    return "idmap" in options or "ridmap" in options or bool(mount.get("uidMappings"))


def has_mapped_trees(config: dict[str, Any]) -> bool:
    return any(is_mapped(mount) for mount in config.get("mounts") or [])


def mapped_trees(config: dict[str, Any]) -> list[MappedTree]:
    """The trees the parent makes for binds with mapped owners, in the bundle's order. Raises SpecFault."""
    linux = config.get("linux") or {}
    result = []
    for index, mount in enumerate(config.get("mounts") or []):
        options = mount.get("options") or []
        if not is_mapped(mount):
            continue
        uids, gids = mount.get("uidMappings"), mount.get("gidMappings")
        if not uids and not gids:
            uids, gids = linux.get("uidMappings"), linux.get("gidMappings")
        if not uids or not gids:
            words = "needs uidMappings and gidMappings of the mount, or of the container's own user namespace"
            raise SpecFault(f"mounts[{index}].options", f"idmap {words}")
        result.append(
            MappedTree(
                f"mounts[{index}]", mount["source"], "rbind" in options, "ridmap" in options, map_text(uids), map_text(gids)
            )
        )
    return result
