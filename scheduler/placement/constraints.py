"""What constraints and platforms see of a node, and whether they allow it. Names are SwarmKit's (see covey.model.filters)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from covey.model.filters import Constraint
from covey.model.spec import TaskSpec
from scheduler.snapshot import NodeView

#: Names of one architecture in images and in uname (origin: SwarmKit's platform filter).
_SAME = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386", "armv7l": "arm", "armv6l": "arm"}


def node_attributes(view: NodeView) -> Mapping[str, str]:
    """Every attribute a constraint may name."""
    attributes = {
        "node.id": view.id,
        "node.hostname": view.hostname,
        "node.role": view.node.role,
    }
    attributes.update((f"node.labels.{name}", value) for name, value in view.node.labels.items())
    if view.info is not None:
        said = view.info.description
        attributes["node.platform.os"] = said.os
        attributes["node.platform.arch"] = said.architecture
        attributes["node.ip"] = view.info.address
        attributes.update((f"engine.labels.{name}", value) for name, value in said.engine_labels.items())
    return attributes


def allows(constraints: Sequence[Constraint], view: NodeView) -> bool:
    """Whether the node meets every constraint."""
    if not constraints:
        return True
    attributes = node_attributes(view)
    return all(constraint.matches(attributes) for constraint in constraints)


def canonical(architecture: str) -> str:
    """One name for an architecture."""
    return _SAME.get(architecture.lower(), architecture.lower())


def fits_platform(platforms: Iterable[tuple[str, str]], view: NodeView) -> bool:
    """Whether the node is one of ``platforms`` (none given: any; an empty part of one: any)."""
    wanted = tuple(platforms)
    if not wanted or view.info is None:
        return True
    said = view.info.description
    return any(
        (not os or os.lower() == said.os.lower()) and (not arch or canonical(arch) == canonical(said.architecture))
        for os, arch in wanted
    )


#: Network drivers that every node has: the workers make the cluster's own networks themselves.
_EVERYWHERE = frozenset({"", "bridge", "host", "ingress", "none", "null", "overlay"})


def has_plugins(spec: TaskSpec, network_drivers: Iterable[str], view: NodeView) -> bool:
    """Whether the node says it has every plugin the task needs. Of logging and network it may say nothing at all."""
    if view.info is None:
        return True
    held = frozenset(view.info.description.plugins)
    kinds = {kind for kind, _ in held}
    wanted = [("Network", driver) for driver in network_drivers if driver not in _EVERYWHERE]
    return all(each in held or (each[0] != "Volume" and each[0] not in kinds) for each in (*spec.plugins, *wanted))
