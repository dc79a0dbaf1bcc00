"""crun as the peer of a start: an equivalent bundle (without a network), run, kept running, deleted.

"Equivalent": Docker's default config.json as Covey makes it for a container with a memory limit, its root the same
busybox, Docker's seccomp profile in OCI's form. Needs root and the package crun.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from worker.containers import defaults, seccomp

_NODEV = ["nosuid", "noexec", "nodev"]
_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}
_GO = {"x86_64": "amd64", "aarch64": "arm64"}


def bundle(rootfs: Path, cgroup: str, argv: list[str]) -> dict[str, Any]:
    """The config.json."""
    mounts: list[tuple[str, str, list[str]]] = [
        ("/proc", "proc", _NODEV),
        ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", [*_NODEV, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", _NODEV),
        ("/sys", "sysfs", [*_NODEV, "ro"]),
        ("/sys/fs/cgroup", "cgroup", [*_NODEV, "ro"]),
    ]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(rootfs)},
        "hostname": "bench",
        "process": {
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "env": [f"PATH={defaults.PATH}"],
            "args": argv,
            "capabilities": {key: list(defaults.CAPABILITIES) for key in ("bounding", "effective", "permitted")},
        },
        "mounts": [
            {"destination": destination, "type": kind, "source": kind, "options": options}
            for destination, kind, options in mounts
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "cgroupsPath": cgroup,
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    *(_device_rule(*rule) for rule in defaults.DEVICE_RULES),
                ],
                "memory": {"limit": 256 << 20},
                "pids": {"limit": defaults.PIDS_LIMIT},
                "cpu": {"shares": 512},
            },
            "maskedPaths": list(defaults.MASKED_PATHS),
            "readonlyPaths": list(defaults.READONLY_PATHS),
            "seccomp": oci_seccomp(json.loads(seccomp.default_text()), defaults.CAPABILITIES, os.uname().machine),
        },
    }


def _device_rule(kind: str, major: int, minor: int, access: str) -> dict[str, Any]:
    numbers = {key: number for key, number in (("major", major), ("minor", minor)) if number >= 0}
    return {"allow": True, "type": kind, "access": access, **numbers}


def oci_seccomp(profile: dict[str, Any], capabilities: tuple[str, ...], machine: str) -> dict[str, Any]:
    """Docker's profile as linux.seccomp: the rules whose conditions hold for these capabilities on this machine."""

    def holds(entry: dict[str, Any]) -> bool:
        wanted, unwanted = entry.get("includes") or {}, entry.get("excludes") or {}
        arch = _GO[machine]
        return (
            set(wanted.get("caps") or ()) <= set(capabilities)
            and (not wanted.get("arches") or arch in wanted["arches"])
            and not set(unwanted.get("caps") or ()) & set(capabilities)
            and arch not in (unwanted.get("arches") or ())
        )

    rules = []
    for entry in filter(holds, profile["syscalls"]):
        rule = {"names": entry["names"], "action": entry["action"], "args": entry.get("args") or []}
        rules.append({**rule, "errnoRet": entry["errnoRet"]} if entry.get("errnoRet") is not None else rule)
    return {"defaultAction": profile["defaultAction"], "architectures": _ARCHITECTURES[machine], "syscalls": rules}


class Crun:
    """``base``: where bundles and crun's own state lie (a tmpfs); ``parent``: the cgroup above its containers'."""

    def __init__(self, base: Path, rootfs: Path, parent: str) -> None:
        program = shutil.which("crun")
        if program is None:
            raise SystemExit("bench: no crun. Run: apt-get install --no-install-recommends crun")
        self.command = [program, "--root", str(base / "state"), "--cgroup-manager=cgroupfs"]
        self.base, self.parent = base, parent
        self._rootfs = rootfs

    def bundle(self, ident: str, *argv: str) -> None:
        """Write what ``run`` and ``spawn`` of that id will read."""
        directory = self.base / ident
        directory.mkdir(mode=0o700)
        config = bundle(self._rootfs, f"{self.parent}/{ident}", list(argv))
        (directory / "config.json").write_text(json.dumps(config))

    def run(self, ident: str) -> float:
        """Seconds of ``crun run``, from its fork to its end."""
        began = time.perf_counter()
        self._finish(self.spawn("run", ident), "run")
        return time.perf_counter() - began

    def spawn(self, verb: str, ident: str) -> subprocess.Popen[bytes]:
        """One of: run, run --detach, delete --force, begun."""
        options = {"run": ["run", "--bundle"], "start": ["run", "--detach", "--bundle"], "delete": ["delete", "--force"]}[verb]
        place = [str(self.base / ident)] if verb != "delete" else []
        return subprocess.Popen([*self.command, *options, *place, ident], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    @staticmethod
    def _finish(process: subprocess.Popen[bytes], what: str) -> None:
        if process.wait():
            raise SystemExit(f"bench: crun {what} ended with {process.returncode}")

    def many(self, verb: str, idents: list[str], flight: int) -> float:
        """Seconds until ``verb`` is done for all, with ``flight`` under way at a time."""
        began = time.perf_counter()
        waiting, running = list(idents), list[subprocess.Popen[bytes]]()
        while waiting or running:
            while waiting and len(running) < flight:
                running.append(self.spawn(verb, waiting.pop(0)))
            self._finish(running.pop(0), verb)
        return time.perf_counter() - began

    def forget(self, ident: str) -> None:
        shutil.rmtree(self.base / ident)
