"""PURE: all that is decided of a container's first process before it is there, as data that can be sent to it.

What a process works out after its fork it works out on pages it has to copy first, at ten times the price. So whoever
asks for a container together with its shim decides beforehand, and the process carries out (worker.runtime.prepare).
"""

from __future__ import annotations

from worker.kernel.bare import Any
from worker.runtime import birth, launch, limits
from worker.runtime.launch import Host, LaunchPlan


class GroupOrders:
    """How a cgroup is set up. ``files``: its limits. On v2: ``devices``, OCI rules to filter by; ``owner``, a uid or None."""

    __slots__ = ("devices", "files", "owner")

    def __init__(self, files: list[limits.File], devices: list[dict[str, Any]], owner: int | None) -> None:
        self.files = files
        self.devices = devices
        self.owner = owner


class Orders:
    """``cgroup``: its path. ``pipes_owner``: the uid, as the host counts, that must be able to open its stdio again."""

    __slots__ = ("cgroup", "group", "pipes_owner", "plan")

    def __init__(self, cgroup: str, group: GroupOrders, pipes_owner: int, plan: LaunchPlan) -> None:
        self.cgroup = cgroup
        self.group = group
        self.pipes_owner = pipes_owner
        self.plan = plan

    def to_plain(self) -> tuple[Any, ...]:
        """Of exact built-in types, as ``marshal`` takes them."""
        group, plan = self.group, self.plan
        steps = [tuple(step) for step in plan.create], [tuple(step) for step in plan.start]
        return self.cgroup, (group.files, group.devices, group.owner), self.pipes_owner, (*steps, plan.warnings)

    @classmethod
    def from_plain(cls, plain: tuple[Any, ...]) -> Orders:
        cgroup, group, pipes_owner, plan = plain
        return cls(cgroup, GroupOrders(*group), pipes_owner, LaunchPlan(*plan))


def of_group(config: dict[str, Any], version: int) -> GroupOrders:
    """``version``: of the cgroups this machine has. Raises SpecFault."""
    resources = config["linux"].get("resources") or {}
    files = limits.files(limits.writes(resources, version))
    if version == 1:
        return GroupOrders(files, [], None)
    return GroupOrders(files, resources.get("devices") or [], launch.cgroup_owner(config))


def of_container(config: dict[str, Any], host: Host, version: int) -> Orders:
    """For a checked config without a user namespace of its own. Raises SpecFault."""
    return Orders(
        config["linux"]["cgroupsPath"],
        of_group(config, version),
        birth.host_uid(config["linux"], config["process"]),
        launch.plan_container(config, host),
    )
