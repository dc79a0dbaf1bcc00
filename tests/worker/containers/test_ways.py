"""Which containers may begin without the machine's mounts in sight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worker.containers import bundle, host_config, users
from worker.containers.ways import root_alone
from worker.runtime import orders
from worker.runtime.launch import Host

DIRECTORY = Path("/run/covey/containers/1")
ROOT = str(DIRECTORY / "rootfs")
CGROUP = ("cpu", "/sys/fs/cgroup/cpu/covey/1", ())


def planned(*mounts: dict[str, Any], **linux: Any) -> orders.Orders:
    config = {
        "root": {"path": ROOT, "readonly": True},
        "process": {"args": ["true"], "cwd": "/"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc"},
            {"destination": "/sys/fs/cgroup", "type": "cgroup"},
            {"destination": "/dev/shm", "type": "tmpfs"},
            *mounts,
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "pid", "network", "ipc", "uts", "cgroup")],
            "cgroupsPath": "/covey/1",
            "sysctl": {"net.ipv4.ip_forward": "0"},
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            **linux,
        },
    }
    return orders.of_container(config, Host(0, [CGROUP], ["/sys/fs/cgroup/cpu/covey/1/tasks"]), 1)


def bind(source: str, destination: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate"]}


FILES = [bind(f"{DIRECTORY}/{name}", f"/etc/{name}") for name in ("hostname", "hosts", "resolv.conf")]


def test_its_network_files_are_no_mounts() -> None:
    assert root_alone(planned(*FILES), DIRECTORY) == ROOT
    assert root_alone(planned(), DIRECTORY) == ROOT


@pytest.mark.parametrize("settings", [{}, {"Privileged": True}, {"Memory": 64 << 20, "ReadonlyRootfs": True}], ids=str)
def test_an_ordinary_container_of_the_daemon_is_such_a_one(settings: dict[str, Any]) -> None:
    inputs = bundle.Inputs(
        config={},
        host_config=host_config.completed(settings, 1),
        argv=["sh"],
        rootfs=ROOT,
        cgroup="/covey/1",
        user=users.User(0, 0, (), "/root"),
        hostname="box",
        files={f"/etc/{name}": f"{DIRECTORY}/{name}" for name in ("hostname", "hosts", "resolv.conf")},
    )
    given = orders.of_container(bundle.build(inputs), Host(0, [CGROUP], []), 1)
    assert root_alone(given, DIRECTORY) == ROOT


@pytest.mark.parametrize(
    "other",
    [
        bind("/srv", "/data"),
        bind(f"{DIRECTORY}/shm", "/dev/shm"),
        bind("/dev/shm", "/dev/shm"),
        bind("/run/covey/containers/2/hosts", "/etc/hosts"),
        bind(f"{DIRECTORY}/shm", "/etc/hosts"),
        bind("/usr/bin/tini", "/sbin/docker-init"),
    ],
    ids=lambda mount: f"{mount['source']} at {mount['destination']}",
)
def test_all_else_that_is_bound_may_be_one(other: dict[str, Any]) -> None:
    assert root_alone(planned(*FILES, other), DIRECTORY) == ""


@pytest.mark.parametrize(
    "linux",
    [
        {"rootfsPropagation": "rshared"},
        {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/run/netns/other"}]},
    ],
    ids=str,
)
def test_what_else_may_look_at_the_machines_mounts_begins_among_them(linux: dict[str, Any]) -> None:
    assert root_alone(planned(*FILES, **linux), DIRECTORY) == ""
