"""PURE: a container as clients see it: ContainerInspect, ContainerSummary, health, mounts (engine-api-v1.52).

It decides words and shapes, nothing else; ``Live`` carries what is not in the record.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from covey.clock import rfc3339
from worker.containers import log_options, record
from worker.containers.record import Container, Health, Mount


@dataclass(frozen=True)
class Live:
    """``directory`` is the container's on disk, ``run_directory`` that of its run.

    ``networks`` and ``ports`` are as the network room shows them now.
    """

    directory: str = ""
    run_directory: str = ""
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ports: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)
    sandbox: str = ""
    exec_ids: Sequence[str] = ()
    upper: Mapping[str, str] = field(default_factory=dict)
    image_name: str = ""
    size_rw: int | None = None
    size_root: int | None = None


def duration(seconds: float) -> str:
    """``3 minutes`` as Docker words it."""
    for limit, unit, one in ((60, 1, "1 second"), (3600, 60, "About a minute")):
        if seconds < 1:
            return "Less than a second"
        if seconds < limit:
            count = int(seconds // unit)
            return one if count == 1 else f"{count} {'seconds' if unit == 1 else 'minutes'}"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    for most, size, unit_name in ((48, 1, "hours"), (336, 24, "days"), (1440, 168, "weeks"), (17520, 720, "months")):
        if hours < most:
            return f"{hours // size} {unit_name}"
    return f"{int(seconds / 3600 / 24 / 365)} years"


def status_text(container: Container, now: float) -> str:
    """The STATUS column: ``Up 5 minutes (healthy)``."""
    state = container.state
    if state.running:
        text = f"Up {duration(now - state.started_at)}"
        if state.status == record.PAUSED:
            return f"{text} (Paused)"
        health = state.health.status if state.health else ""
        words = {"starting": "health: starting", "healthy": "healthy", "unhealthy": "unhealthy"}.get(health)
        return f"{text} ({words})" if words else text
    if state.status == record.RESTARTING:
        return f"Restarting ({state.exit_code}) {duration(now - state.finished_at)} ago"
    if state.status == record.REMOVING:
        return "Removal In Progress"
    if state.status == record.DEAD:
        return "Dead"
    if not state.finished_at:
        return "Created"
    return f"Exited ({state.exit_code}) {duration(now - state.finished_at)} ago"


def health_object(health: Health) -> dict[str, Any]:
    """State.Health."""
    return {
        "Status": health.status,
        "FailingStreak": health.failing_streak,
        "Log": [
            {"Start": rfc3339(one.start), "End": rfc3339(one.end), "ExitCode": one.exit_code, "Output": one.output}
            for one in health.log
        ],
    }


def state_object(container: Container) -> dict[str, Any]:
    """State. While it waits for its restart a container counts as running, as Docker's does."""
    state = container.state
    out: dict[str, Any] = {
        "Status": state.status,
        "Running": state.running or state.status == record.RESTARTING,
        "Paused": state.status == record.PAUSED,
        "Restarting": state.status == record.RESTARTING,
        "OOMKilled": state.oom_killed,
        "Dead": state.status == record.DEAD,
        "Pid": state.pid if state.running else 0,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339(state.started_at),
        "FinishedAt": rfc3339(state.finished_at),
    }
    if state.health is not None:
        out["Health"] = health_object(state.health)
    return out


def mount_object(mount: Mount) -> dict[str, Any]:
    """A MountPoint."""
    out: dict[str, Any] = {"Type": mount.type}
    if mount.type == "volume":
        out["Name"] = mount.name
    out["Source"], out["Destination"] = mount.source, mount.destination
    if mount.type == "volume":
        out["Driver"] = mount.driver
    out.update({"Mode": mount.mode, "RW": mount.read_write, "Propagation": mount.propagation})
    return out


def shown_mounts(container: Container) -> list[Mount]:
    """All but what ``--tmpfs`` asked for, which Docker shows in HostConfig only."""
    plain = container.host_config.get("Tmpfs") or {}
    return [mount for mount in container.mounts if mount.type != "tmpfs" or mount.destination not in plain]


def _endpoints(container: Container, live: Live) -> dict[str, Any]:
    """The networks as attached, or as asked for while nothing runs."""
    if live.networks:
        return {name: dict(one) for name, one in live.networks.items()}
    out: dict[str, Any] = {}
    for name, wanted in container.networks.items():
        out[name] = {
            "IPAMConfig": wanted.get("IPAMConfig"),
            "Links": wanted.get("Links"),
            "Aliases": wanted.get("Aliases"),
            "MacAddress": "",
            "DriverOpts": wanted.get("DriverOpts"),
            "GwPriority": wanted.get("GwPriority") or 0,
            "NetworkID": wanted.get("NetworkID") or "",
            "EndpointID": "",
            "Gateway": "",
            "IPAddress": "",
            "IPPrefixLen": 0,
            "IPv6Gateway": "",
            "GlobalIPv6Address": "",
            "GlobalIPv6PrefixLen": 0,
            "DNSNames": None,
        }
    return out


