"""The node itself over the Engine API: version, info, events, disk usage, and honest refusals."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from covey.clock import rfc3339
from covey.engine_api import framing, versions
from covey.engine_api.answers import Answer, Stream
from covey.engine_api.call import Call
from covey.engine_api.server import Handler
from covey.errors import InvalidArgument, NotFound
from covey.model.resources import show_generic
from worker.containers import events, runtimes
from worker.containers.engine import Engine
from worker.images import views as image_views
from worker.images.registry import endpoints
from worker.rootfs import views as volume_views
from worker.routes import usage
from worker.routes.times import seconds

INACTIVE_SWARM = {
    "NodeID": "",
    "NodeAddr": "",
    "LocalNodeState": "inactive",
    "ControlAvailable": False,
    "Error": "",
    "RemoteManagers": None,
}


def operating_system() -> str:
    """PRETTY_NAME of os-release, or ``Linux``."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            for line in Path(path).read_text(encoding="utf-8").splitlines():
                if line.startswith("PRETTY_NAME="):
                    return line.partition("=")[2].strip('"')
        except OSError:
            continue
    return "Linux"


def cgroup_version() -> str:
    """ "2" where the unified hierarchy is all there is, else "1"."""
    return "2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "1"


class System:
    """One method a route. ``release`` is Covey's version; ``swarm`` is filled in by who knows the cluster."""

    def __init__(self, engine: Engine, release: str) -> None:
        self._engine = engine
        self._release = release
        self._started = engine.clock.now()

    def handlers(self) -> dict[str, Handler]:
        return {
            "system_version": self.version,
            "system_info": self.info,
            "system_events": self.events,
            "system_df": self.usage,
            "plugin_list": self.plugins,
            "plugin_inspect": self.plugin,
        }

    async def version(self, call: Call) -> Answer:
        uname = os.uname()
        details = {
            "ApiVersion": versions.API_VERSION,
            "MinAPIVersion": versions.MINIMUM_API_VERSION,
            "Os": "linux",
            "Arch": architecture(),
            "KernelVersion": uname.release,
            "Experimental": "false",
            "GitCommit": "",
            "GoVersion": f"none (Python {platform.python_version()})",
            "BuildTime": "",
        }
        return {
            "Platform": {"Name": "Covey"},
            "Components": [{"Name": "Engine", "Version": self._release, "Details": details}],
            "Version": self._release,
            **{key: value for key, value in details.items() if key != "Experimental"},
        }

    async def info(self, call: Call) -> Answer:
        return node_info(self._engine, self._release)

    async def events(self, call: Call) -> Answer:
        filters = call.filters(events.FILTERS)
        now = self._engine.clock.now()
        since = seconds(call.text("since"), now) if call.text("since") else None
        until = seconds(call.text("until"), now) if call.text("until") else None
        found = self._engine.events.stream(since, until, filters)

        async def lines() -> AsyncIterator[bytes]:
            async for event in found:
                yield framing.line(event)

        return Stream(lines())

    async def usage(self, call: Call) -> Answer:
        wanted = set(call.texts("type")) or set(usage.TYPES)
        for kind in wanted - set(usage.TYPES):
            raise InvalidArgument(f"unknown object type: {kind}")
        rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in wanted}
        if "image" in wanted:
            rows["image"] = await self._image_rows()
        if "container" in wanted:
            rows["container"] = await self._engine.list(everything=True, size=True)
        if "volume" in wanted:
            rows["volume"] = await self._volume_rows()
        if "build-cache" in wanted:
            steps = await self._engine.host.run(self._engine.images.cached_steps)
            rows["build-cache"] = [image_views.build_cache(step, size) for step, size in steps]
        layers = await self._engine.host.run(self._engine.images.layers_size)
        if versions.at_least(call.version, "1.52"):
            return usage.summed(rows, layers, call.boolean("verbose"))
        return usage.legacy(rows, layers)

    async def _image_rows(self) -> list[dict[str, Any]]:
        host, images = self._engine.host, self._engine.images
        users = host.users_of_images()
        rows = []
        for one in await host.run(images.list):
            shared = await host.run(images.shared_size, one)
            rows.append(image_views.image_summary(one, containers=len(users.get(one.id, ())), shared_size=shared))
        return rows

    async def _volume_rows(self) -> list[dict[str, Any]]:
        host, volumes = self._engine.host, self._engine.volumes
        holders = host.users_of_volumes()
        rows = []
        for one in await host.run(volumes.list):
            size = await host.run(volumes.size, one.name)
            rows.append(volume_views.volume(one, size=size, users=len(holders.get(one.name, ()))))
        return rows

    async def plugins(self, call: Call) -> Answer:
        return []

    async def plugin(self, call: Call) -> Answer:
        raise NotFound(f'plugin "{call.params["name"]}" not found')


