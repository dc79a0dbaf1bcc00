"""The eBPF program of a rule list decides as cgroup v1 does; it is interpreted here, and run by a kernel that has v2."""

from __future__ import annotations

import itertools
import os
import random
import struct

import pytest

from worker.runtime import device_filter, devices, limits
from worker.runtime.cgroups import Cgroup, Hierarchy

BLOCK, CHARACTER = 1, 2
LETTERS = {1: "m", 2: "r", 4: "w"}


def ask(program: bytes, kind: int, access: int, major: int, minor: int) -> bool:
    """Interpret eBPF as the kernel does (Documentation/bpf/standardization) on a struct bpf_cgroup_dev_ctx."""
    context = struct.pack("=III", access << 16 | kind, major, minor)
    code = list(struct.iter_unpack("<BBhi", program))
    registers = [0] * 11
    at = 0
    while True:
        operation, which, offset, value = code[at]
        target, source = which & 0xF, which >> 4
        at += 1
        if operation == 0x61:
            assert source == 1, "the context is in r1 until it is overwritten"
            (registers[target],) = struct.unpack_from("=I", context, offset)
        elif operation == 0xB7:
            registers[target] = value
        elif operation == 0xBF:
            registers[target] = registers[source]
        elif operation == 0x54:
            registers[target] &= value & 0xFFFFFFFF
        elif operation == 0x74:
            registers[target] = (registers[target] & 0xFFFFFFFF) >> value
        elif operation in (0x56, 0x16):
            if ((registers[target] & 0xFFFFFFFF) == (value & 0xFFFFFFFF)) == (operation == 0x16):
                at += offset
        elif operation == 0x95:
            return bool(registers[0])
        else:
            raise AssertionError(f"instruction {operation:#x}")


class VersionOne:
    """devices.allow, devices.deny and the check of an access, as security/device_cgroup.c has them."""

    def __init__(self) -> None:
        self.default_allow = True
        self.exceptions: list[list] = []

    def write(self, file: str, words: str) -> None:
        allow = file == "devices.allow"
        if words.startswith("a"):
            self.default_allow, self.exceptions = allow, []
            return
        kind, numbers, access = words.split()
        key = [kind, *numbers.split(":")]
        found = [entry for entry in self.exceptions if entry[:3] == key]
        if allow != self.default_allow:
            if found:
                found[0][3] |= set(access)
            else:
                self.exceptions.append([*key, set(access)])
        else:
            for entry in found:
                entry[3] -= set(access)
            self.exceptions = [entry for entry in self.exceptions if entry[3]]

    def may(self, kind: str, major: int, minor: int, access: set[str]) -> bool:
        matching = [
            entry
            for entry in self.exceptions
            if entry[0] == kind and entry[1] in ("*", str(major)) and entry[2] in ("*", str(minor))
        ]
        if self.default_allow:
            return not any(entry[3] & access for entry in matching)
        return any(access <= entry[3] for entry in matching)


def rule(allow: bool, kind: str | None = None, major: int | None = None, minor: int | None = None, access: str = "rwm") -> dict:
    return {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}


def accesses():
    for kind, major, minor in itertools.product((BLOCK, CHARACTER), (0, 1, 8, 300), (0, 3, 2**20)):
        for access in range(1, 8):
            yield kind, major, minor, access


def compare(rules: list[dict], note: object = None) -> None:
    flat = limits.device_rules(rules)
    program, model = device_filter.program(flat), VersionOne()
    for write in limits.writes({"devices": rules}, 1):
        model.write(write.file, write.value)
    for kind, major, minor, access in accesses():
        letters = {letter for bit, letter in LETTERS.items() if access & bit}
        wanted = model.may("b" if kind == BLOCK else "c", major, minor, letters)
        assert ask(program, kind, access, major, minor) == wanted, (note, rules, kind, major, minor, letters)


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [rule(False)],
        [rule(True)],
        [rule(False), rule(True, "c", 1, 3, "r")],
        [rule(False), rule(True, "c", 8, access="rw"), rule(False, "c", 8, access="w")],
        [rule(True), rule(False, "b", 8, 0, "w"), rule(True, "b", 8, 0, "w")],
        [rule(False), rule(True, "c", 1, 3), rule(False), rule(True, "b", 8, 0, "m")],
        [rule(False), rule(True, None, 8, 0, "r")],
        [rule(True, None, access="r")],
    ],
)
def test_rules_in_order(rules):
    compare(rules)


def test_random_rules():
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for _ in range(150):
        rules = [
            rule(
                chance.random() < 0.5,
                chance.choice(("b", "c", "c", "a", None)),
                chance.choice((None, -1, 1, 8)),
                chance.choice((None, 0, 3)),
                "".join(chance.sample("rwm", chance.randint(1, 3))),
            )
            for _ in range(chance.randint(0, 8))
        ]
        compare(rules, seed)


def test_everything_for_certain_numbers_is_not_everything():
    """ "a 8:0 r" means all to the kernel's parser, so it must never be written."""
    assert [devices.rule(entry) for entry in devices.single_rules(rule(True, "a", 8, 0, "r"))] == ["b 8:0 r", "c 8:0 r"]
    assert [devices.rule(entry) for entry in devices.single_rules(rule(False))] == ["a"]


@pytest.mark.root
def test_the_kernel_takes_the_program_and_holds_to_it():
    places = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
    mount = next((path for path in places if os.path.exists(f"{path}/cgroup.controllers")), None)
    if mount is None:
        pytest.skip("no cgroup v2 is mounted here")
    group = Cgroup(f"/covey-test-devices-{os.getpid()}", [Hierarchy(mount, (), 2)])
    group.create()
    try:
        allowed = {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"}
        # Of the default devices' list /dev/full (1:7) is taken away again.
        denied = {"allow": False, "type": "c", "major": 1, "minor": 7, "access": "rw"}
        group.apply({"devices": [rule(False), allowed, denied]})
        said, saying = os.pipe()
        pid = os.fork()
        if pid == 0:
            group.enter()
            words = []
            for path, flags in (
                ("/dev/zero", os.O_RDONLY),
                ("/dev/null", os.O_RDWR),
                ("/dev/full", os.O_RDONLY),
                ("/dev/kmsg", 0),
            ):
                try:
                    os.open(path, flags)
                    words.append("yes")
                except PermissionError:
                    words.append("no")
            os.write(saying, " ".join(words).encode())
            os._exit(0)
        os.close(saying)
        assert os.read(said, 100) == b"yes yes no no"
        os.close(said)
        os.waitpid(pid, 0)
    finally:
        assert group.remove()
