"""What an engine is told when it starts: paths, names, limits. Data only."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from covey.model.resources import Resources
from worker.containers.policy import Policy
from worker.containers.remap import Remap
from worker.containers.runtimes import OWN
from worker.images.registry.endpoints import RegistryOptions
from worker.images.retention import Policy as Retention
from worker.network.networks import DEFAULT_BRIDGE


@dataclass(frozen=True)
class EngineOptions:
    """``zygote_socket``: a zygote that somebody else supervises; None, and the engine starts or adopts its own.

    ``require_seccomp``: refuse to start a container whose filter cannot be compiled; False starts it
    without one and says so in the log. ``threads``: how many blocking calls may run at once. ``warm_pool``: how many
    sandboxes are kept ready for containers to come (see pool.py); 0 makes each when it is asked for. ``runtimes``: other
    OCI runtimes by name and path. ``generic``: what the node says it has of generic resources. ``registry``: how registries
    are reached. ``retention``: which images go by themselves, looked at every ``tidy_every`` seconds.
    """

    data_root: Path
    exec_root: Path
    cgroup_parent: str = "/covey"
    name: str = field(default_factory=socket.gethostname)
    zygote_socket: Path | None = None
    require_seccomp: bool = True
    threads: int = 8
    warm_pool: int = 0
    nft_table: str = "covey"
    default_bridge: str = DEFAULT_BRIDGE
    network_namespace: str | None = None
    labels: tuple[str, ...] = ()
    generic: Resources = field(default_factory=Resources)
    runtimes: Mapping[str, str] = field(default_factory=dict)
    default_runtime: str = OWN
    policy: Policy = field(default_factory=Policy)
    remap: Remap | None = None
    registry: RegistryOptions = field(default_factory=RegistryOptions)
    retention: Retention = field(default_factory=Retention)
    tidy_every: float = 300.0

    def run_directory(self, container_id: str) -> Path:
        """``<run>/containers/<id>``: bundle, root mount point, shim socket."""
        return Path(f"{self.exec_root}/containers/{container_id}")