def _ports(container: Container, live: Live) -> dict[str, Any]:
    if not container.state.running:
        return {}
    ports: dict[str, Any] = dict.fromkeys(container.config.get("ExposedPorts") or {})
    ports.update({key: [dict(one) for one in bindings] for key, bindings in live.ports.items()})
    return ports


def network_settings(container: Container, live: Live) -> dict[str, Any]:
    """NetworkSettings; the flat fields of the default bridge are what clients before 1.52 read."""
    networks = _endpoints(container, live)
    bridge = networks.get("bridge") or {}
    running = container.state.running
    return {
        "Bridge": "",
        "SandboxID": live.sandbox if running else "",
        "SandboxKey": f"/proc/{container.state.pid}/ns/net" if running else "",
        "Ports": _ports(container, live),
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": bridge.get("EndpointID", ""),
        "Gateway": bridge.get("Gateway", ""),
        "GlobalIPv6Address": bridge.get("GlobalIPv6Address", ""),
        "GlobalIPv6PrefixLen": bridge.get("GlobalIPv6PrefixLen", 0),
        "IPAddress": bridge.get("IPAddress", ""),
        "IPPrefixLen": bridge.get("IPPrefixLen", 0),
        "IPv6Gateway": bridge.get("IPv6Gateway", ""),
        "MacAddress": bridge.get("MacAddress", ""),
        "Networks": networks,
    }


def inspect(container: Container, live: Live) -> dict[str, Any]:
    """ContainerInspectResponse."""
    directory = live.directory
    out: dict[str, Any] = {
        "Id": container.id,
        "Created": rfc3339(container.created),
        "Path": container.path,
        "Args": list(container.args),
        "State": state_object(container),
        "Image": container.image_id,
        "ResolvConfPath": f"{live.run_directory}/resolv.conf",
        "HostnamePath": f"{live.run_directory}/hostname",
        "HostsPath": f"{live.run_directory}/hosts",
        "LogPath": f"{directory}/{container.id}-json.log" if log_options.driver_of(container) == "json-file" else "",
        "Name": f"/{container.name}",
        "RestartCount": container.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": list(live.exec_ids) or None,
        "HostConfig": container.host_config,
        "GraphDriver": {"Name": "overlay2", "Data": dict(live.upper) or None},
        "Mounts": [mount_object(mount) for mount in shown_mounts(container)],
        "Config": container.config,
        "NetworkSettings": network_settings(container, live),
    }
    if live.size_rw is not None:
        out["SizeRw"], out["SizeRootFs"] = live.size_rw, live.size_root
    return out


def _port_list(container: Container, live: Live) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for key, bindings in sorted(_ports(container, live).items()):
        number, _, protocol = key.partition("/")
        for binding in bindings or []:
            out.append(
                {
                    "IP": binding["HostIp"],
                    "PrivatePort": int(number),
                    "PublicPort": int(binding["HostPort"]),
                    "Type": protocol or "tcp",
                }
            )
        if not bindings and number.isdigit():
            out.append({"PrivatePort": int(number), "Type": protocol or "tcp"})
    return out


def command_text(container: Container) -> str:
    """The COMMAND column: words with spaces are quoted."""
    words = [container.path, *container.args]
    return " ".join(shlex.quote(word) if " " in word or not word else word for word in words)


def summary(container: Container, live: Live, now: float) -> dict[str, Any]:
    """ContainerSummary."""
    health = container.state.health
    out: dict[str, Any] = {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": live.image_name or container.config.get("Image") or container.image_id,
        "ImageID": container.image_id,
        "Command": command_text(container),
        "Created": int(container.created),
        "Ports": _port_list(container, live),
        "Labels": container.labels,
        "State": container.state.status,
        "Status": status_text(container, now),
        "HostConfig": {"NetworkMode": container.network_mode},
        "NetworkSettings": {"Networks": _endpoints(container, live)},
        "Mounts": [mount_object(mount) for mount in shown_mounts(container)],
        "Health": {
            "Status": health.status if health else "none",
            "FailingStreak": health.failing_streak if health else 0,
        },
    }
    if live.size_rw is not None:
        out["SizeRw"], out["SizeRootFs"] = live.size_rw, live.size_root
    return out
