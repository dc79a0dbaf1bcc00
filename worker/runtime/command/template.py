"""The verb spec: a config.json to start from, with Docker's capabilities and what it hides of /proc."""

from __future__ import annotations

import json
import os
from typing import Any

from worker.runtime.command.arguments import Arguments
from worker.runtime.command.report import CommandError, Log

_CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
    "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_NOSUID = ["nosuid", "noexec", "nodev"]


def spec(arguments: Arguments, log: Log) -> int:
    path = os.path.join(arguments.options["bundle"] or ".", "config.json")
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump(template(rootless=arguments.options["rootless"]), file, indent=2)
            file.write("\n")
    except FileExistsError:
        raise CommandError(f"file {path} exists: remove it first") from None
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
    return 0


def template(*, rootless: bool) -> dict[str, Any]:
    """A config for a shell with a terminal; ``rootless``: in a user namespace whose root is the caller."""
    from worker.runtime.command.main import SPEC_VERSION

    namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
    linux: dict[str, Any] = {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in namespaces],
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READONLY),
    }
    if rootless:
        linux["namespaces"] = [{"type": kind} for kind in (*namespaces[:1], *namespaces[2:], "user")]
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getegid(), "size": 1}]
        del linux["resources"]
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {name: list(_CAPABILITIES) for name in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "covey",
        "mounts": _mounts(rootless=rootless),
        "linux": linux,
    }


def _mounts(*, rootless: bool) -> list[dict[str, Any]]:
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *([] if rootless else ["gid=5"])]
    sys_mount = (
        {"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "ro", *_NOSUID]}
        if rootless
        else {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_NOSUID, "ro"]}
    )
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*_NOSUID, "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": list(_NOSUID)},
        sys_mount,
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": [*_NOSUID, "relatime", "ro"],
        },
    ]
