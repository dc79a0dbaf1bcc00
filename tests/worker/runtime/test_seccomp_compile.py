"""Profiles become filters; what cannot be met is refused by field."""

from __future__ import annotations

import json
import os
import random
import struct
import tempfile
from pathlib import Path

import pytest

from worker.runtime import seccomp, seccomp_compile
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


X86_64, X86, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
ALLOW, KILL, NOTIFY = 0x7FFF0000, 0, 0x7FC00000
EPERM, ENOSYS = 0x00050001, 0x00050026
DOCKER = json.loads(Path("worker/containers/seccomp-default.json").read_text())
PLAIN = ["CAP_CHOWN", "CAP_KILL"]


def run(filter_: bytes, arch: int, number: int, *arguments: int) -> int:
    """Interpret classic BPF as the kernel does (Documentation/networking/filter.rst) on a struct seccomp_data."""
    data = struct.pack("=iIQ6Q", number - 2**32 if number >= 2**31 else number, arch, 0, *(arguments + (0,) * 6)[:6])
    program = list(struct.iter_unpack("=HBBI", filter_))
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x05:
            at += value
        elif code in (0x15, 0x25, 0x35):
            holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value}[code]
            at += if_true if holds else if_false
        elif code == 0x06:
            return value
        else:
            raise AssertionError(f"instruction {code:#x} at {at - 1}")


def number(name: str, arch: str = "X86_64") -> int:
    return seccomp_compile.numbers()[arch][name]


def profile(*rules: dict, **more: object) -> dict:
    return {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": list(rules), **more}


def rule(names: str, action: str = "ALLOW", *args: tuple, **more: object) -> dict:
    keys = ("index", "op", "value", "valueTwo")
    entries = [dict(zip(keys, (a[0], f"SCMP_CMP_{a[1]}", *a[2:]))) for a in args]
    return {"names": names.split(), "action": f"SCMP_ACT_{action}", "args": entries, **more}


def test_a_call_newer_than_the_newest_named_does_not_exist():
    filter_ = compile(profile(rule("read"), rule("mseal", includes={"caps": ["CAP_BPF"]})), PLAIN, "x86_64")
    assert run(filter_, X86_64, number("read")) == ALLOW
    assert run(filter_, X86_64, number("mseal")) == EPERM
    assert run(filter_, X86_64, number("mseal") + 1) == ENOSYS
    assert run(filter_, X86_64, 0xFFFFFFFF) == EPERM
    open_ = compile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("read", "KILL")]}, PLAIN, "x86_64")
    assert run(open_, X86_64, 4000) == ALLOW


def test_names_newer_than_the_library_have_numbers():
    assert (number("file_setattr"), number("file_setattr", "AARCH64"), number("listns", "X86")) == (469, 469, 470)


OPERATIONS = {
    "NE": lambda a, v, w: a != v,
    "LT": lambda a, v, w: a < v,
    "LE": lambda a, v, w: a <= v,
    "EQ": lambda a, v, w: a == v,
    "GE": lambda a, v, w: a >= v,
    "GT": lambda a, v, w: a > v,
    "MASKED_EQ": lambda a, v, w: a & v == w,
}
WORDS = [0, 1, 5, 2**32 - 1, 2**32, 2**32 + 5, 5 << 32, 2**63, 2**64 - 1]


@pytest.mark.parametrize("operator", OPERATIONS)
def test_operators_compare_all_64_bits(operator):
    for value in WORDS:
        for second in (value, value & 5) if operator == "MASKED_EQ" else (0,):
            filter_ = compile(profile(rule("read", "ALLOW", (2, operator, value, second))), PLAIN, "x86_64")
            for argument in WORDS:
                holds = OPERATIONS[operator](argument, value, second)
                wanted = ALLOW if holds else EPERM
                assert run(filter_, X86_64, 0, 9, 9, argument) == wanted, (operator, value, second, argument)


def test_all_arguments_of_a_rule_must_match_and_several_of_one_are_alternatives():
    both = compile(profile(rule("read", "ALLOW", (0, "EQ", 1), (1, "GT", 5))), PLAIN, "x86_64")
    assert [run(both, X86_64, 0, *a) for a in ((1, 6), (1, 5), (2, 6))] == [ALLOW, EPERM, EPERM]
    either = compile(profile(rule("read", "ALLOW", (0, "EQ", 1), (0, "EQ", 2))), PLAIN, "x86_64")
    assert [run(either, X86_64, 0, a) for a in (1, 2, 3)] == [ALLOW, ALLOW, EPERM]


def test_actions_and_their_errno():
    names = {"TRAP": 0x30000, "KILL_PROCESS": 0x80000000, "KILL_THREAD": 0, "KILL": 0, "LOG": 0x7FFC0000, "NOTIFY": NOTIFY}
    for name, value in names.items():
        assert run(compile(profile(rule("read", name)), PLAIN, "x86_64"), X86_64, 0) == value
    for name, base in (("ERRNO", 0x50000), ("TRACE", 0x7FF00000)):
        assert run(compile(profile(rule("read", name, errnoRet=7)), PLAIN, "x86_64"), X86_64, 0) == base | 7
    with pytest.raises(SpecFault, match="answers no errno"):
        compile(profile(rule("read", "TRAP", errnoRet=7)), PLAIN, "x86_64")
    with pytest.raises(SpecFault, match="NOTIFY cannot be the default"):
        compile({"defaultAction": "SCMP_ACT_NOTIFY"}, PLAIN, "x86_64")
    with pytest.raises(SpecFault, match="not possible for write"):
        compile(profile(rule("write", "NOTIFY")), PLAIN, "x86_64")


