"""PURE: rules by architecture and system call number → a classic BPF program for seccomp(2).

It knows numbers, comparisons and return values, not names or profiles. The program loads the architecture, searches the
number by halving, and compares arguments word by word. It is built from its end: classic BPF jumps forward only, so what
a jump needs to know is there already. Struct and constants: linux/filter.h, linux/bpf_common.h, linux/seccomp.h.
"""

from __future__ import annotations

import struct

_LOAD, _AND = 0x20, 0x54  # BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K
_JUMP, _JEQ, _JGT, _JGE, _RETURN = 0x05, 0x15, 0x25, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_FURTHEST = 255
_WORD = 0xFFFFFFFF

Comparison = tuple[int, str, int, int, int]
"""(argument's index, NE LT LE EQ GE GT or MASKED_EQ, value, second value, bits compared: 32 or 64).

MASKED_EQ: (argument & value) == second value, as libseccomp's SCMP_CMP_MASKED_EQ."""
Rule = tuple[int, tuple[Comparison, ...]]
"""(return value, comparisons that must all hold)."""
Outcome = tuple[Rule, ...]
"""Rules tried in order; the last has no comparisons."""
Intervals = list[tuple[int, Outcome]]
"""(first number, what happens to numbers from it on), ascending from 0."""


class _Program:
    """Instructions from the last to the first; a place is how many instructions there are from it to the end."""

    def __init__(self) -> None:
        self._reversed: list[bytes] = []
        self._returns: dict[int, int] = {}

    @property
    def place(self) -> int:
        return len(self._reversed)

    def _add(self, code: int, value: int, if_true: int = 0, if_false: int = 0) -> int:
        self._reversed.append(struct.pack("=HBBI", code, if_true, if_false, value & _WORD))
        return self.place

    def _near(self, place: int) -> int:
        """A place that a conditional jump reaches and that leads to ``place``."""
        # One instruction more may come between: the jump to the other place.
        if self.place - place <= _FURTHEST - 1:
            return place
        return self._add(_JUMP, self.place - place)

    def returns(self, value: int) -> int:
        known = self._returns.get(value)
        if known is None or self.place - known > _FURTHEST - 4:
            known = self._returns[value] = self._add(_RETURN, value)
        return known

    def branch(self, code: int, value: int, true: int, false: int) -> int:
        """A conditional jump to two places."""
        true = self._near(true)
        false = self._near(false)
        here = self.place
        return self._add(code, value, here - true, here - false)

    def load(self, offset: int, then: int) -> int:
        """Load a word of struct seccomp_data and go on at ``then``."""
        return self._go(then, _LOAD, offset)

    def mask(self, value: int, then: int) -> int:
        return self._go(then, _AND, value)

    def _go(self, then: int, code: int, value: int) -> int:
        if self.place != then:
            self._add(_JUMP, self.place - then)
        return self._add(code, value)

    def bytes(self) -> bytes:
        return b"".join(reversed(self._reversed))


def assemble(architectures: dict[int, Intervals], foreign: int) -> bytes:
    """The program (8 bytes an instruction). ``architectures``: AUDIT_ARCH_* → intervals; ``foreign``: for all others."""
    program = _Program()
    next_place = program.returns(foreign)
    for architecture, intervals in reversed(list(architectures.items())):
        search = program.load(_NUMBER, _search(program, intervals))
        next_place = program.branch(_JEQ, architecture, search, next_place)
    program.load(_ARCHITECTURE, next_place)
    return program.bytes()


def _search(program: _Program, intervals: Intervals) -> int:
    """The number is loaded: find its interval."""
    if len(intervals) == 1:
        return _outcome(program, intervals[0][1])
    middle = len(intervals) // 2
    upper = _search(program, intervals[middle:])
    lower = _search(program, intervals[:middle])
    return program.branch(_JGE, intervals[middle][0], upper, lower)


def _outcome(program: _Program, rules: Outcome) -> int:
    *conditional, (otherwise, _) = rules
    place = program.returns(otherwise)
    for value, comparisons in reversed(conditional):
        failed = place
        place = program.returns(value)
        for comparison in reversed(comparisons):
            place = _compare(program, comparison, place, failed)
    return place


def _compare(program: _Program, comparison: Comparison, true: int, false: int) -> int:
    index, operator, value, second, bits = comparison
    low_offset = _ARGUMENTS + 8 * index
    high_offset = low_offset + 4
    if operator in ("NE", "LT", "LE"):
        # The opposite comparison with its places exchanged.
        operator = {"NE": "EQ", "LT": "GE", "LE": "GT"}[operator]
        true, false = false, true
    if operator == "MASKED_EQ":
        low = _masked(program, low_offset, value, second, true, false)
        return low if bits == 32 else _masked(program, high_offset, value >> 32, second >> 32, low, false)
    low = program.load(low_offset, program.branch({"EQ": _JEQ, "GE": _JGE, "GT": _JGT}[operator], value & _WORD, true, false))
    if bits == 32:
        return low
    equal = program.branch(_JEQ, value >> 32, low, false)
    if operator != "EQ":
        equal = program.branch(_JGT, value >> 32, true, equal)
    return program.load(high_offset, equal)


def _masked(program: _Program, offset: int, mask: int, wanted: int, true: int, false: int) -> int:
    compared = program.branch(_JEQ, wanted & _WORD, true, false)
    return program.load(offset, program.mask(mask & _WORD, compared))
