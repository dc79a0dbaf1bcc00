"""Profiles become filters; what cannot be met is refused by field."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("pyseccomp", exc_type=Exception)

from worker.runtime import seccomp
from worker.runtime.errors import SpecFault
from worker.runtime.seccomp_compile import compile, compiled_file

ARCH = os.uname().machine
PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "syscalls": [
        {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
        {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_BPF"]}},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
        {"names": ["write"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
    ],
}


def test_a_filter_is_whole_instructions():
    filter_ = compile(PROFILE, [], ARCH)
    assert filter_
    assert len(filter_) % 8 == 0


def test_capabilities_decide():
    plain = compile(PROFILE, [], ARCH)
    assert compile(PROFILE, ["CAP_SYS_CHROOT"], ARCH) != plain
    assert compile(PROFILE, ["CAP_BPF"], ARCH) != plain
    assert compile(PROFILE, ["CAP_KILL"], ARCH) == plain


@pytest.mark.parametrize(
    ("profile", "field"),
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_PDP11"]}, "architectures"),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_DANCE"}]},
            "action",
        ),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL", "args": [{"index": 0, "op": "~"}]}],
            },
            "args.op",
        ),
    ],
)
def test_refusals_name_the_field(profile, field):
    with pytest.raises(SpecFault, match=field):
        compile(profile, [], ARCH)


def test_the_cache_is_by_content(tmp_path):
    first = compiled_file(tmp_path, PROFILE, ["CAP_KILL", "CAP_BPF"], ARCH)
    assert compiled_file(tmp_path, PROFILE, ["CAP_BPF", "CAP_KILL"], ARCH) == first
    assert compiled_file(tmp_path, {**PROFILE, "defaultErrnoRet": 1}, [], ARCH) != first
    assert len(list(tmp_path.iterdir())) == 2
    assert seccomp.read({"path": first.name}, str(tmp_path))["instructions"] == first.read_bytes()


def test_files_that_hold_no_filter(tmp_path):
    (tmp_path / "odd").write_bytes(b"123")
    for reference in ({"path": "odd"}, {"path": "missing"}, {"path": "odd", "flags": ["loud"]}):
        with pytest.raises(SpecFault, match=r"covey\.seccomp"):
            seccomp.read(reference, str(tmp_path))
