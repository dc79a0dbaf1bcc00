"""`scripts/bench posture` as a test: a default container of Covey is nowhere weaker than one of Debian's dockerd."""

from __future__ import annotations

import copy
import importlib
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module")
def posture() -> ModuleType:
    """The table's module; it finds its neighbours beside itself."""
    sys.path.insert(0, str(BENCH))
    try:
        return importlib.import_module("posture")
    finally:
        sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def found(posture: ModuleType) -> dict[str, Any]:
    """What the probe finds in a default container of each, and in a privileged one of Covey, which is the control."""
    if shutil.which("dockerd") is None:
        pytest.skip("no dockerd here: scripts/setup --dev installs the package docker.io")
    archive = posture.image()
    with tempfile.TemporaryDirectory(prefix="covey-test-posture-") as name, ExitStack() as stack:
        covey = stack.enter_context(posture.running(posture.COVEY, Path(name)))
        docker = stack.enter_context(posture.running(posture.DOCKER, Path(name)))
        return {
            "covey": posture.probe(covey, archive),
            "docker": posture.probe(docker, archive),
            "privileged": posture.probe(covey, archive, privileged=True),
        }


@pytest.mark.root
def test_covey_is_nowhere_weaker_than_docker(posture: ModuleType, found: dict[str, Any]):
    rows = posture.compare(found["covey"], found["docker"])
    print(posture.table(rows, ["covey", "docker"]))
    assert [row for row in rows if row.weaker] == []
    assert len(rows) > 150


@pytest.mark.root
def test_a_privileged_container_is_told_to_be_weaker(posture: ModuleType, found: dict[str, Any]):
    """The control: the same probe and rules see what is given up there."""
    weaker = {row.title for row in posture.compare(found["privileged"], found["docker"]) if row.weaker}
    assert {
        "capabilities CapBnd",
        "capabilities CapEff",
        "call mount",
        "call unshare(user)",
        "seccomp mode (2: filter)",
    } <= weaker
    assert {"/proc/keys", "/proc/sys", "/sys", "devices visible", "devices made", "mount /sys"} <= weaker


#: Key of the probe's answer → a change for the worse.
WORSE: dict[str, Any] = {
    "capabilities": {"CapInh": "0000000000000001"},
    "calls": {"bpf": "EFAULT"},
    "i386 calls": {"keyctl": "ok"},
    "paths": {"/proc/keys": "read-only"},
    "devices": {"made": ["block 254:0"]},
    "namespaces": {"pid": False},
    "descriptors": [0, 1, 2, 5],
    "no_new_privs": "/",
    "seccomp": "0",
    "dumpable": 2,
    "groups": ["0", "6"],
    "mounts": {"/proc": ["rw"]},
    "cgroups": {"/sys/fs/cgroup/memory": "rw"},
    "rlimits": {"RLIMIT_NOFILE": [1, -1]},
    "pids limit": "max",
    "oom_score_adj": -500,
    "processes": 90,
    "uid_map": ["0", "0", "4294967295"],
}
PLAIN: dict[str, Any] = {
    "capabilities": {"CapInh": "0000000000000000"},
    "calls": {"bpf": "EPERM"},
    "i386 calls": {"keyctl": "EPERM"},
    "paths": {"/proc/keys": "hidden"},
    "devices": {"made": []},
    "namespaces": {"pid": True},
    "descriptors": [0, 1, 2],
    "no_new_privs": "0",
    "seccomp": "2",
    "dumpable": 1,
    "groups": ["0"],
    "mounts": {"/proc": ["nodev", "noexec", "nosuid", "rw"]},
    "cgroups": {"/sys/fs/cgroup/memory": "ro"},
    "rlimits": {"RLIMIT_NOFILE": [1, 1024]},
    "pids limit": "4096",
    "oom_score_adj": 0,
    "processes": 1,
    "uid_map": ["0", "100000", "65536"],
}


@pytest.mark.parametrize("key", list(WORSE))
def test_each_rule_sees_a_change_for_the_worse(posture: ModuleType, key: str):
    assert set(WORSE) == set(PLAIN) == set(posture.RULES)
    assert not [row for row in posture.compare(PLAIN, PLAIN) if row.weaker]
    worse = {**copy.deepcopy(PLAIN), key: WORSE[key]}
    assert [row for row in posture.compare(worse, PLAIN) if row.weaker]