def architecture() -> str:
    """GOARCH of this machine."""
    from worker.images.image import host_architecture

    return host_architecture()


#: What a node of ours has, whatever the machine.
FIXED: Mapping[str, Any] = {
    "Driver": "overlay2",
    "DriverStatus": [["Backing Filesystem", "extfs"], ["Supports d_type", "true"], ["Native Overlay Diff", "true"]],
    "Plugins": {
        "Volume": ["local"],
        "Network": ["bridge", "host", "null"],
        "Authorization": None,
        "Log": ["json-file", "local", "none"],
    },
    "MemoryLimit": True,
    "SwapLimit": True,
    "CpuCfsPeriod": True,
    "CpuCfsQuota": True,
    "CPUShares": True,
    "CPUSet": True,
    "PidsLimit": True,
    "Debug": False,
    "NGoroutines": 0,
    "LoggingDriver": "json-file",
    "CgroupDriver": "cgroupfs",
    "OSVersion": "",
    "OSType": "linux",
    "IndexServerAddress": "https://index.docker.io/v1/",
    "HttpProxy": "",
    "HttpsProxy": "",
    "NoProxy": "",
    "ExperimentalBuild": False,
    "LiveRestoreEnabled": True,
    "Isolation": "",
    "InitBinary": "docker-init",
    "ContainerdCommit": {"ID": ""},
    "RuncCommit": {"ID": ""},
    "InitCommit": {"ID": ""},
    "CDISpecDirs": [],
    "Warnings": None,
}


SECURITY = ("name=seccomp,profile=builtin", "name=cgroupns")


def node_info(engine: Engine, release: str) -> dict[str, Any]:
    """SystemInfo of this node; ``Swarm`` says inactive."""
    uname = os.uname()
    options = engine.options
    return {
        "ID": node_identity(options.data_root),
        **engine.counts(),
        **FIXED,
        "Runtimes": runtimes.shown(options.runtimes),
        "DefaultRuntime": options.default_runtime,
        "Images": engine.images.statistics()["images"],
        "OomKillDisable": cgroup_version() == "1",
        "IPv4Forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1",
        "NFd": len(os.listdir("/proc/self/fd")),
        "RegistryConfig": _registry_config(options.registry),
        "SystemTime": rfc3339(engine.clock.now()),
        "CgroupVersion": cgroup_version(),
        "NEventsListener": engine.events.statistics()["listeners"],
        "KernelVersion": uname.release,
        "OperatingSystem": operating_system(),
        "Architecture": uname.machine,
        "NCPU": os.cpu_count() or 1,
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "DockerRootDir": str(options.data_root),
        "Name": options.name,
        "Labels": list(options.labels),
        "GenericResources": show_generic(options.generic) or None,
        "SecurityOptions": [*SECURITY, *(["name=userns"] if options.remap else [])],
        "ServerVersion": release,
        "Swarm": dict(INACTIVE_SWARM),
    }


def _registry_config(options: endpoints.RegistryOptions) -> dict[str, Any]:
    """RegistryServiceConfig: which registries may be insecure, and who stands for Docker Hub."""
    hub = {"Name": "docker.io", "Mirrors": list(options.mirrors), "Secure": True, "Official": True}
    names = [one for one in options.insecure if "/" not in one]
    others = {name: {"Name": name, "Mirrors": [], "Secure": False, "Official": False} for name in names}
    return {
        "InsecureRegistryCIDRs": [*endpoints.LOOPBACK, *(one for one in options.insecure if "/" in one)],
        "IndexConfigs": {"docker.io": hub, **others},
        "Mirrors": list(options.mirrors),
    }


def node_identity(data_root: Path) -> str:
    """An id of this engine that lasts: from the machine's id and the data directory."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    digest = hashlib.sha256(f"{machine}\0{data_root}".encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"
