"""What this runtime can do on a machine, as OCI features.md has it (the answer of ``covey-runtime features``).

``document`` is pure; ``facts`` asks the kernel.
"""

from __future__ import annotations

import os
from typing import Any

from worker.runtime import capabilities, hooks, labels, mount_options, seccomp_compile
from worker.runtime.cgroups import Hierarchy, hierarchies
from worker.runtime.namespaces import FLAGS, PROC_NAMES

OLDEST, NEWEST = "1.0.0", "1.3.0"
_IDMAP_SINCE = (5, 12)


class Facts:
    """What ``document`` needs to know of a machine."""

    __slots__ = ("cgroups", "kernel", "last_capability", "machine", "modules", "namespaces", "seccomp_actions")

    def __init__(
        self,
        machine: str,
        kernel: tuple[int, int],
        namespaces: set[str],
        last_capability: int,
        seccomp_actions: set[str],
        cgroups: list[Hierarchy],
        modules: set[str],
    ) -> None:
        self.machine = machine
        self.kernel = kernel
        self.namespaces = namespaces
        self.last_capability = last_capability
        self.seccomp_actions = seccomp_actions
        self.cgroups = cgroups
        self.modules = modules


def facts() -> Facts:
    """This machine's."""
    major, minor = os.uname().release.split(".")[:2]
    return Facts(
        os.uname().machine,
        (int(major), int("".join(character for character in minor if character.isdecimal()))),
        {kind for kind in FLAGS if os.path.exists(f"/proc/self/ns/{PROC_NAMES[kind]}")},
        int(_read("/proc/sys/kernel/cap_last_cap") or 0),
        set(_read("/proc/sys/kernel/seccomp/actions_avail").split()),
        hierarchies(),
        {module for module in ("apparmor", "selinux") if labels.present(module)},
    )


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def document(facts: Facts) -> dict[str, Any]:
    """The features structure (features-schema.json)."""
    versions = {hierarchy.version for hierarchy in facts.cgroups}
    return {
        "ociVersionMin": OLDEST,
        "ociVersionMax": NEWEST,
        "hooks": list(hooks.KINDS),
        "mountOptions": list(mount_options.KNOWN),
        "linux": {
            "namespaces": sorted(facts.namespaces),
            "capabilities": list(capabilities.NAMES[: facts.last_capability + 1]),
            "cgroup": {
                "v1": 1 in versions,
                "v2": 2 in versions,
                "systemd": False,
                "systemdUser": False,
                "rdma": any("rdma" in hierarchy.controllers for hierarchy in facts.cgroups) or 2 in versions,
            },
            "seccomp": _seccomp(facts),
            "apparmor": {"enabled": "apparmor" in facts.modules},
            "selinux": {"enabled": "selinux" in facts.modules},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": facts.kernel >= _IDMAP_SINCE}},
            "netDevices": {"enabled": True},
        },
    }


def _seccomp(facts: Facts) -> dict[str, Any]:
    kernel_names = {
        "SCMP_ACT_ALLOW": "allow",
        "SCMP_ACT_ERRNO": "errno",
        "SCMP_ACT_KILL": "kill_thread",
        "SCMP_ACT_KILL_PROCESS": "kill_process",
        "SCMP_ACT_KILL_THREAD": "kill_thread",
        "SCMP_ACT_LOG": "log",
        "SCMP_ACT_NOTIFY": "user_notif",
        "SCMP_ACT_TRACE": "trace",
        "SCMP_ACT_TRAP": "trap",
    }
    known = seccomp_compile.architectures(facts.machine)
    if not facts.seccomp_actions or not known:
        return {"enabled": False}
    return {
        "enabled": True,
        "actions": [name for name in seccomp_compile.ACTIONS if kernel_names[name] in facts.seccomp_actions],
        "operators": list(seccomp_compile.OPERATORS),
        "archs": [f"SCMP_ARCH_{name}" for name in known],
        "knownFlags": list(seccomp_compile.FLAGS),
        "supportedFlags": list(seccomp_compile.FLAGS),
    }
