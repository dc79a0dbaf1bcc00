"""What a sandbox has and who may take it over is data; together its two halves make what an ordinary start makes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from worker.kernel import syscalls
from worker.runtime import launch, sandbox
from worker.runtime.capabilities import NAMES
from worker.runtime.launch import Host, Step

HOST = Host((1 << len(NAMES)) - 1, [("pids", "/sys/fs/cgroup/pids/covey/x", ())], ["/sys/fs/cgroup/pids/covey/x/tasks"])
TEMPLATE: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "root": {"path": "/"},
    "process": {"cwd": "/", "args": ["true"], "env": []},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
    ],
    "linux": {
        "namespaces": [{"type": kind} for kind in ("mount", "pid", "network", "ipc", "uts", "cgroup")],
        "cgroupsPath": "/covey/sandbox-1",
        "resources": {"devices": [{"allow": False, "access": "rwm"}], "pids": {"limit": 4096}},
        "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "devices": [],
    },
}


def bundle(**changes: Any) -> dict[str, Any]:
    """A container like the template's; ``linux__x`` and ``mount`` change or add."""
    config = copy.deepcopy(TEMPLATE)
    config["root"] = {"path": "/run/c/rootfs", "readonly": True}
    config["hostname"] = "box"
    config["linux"]["cgroupsPath"] = "/covey/c"
    config["mounts"].append({"destination": "/data", "type": "bind", "source": "/d", "options": ["rbind", "ro"]})
    for key, value in changes.items():
        if key == "mount":
            config["mounts"].append(value)
        elif key.startswith("linux__"):
            config["linux"][key.removeprefix("linux__")] = value
        else:
            config[key] = value
    return config


def test_the_usual_fits() -> None:
    assert sandbox.fits(TEMPLATE, bundle())
    limits = {**TEMPLATE["linux"]["resources"], "memory": {"limit": 1 << 28}, "pids": {"limit": 5}}
    config = bundle(linux__resources=limits)
    assert sandbox.fits(TEMPLATE, config)
    assert sandbox.difference(TEMPLATE, config) == {"memory": {"limit": 1 << 28}, "pids": {"limit": 5}}


UNFIT: dict[str, dict[str, Any]] = {
    "another's network": {"linux__namespaces": [*TEMPLATE["linux"]["namespaces"][:-1], {"type": "network", "path": "/n"}]},
    "the host's network": {"linux__namespaces": [one for one in TEMPLATE["linux"]["namespaces"] if one["type"] != "network"]},
    "a user namespace": {"linux__namespaces": [*TEMPLATE["linux"]["namespaces"], {"type": "user"}]},
    "no masks": {"linux__maskedPaths": []},
    "other read-only paths": {"linux__readonlyPaths": ["/proc/sys", "/proc/fs"]},
    "a device": {"linux__devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3}]},
    "device rules": {"linux__resources": {"devices": [{"allow": True, "access": "rwm"}], "pids": {"limit": 4096}}},
    "no limit where there is one": {"linux__resources": {"devices": [{"allow": False, "access": "rwm"}]}},
    "a sysctl": {"linux__sysctl": {"net.ipv4.ip_forward": "1"}},
    "propagation": {"linux__rootfsPropagation": "shared"},
    "hooks": {"hooks": {"poststop": [{"path": "/bin/true"}]}},
    "a mount under the masks": {"mount": {"destination": "/proc/../proc//kcore", "type": "bind", "source": "/x"}},
    "a mount in /sys": {"mount": {"destination": "sys/fs/x", "type": "tmpfs"}},
    "another /proc": {"mounts": [{"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]}]},
    "what nobody knows yet": {"linux__futureThing": {"x": 1}},
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_differs_in_what_was_made_ahead_does_not_fit(case: str) -> None:
    assert not sandbox.fits(TEMPLATE, bundle(**UNFIT[case]))


def spelled(steps: list[Step]) -> list[tuple[str, str]]:
    return [(step.name, str(sorted(step.arguments.items(), key=lambda item: item[0]))) for step in steps]


def test_both_halves_do_what_an_ordinary_start_does() -> None:
    """Each step of the plan is in one of them; what they do differently is the way of the trees into the root."""
    config = bundle()
    ordinary = spelled(launch.plan_container(config, HOST).create)
    halves = spelled(sandbox.ahead(TEMPLATE, HOST, "/p") + sandbox.rest(TEMPLATE, config, HOST))
    differently = {"unshare", "private_mounts", "open_root", "join_cgroup", "pivot"}
    assert sorted(one for one in ordinary if one[0] not in differently) == sorted(
        one for one in halves if one[0] not in differently | {"skeleton", "take_root", "take_tree"}
    )


def test_order_in_a_sandbox() -> None:
    names = [step.name for step in sandbox.ahead(TEMPLATE, HOST, "/p")]
    assert names.index("join_cgroup") < names.index("unshare"), "the cgroup namespace's root is the sandbox's own group"
    assert names.index("sysctl") < names.index("readonly_path") < names.index("pivot")
    later = [step.name for step in sandbox.rest(TEMPLATE, bundle(), HOST)]
    assert later[:2] == ["oom_score_adj", "take_root"]
    assert later.index("take_tree") < later.index("mount_bind") < later.index("hostname") < later.index("pivot")
    assert later[-1] == "readonly_root"
    unshared = next(step for step in sandbox.ahead(TEMPLATE, HOST, "/p") if step.name == "unshare")
    assert unshared.arguments["flags"] & syscalls.CLONE_NEWCGROUP
    assert not unshared.arguments["flags"] & syscalls.CLONE_NEWPID


def test_sources_are_the_root_and_every_bind_as_often_as_it_is_used() -> None:
    twice = {"destination": "/again", "type": "bind", "source": "/d", "options": ["bind"]}
    assert sandbox.sources(TEMPLATE, bundle(mount=twice)) == [("/run/c/rootfs", True), ("/d", True), ("/d", False)]
