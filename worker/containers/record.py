"""What the engine keeps of a container on disk: one versioned record, config and state together.

Data only. ``config`` and ``host_config`` hold Docker's JSON objects as they were resolved at create (image defaults
merged in, limits adjusted); who changes them is elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from worker.kernel import trees

CREATED, RUNNING, PAUSED, RESTARTING = "created", "running", "paused", "restarting"
MARK = "running"
SERVICE_LABEL = "com.docker.swarm.service.id"
"""On the container of a task: its service."""
EXITED, REMOVING, DEAD = "exited", "removing", "dead"


class Probe(msgspec.Struct, kw_only=True):
    """One finished health check; ``output`` is cut to 4096 bytes."""

    start: float
    end: float
    exit_code: int
    output: str


class Health(msgspec.Struct, kw_only=True):
    """``status``: none | starting | healthy | unhealthy; ``log`` holds the last five probes."""

    status: str = "starting"
    failing_streak: int = 0
    log: list[Probe] = msgspec.field(default_factory=list)


class State(msgspec.Struct, kw_only=True):
    """``status``: created | running | paused | restarting | exited | removing | dead. Times: epoch seconds, 0 never."""

    status: str = CREATED
    pid: int = 0
    pid_start: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_at: float = 0.0
    finished_at: float = 0.0
    health: Health | None = None

    @property
    def running(self) -> bool:
        """Whether a process is there: paused counts."""
        return self.status in (RUNNING, PAUSED)


class Mount(msgspec.Struct, kw_only=True):
    """A resolved mount point. ``type``: bind | volume | tmpfs. ``options`` are OCI mount options beside ro and propagation."""

    type: str
    destination: str
    source: str = ""
    name: str = ""
    driver: str = ""
    mode: str = ""
    read_write: bool = True
    propagation: str = ""
    options: list[str] = msgspec.field(default_factory=list)
    copy: bool = False
    must_exist: bool = False
    anonymous: bool = False


class Container(msgspec.Struct, kw_only=True):
    """A container. ``path`` and ``args`` are the process; ``owner`` is the task it belongs to, or "".

    ``restart_delay``: seconds between the last exit and the restart that its policy asked for.
    ``networks``: name → EndpointSettings as asked for, with an extra "Service"; ``port_group``: see network PortBinding.
    """

    id: str
    name: str
    created: float
    image_id: str
    config: dict[str, Any]
    host_config: dict[str, Any]
    networks: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    path: str = ""
    args: list[str] = msgspec.field(default_factory=list)
    mounts: list[Mount] = msgspec.field(default_factory=list)
    state: State = msgspec.field(default_factory=State)
    restart_count: int = 0
    restart_delay: float = 0.0
    manually_stopped: bool = False
    owner: str = ""
    port_group: str = ""
    version: int = 1

    @property
    def short(self) -> str:
        return self.id[:12]

    @property
    def tty(self) -> bool:
        return bool(self.config.get("Tty"))

    @property
    def network_mode(self) -> str:
        return str(self.host_config.get("NetworkMode") or "default")

    @property
    def labels(self) -> dict[str, str]:
        return self.config.get("Labels") or {}


def mark_running(run_directory: Path, since: float) -> None:
    """Note that the container was told to run: its run directory lives as long as the boot, its record may say less."""
    trees.overwrite(f"{run_directory}/{MARK}", repr(since).encode())


def unmark_running(run_directory: Path) -> None:
    """Its end is on record."""
    (run_directory / MARK).unlink(missing_ok=True)


def marked_running(run_directory: Path) -> float | None:
    """Since when it runs by the mark; None without one."""
    try:
        return float((run_directory / MARK).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def encode(container: Container) -> bytes:
    """The record as JSON text."""
    return msgspec.json.encode(container)


def decode(data: bytes) -> Container:
    """The record of ``data``. ValueError when it is none, or of a later version than this release reads."""
    container = msgspec.json.decode(data, type=Container)
    if container.version != 1:
        raise ValueError(f"container record has version {container.version}, this release reads 1")
    return container