def test_foreign_architectures_are_closed_unless_named():
    filter_ = compile(profile(rule("read")), PLAIN, "x86_64")
    assert run(filter_, X86, number("read", "X86")) == KILL
    assert run(filter_, X86_64, 0x40000000 | number("read", "X32")) == KILL
    assert run(filter_, AARCH64, number("read", "AARCH64")) == KILL
    both = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_S390X"]
    filter_ = compile(profile(rule("read ioctl"), architectures=both), PLAIN, "x86_64")
    assert run(filter_, X86, number("read", "X86")) == ALLOW
    assert run(filter_, X86, number("write", "X86")) == EPERM
    assert run(filter_, X86_64, 0x40000000 | 514) == ALLOW, "x32 has its own ioctl"
    assert run(filter_, X86_64, 0x40000000 | 16) == EPERM
    assert run(filter_, X86_64, 0x40000000 | 515) == ENOSYS


def test_dockers_profile():
    filter_ = compile(DOCKER, PLAIN, "x86_64")
    assert run(filter_, X86_64, number("clone3")) == ENOSYS
    assert run(filter_, X86_64, number("mount")) == EPERM
    assert run(filter_, X86_64, number("read")) == ALLOW
    for family in (38, 40, 2**32 + 40):
        assert run(filter_, X86_64, number("socket"), family, 1, 0) == EPERM, "AF_ALG, AF_VSOCK, however it is spelled"
    assert run(filter_, X86_64, number("socket"), 2, 1, 0) == ALLOW
    assert run(filter_, X86_64, number("clone"), 0x10000000) == EPERM
    assert run(filter_, X86_64, number("clone"), 0x00010000) == ALLOW
    assert run(filter_, X86_64, number("personality"), 8) == ALLOW
    assert run(filter_, X86_64, number("personality"), 0x40000) == EPERM
    assert run(filter_, X86, number("read", "X86")) == ALLOW
    assert run(filter_, X86, number("mount", "X86")) == EPERM
    assert run(filter_, X86_64, 600) == ENOSYS
    assert len(filter_) // 8 < 500


def by_the_library(body: dict, arch_names: list[str]) -> bytes:
    """The same rules through libseccomp, as an oracle."""
    pyseccomp = pytest.importorskip("pyseccomp", exc_type=Exception)
    values = {"ALLOW": pyseccomp.ALLOW, "ERRNO": pyseccomp.ERRNO(1), "TRAP": pyseccomp.TRAP, "LOG": pyseccomp.LOG}
    filter_ = pyseccomp.SyscallFilter(pyseccomp.ERRNO(1))
    for name in arch_names:
        filter_.add_arch(getattr(pyseccomp.Arch, name))
    for entry in body["syscalls"]:
        for name in entry["names"]:
            args = [
                pyseccomp.Arg(
                    a["index"], getattr(pyseccomp, a["op"].removeprefix("SCMP_CMP_")), a["value"], a.get("valueTwo", 0)
                )
                for a in entry["args"]
            ]
            called = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
            filter_.add_rule(values[entry["action"].removeprefix("SCMP_ACT_")], called, *args)
    with tempfile.TemporaryFile() as file:
        filter_.export_bpf(file)
        file.seek(0)
        return file.read()


@pytest.mark.suite
@pytest.mark.skipif(ARCH != "x86_64", reason="compares numbers of x86")
def test_random_profiles_agree_with_libseccomp():
    """Numbers up to the newest named, three architectures, one rule a call: there both mean the same."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    table = seccomp_compile.numbers()
    mixed = set(seccomp_compile._MULTIPLEXED["socketcall"]) | set(seccomp_compile._MULTIPLEXED["ipc"]) | {"personality"}
    names = sorted((set(table["X86_64"]) & set(table["X86"]) & set(table["X32"])) - mixed)
    names = [name for name in names if table["X86_64"][name] < 449]
    for _ in range(12):
        rules = []
        for name in chance.sample(names, 60):
            args = []
            for index in sorted(chance.sample(range(6), chance.choice((0, 0, 1, 2)))):
                operator = chance.choice(sorted(OPERATIONS))
                value = chance.choice(WORDS)
                args.append((index, operator, value, value & chance.choice(WORDS)))
            rules.append(rule(name, chance.choice(("ALLOW", "TRAP", "LOG")), *args))
        body = profile(*rules, architectures=["SCMP_ARCH_X86", "SCMP_ARCH_X32"])
        ours, theirs = compile(body, [], ARCH), by_the_library(body, ["X86", "X32"])
        for name in [entry["names"][0] for entry in rules] + chance.sample(names, 40):
            for kind, arch, bit in (("X86_64", X86_64, 0), ("X86", X86, 0), ("X32", X86_64, 0x40000000)):
                last = max(table[kind][entry["names"][0]] for entry in rules)
                if table[kind][name] > last:
                    continue
                for _ in range(6):
                    words = [chance.choice(WORDS if kind == "X86_64" else WORDS[:4]) for _ in range(6)]
                    called = table[kind][name] | bit
                    assert run(ours, arch, called, *words) == run(theirs, arch, called, *words), (seed, kind, name, words)
