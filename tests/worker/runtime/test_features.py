"""The features document follows from the facts, and keeps to the specification's schema."""

from __future__ import annotations

from worker.runtime import features
from worker.runtime.cgroups import Hierarchy

HOST = features.Facts(
    "x86_64",
    (6, 1),
    {"mount", "pid", "time"},
    40,
    {"allow", "errno", "kill_thread", "trap"},
    [Hierarchy("/sys/fs/cgroup", (), 2)],
    {"selinux"},
)


def test_a_machine():
    linux = features.document(HOST)["linux"]
    assert linux["namespaces"] == ["mount", "pid", "time"]
    assert linux["capabilities"][-1] == "CAP_CHECKPOINT_RESTORE"
    assert (linux["cgroup"]["v1"], linux["cgroup"]["v2"]) == (False, True)
    assert linux["seccomp"]["actions"] == [f"SCMP_ACT_{n}" for n in ("ALLOW", "ERRNO", "KILL", "KILL_THREAD", "TRAP")]
    assert linux["seccomp"]["archs"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert (linux["apparmor"], linux["selinux"]) == ({"enabled": False}, {"enabled": True})
    assert linux["mountExtensions"]["idmap"]["enabled"]


def test_an_older_one_has_less():
    older = features.Facts("riscv64", (5, 4), {"mount"}, 37, set(), [], set())
    linux = features.document(older)["linux"]
    assert linux["seccomp"] == {"enabled": False}
    assert not linux["mountExtensions"]["idmap"]["enabled"]
    assert linux["capabilities"][-1] == "CAP_AUDIT_READ"


def test_this_machine_answers_by_the_schema():
    """The parts of features-schema.json and features-linux.json: keys and the kinds of their values."""
    found = features.document(features.facts())
    assert set(found) <= {"ociVersionMin", "ociVersionMax", "hooks", "mountOptions", "annotations", "linux",
                          "potentiallyUnsafeConfigAnnotations"}  # fmt: skip
    assert {"ro", "rro", "idmap", "tmpcopyup", "rslave", "norelatime"} <= set(found["mountOptions"])
    assert found["hooks"] == ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
    assert set(found["linux"]) == {"namespaces", "capabilities", "cgroup", "seccomp", "apparmor", "selinux", "intelRdt",
                                   "mountExtensions", "netDevices"}  # fmt: skip
    assert all(isinstance(value, bool) for value in found["linux"]["cgroup"].values())
