"""PURE: which part of a container can be made before anybody has asked for it, and which bundles may take it over.

A sandbox is a process in new namespaces and its own cgroup whose root is a skeleton: a tmpfs with /proc, /sys and /dev as
the template config has them, masked, read-only and filled. A bundle that agrees with the template in all of this moves
these trees into its root file system; what it adds (other mounts, limits, names, credentials) is done then. What differs
makes it unfit, and it takes the ordinary way (worker.runtime.launch.plan_container), to the same effect.
"""

from __future__ import annotations

from worker.kernel.bare import Any
from worker.runtime import launch
from worker.runtime.birth import CLONE_FLAG, needs_parent
from worker.runtime.launch import Host, Step

Config = dict[str, Any]

TREES = ("/proc", "/sys", "/dev")
_OF_THE_BUNDLE = ("cgroupsPath", "resources", "seccomp")
"""Members of ``linux`` that a sandbox takes on afterwards; in all others bundle and template must agree."""
_MADE_AHEAD = frozenset(("pid", "network", "mount", "ipc", "uts", "cgroup"))
_LABELS = ("apparmorProfile", "selinuxLabel")
"""Of the process: whether the machine has the module is asked where its files are still in sight."""
_MASKED_LAST = ("/proc", "/sys")
"""A later mount in one of these would come before the masks of an ordinary start, and after those of a sandbox."""


def fits(template: Config, config: Config) -> bool:
    """Whether a sandbox of ``template`` can become the container of ``config``."""
    mounts = config.get("mounts") or []
    made = template["mounts"]
    return (
        mounts[: len(made)] == made
        and not any(_lies_below(mount["destination"], _MASKED_LAST) for mount in mounts[len(made) :])
        and not needs_parent(config)
        and not any(config["process"].get(key) for key in _LABELS)
        and _agreed(config["linux"]) == _agreed(template["linux"])
        and _covers(template["linux"].get("resources") or {}, config["linux"].get("resources") or {})
    )


def _agreed(linux: Config) -> Config:
    return {key: value for key, value in linux.items() if key not in _OF_THE_BUNDLE and value}


def _covers(made: Config, wanted: Config) -> bool:
    """What the sandbox has limited the bundle limits too (perhaps otherwise); device rules are the same."""
    if made.get("devices") != wanted.get("devices"):
        return False
    return all(set(limit) <= set(wanted.get(key) or {}) for key, limit in made.items() if isinstance(limit, dict))


def _lies_below(path: str, places: tuple[str, ...]) -> bool:
    clean = "/" + "/".join(part for part in path.split("/") if part not in ("", "."))
    return ".." in clean.split("/") or any(clean == place or clean.startswith(f"{place}/") for place in places)


def difference(template: Config, config: Config) -> Config:
    """The linux.resources that ``config`` sets otherwise than a sandbox of ``template`` has them."""
    made = template["linux"].get("resources") or {}
    wanted = config["linux"].get("resources") or {}
    return {key: value for key, value in wanted.items() if value != made.get(key)}


def ahead(template: Config, host: Host, place: str) -> list[Step]:
    """The steps that make a sandbox; ``place`` is a directory of the host over which its skeleton lies for a moment."""
    linux = template["linux"]
    new = 0
    for kind in _MADE_AHEAD - {"pid"}:
        new |= CLONE_FLAG[kind]
    return [
        Step("join_cgroup", namespace=False, entrances=host.cgroup_entrances),
        Step("unshare", flags=new),
        *launch.private_steps(linux),
        Step("skeleton", place=place),
        *launch.mount_steps(template["mounts"], host),
        *launch.device_steps(linux, user_namespace=False),
        *launch.hiding_steps(linux),
        Step("pivot"),
    ]


def rest(template: Config, config: Config, host: Host) -> list[Step]:
    """The steps from a sandbox to a created container."""
    process = config["process"]
    made = len(template["mounts"])
    return [
        launch.oom_step(process),
        Step("take_root", path=config["root"]["path"]),
        *(Step("take_tree", path=tree) for tree in TREES),
        *launch.mount_steps(config["mounts"][made:], host, first=made),
        *launch.naming_steps(config),
        Step("pivot"),
        *launch.root_steps(config),
    ]


def sources(template: Config, config: Config) -> list[tuple[str, bool]]:
    """(path on the host, recursive) of every tree that ``rest`` puts into the container, the root first."""
    later = config["mounts"][len(template["mounts"]) :]
    binds = [mount for mount in later if launch.is_bind(mount)]
    return [
        (config["root"]["path"], True),
        *((mount["source"], "rbind" in (mount.get("options") or [])) for mount in binds),
    ]
