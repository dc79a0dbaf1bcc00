"""What a new process does before its plan can be executed: read the bundle and decide (or have been given orders), make
and limit its cgroup.

It runs in the process itself, so that the shim, which stays, copies no page for it; with a user namespace, whose root may
not write there, the parent makes the cgroup. How bundles are read is the caller's ``load``.
"""

from __future__ import annotations

import os
import stat

from worker.kernel import mounts, safe_paths, syscalls
from worker.kernel.bare import Any, Callable
from worker.runtime import birth, capabilities, init, launch, orders, sandbox, spec, sync
from worker.runtime.cgroups import Cgroup, Hierarchy
from worker.runtime.errors import UNFIT, RuntimeFault
from worker.runtime.init import Init
from worker.runtime.launch import Host, LaunchPlan
from worker.runtime.orders import GroupOrders, Orders

Config = dict[str, Any]
Load = Callable[[str, bool], Config]
"""(bundle directory, whether an init goes first) → the checked config."""


def host_of(group: Cgroup) -> Host:
    return Host(capabilities.held(), group.mounts(), group.entrances())


def check_unused(group: Cgroup) -> None:
    """The container's cgroup must be its alone: whatever is in it is killed when the container ends.

    For the parent to ask: a process in a new pid namespace does not see who is in there.
    """
    others = group.pids() if group.exists() else []
    if others:
        words = f"cgroup {group.path} holds {len(others)} processes, {others[0]} for one"
        raise RuntimeFault("bad-state", f"{words}: end what runs there or name another linux.cgroupsPath")


def make_group(wanted: GroupOrders, group: Cgroup) -> None:
    group.create()
    group.limit(wanted.files)
    if wanted.devices:
        group.filter_devices(wanted.devices)
    if wanted.owner:
        group.give_to(wanted.owner)


def carry_out(given: Orders, group: Cgroup) -> LaunchPlan:
    """Up to where the plan can be performed."""
    make_group(given.group, group)
    _own_pipes(given.pipes_owner)
    return given.plan


def container(load: Load, bundle: str, with_init: bool, hierarchies: list[Hierarchy]) -> init.Prepare:
    """The first process of a container that is made from nothing."""

    def prepare(made: Init) -> LaunchPlan:
        config = load(bundle, with_init)
        group = Cgroup(config["linux"]["cgroupsPath"], hierarchies)
        if "user" in {entry["type"] for entry in config["linux"]["namespaces"]}:
            return launch.plan_container(config, host_of(group))
        return carry_out(orders.of_container(config, host_of(group), group.version), group)

    return prepare


def entering(load: Load, bundle: str, process: Config, group: Cgroup) -> init.Prepare:
    """One more process of the container that ``bundle`` became."""

    def prepare(made: Init) -> LaunchPlan:
        spec.check_process(process, "process")
        config = load(bundle, False)
        _own_pipes(birth.host_uid(config["linux"], process))
        return launch.plan_exec(config, process, host_of(group))

    return prepare


def _own_pipes(uid: int) -> None:
    """Give the pipes that are our stdio to the user the process will be, who may open them again (/dev/stdout)."""
    if uid:
        for fd in (0, 1, 2):
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.fchown(fd, uid, -1)


def waiting(load: Load, template: Config, hierarchies: list[Hierarchy], place: str) -> init.Prepare:
    """A sandbox: made by the template, then waiting until it is claimed for a bundle. ``place``: see ``sandbox.ahead``."""

    def prepare(made: Init) -> LaunchPlan:
        spec.check(template)
        group = Cgroup(template["linux"]["cgroupsPath"], hierarchies)
        make_group(orders.of_group(template, group.version), group)
        host = host_of(group)
        init.perform(made, sandbox.ahead(template, host, place))
        name = safe_paths.open_proc("self/comm", os.O_WRONLY)
        os.write(name, b"covey-sandbox")
        os.close(name)
        made.doing = ("claim", {})
        made.channel.send(sync.READY)
        claim, fds = made.channel.expect(sync.CLAIM)
        view, *ends = fds
        for target, present in enumerate(claim["stdio"]):
            if present:
                os.dup2(ends[0], target)
                os.close(ends.pop(0))
        with _SeenFrom(view):
            config = load(claim["bundle"], claim["init"])
            if not sandbox.fits(template, config):
                raise RuntimeFault(UNFIT, "the bundle asks for what a sandbox made ahead does not have")
            group = group.renamed(config["linux"]["cgroupsPath"])
            group.apply(sandbox.difference(template, config))
            for path, recursive in sandbox.sources(template, config):
                made.sources.setdefault((path, recursive), []).append(_clone(path, recursive))
        _own_pipes(birth.host_uid(config["linux"], config["process"]))
        steps = launch.process_steps(config["process"], host, config.get("covey") or {}, config["linux"])
        warnings = launch.warnings_of(config["process"], host)
        return LaunchPlan(sandbox.rest(template, config, host), steps, warnings)

    return prepare


def _clone(path: str, recursive: bool) -> int:
    try:
        return mounts.clone(path, recursive=recursive)
    except FileNotFoundError:
        raise RuntimeFault("invalid", f"bind source {path} does not exist") from None


class _SeenFrom:
    """Being in the mount namespace ``view``, where the bundle, its sources and the cgroups are; closes it."""

    def __init__(self, view: int) -> None:
        self._view = view
        self._own = -1

    def __enter__(self) -> None:
        self._own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(self._view, syscalls.CLONE_NEWNS)

    def __exit__(self, *_: object) -> None:
        syscalls.setns(self._own, syscalls.CLONE_NEWNS)
        os.close(self._own)
        os.close(self._view)
