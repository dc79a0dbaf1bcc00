"""PURE: device rules → the eBPF program that cgroup v2 wants for them (BPF_PROG_TYPE_CGROUP_DEVICE).

The meaning is cgroup v1's (the kernel's cgroup-v1/devices document and security/device_cgroup.c): "a" begins anew with
everything allowed or denied; then allow adds an exception to denial and takes one of allowance away, and deny the other
way round, by equal type and numbers. The program asks the exceptions one after the other. Constants: linux/bpf.h.
"""

from __future__ import annotations

import struct

from worker.kernel.bare import Any

_BLOCK, _CHARACTER = 1, 2
_ACCESS = {"m": 1, "r": 2, "w": 4}
_TYPES = {"b": _BLOCK, "c": _CHARACTER}

_LOAD_WORD, _MOVE, _MOVE_REGISTER, _AND, _SHIFT_RIGHT = 0x61, 0xB7, 0xBF, 0x54, 0x74
_JUMP_UNEQUAL, _JUMP_EQUAL, _EXIT = 0x56, 0x16, 0x95  # The jumps compare 32 bits.

Exceptions = dict[tuple[int, int | None, int | None], int]
"""(device type, major, minor; None for any) → access bits."""


def settle(rules: list[dict[str, Any]]) -> tuple[bool, Exceptions]:
    """(whether all is allowed by default, the exceptions) after the rules of ``devices.single_rules``, in order."""
    allowed = True
    exceptions: Exceptions = {}
    for rule in rules:
        allow = bool(rule.get("allow"))
        if (rule.get("type") or "a") == "a":
            allowed, exceptions = allow, {}
            continue
        major, minor = (None if number is None or number < 0 else number for number in (rule.get("major"), rule.get("minor")))
        key = (_TYPES[rule["type"]], major, minor)
        access = sum(_ACCESS[letter] for letter in set(rule.get("access") or "rwm"))
        if allow != allowed:
            exceptions[key] = exceptions.get(key, 0) | access
        elif key in exceptions:
            exceptions[key] &= ~access
            if not exceptions[key]:
                del exceptions[key]
    return allowed, exceptions


def program(rules: list[dict[str, Any]]) -> bytes:
    """The program (8 bytes an instruction): 1 for an access that is allowed, 0 for one that is not."""
    allowed, exceptions = settle(rules)
    code = [
        _instruction(_LOAD_WORD, 2, 1, 0),
        _instruction(_MOVE_REGISTER, 3, 2),
        _instruction(_AND, 2, value=0xFFFF),
        _instruction(_SHIFT_RIGHT, 3, value=16),
        _instruction(_LOAD_WORD, 4, 1, 4),
        _instruction(_LOAD_WORD, 5, 1, 8),
    ]
    for (kind, major, minor), access in exceptions.items():
        code += _exception(allowed, kind, major, minor, access)
    code += [_instruction(_MOVE, 0, value=int(allowed)), _instruction(_EXIT)]
    return b"".join(code)


def _exception(allowed: bool, kind: int, major: int | None, minor: int | None, access: int) -> list[bytes]:
    """An exception to denial must hold all that is asked for; of one to allowance any part is enough."""
    checks = [(_JUMP_UNEQUAL, 2, kind)]
    checks += [(_JUMP_UNEQUAL, register, number) for register, number in ((4, major), (5, minor)) if number is not None]
    mask = access if allowed else ~access & 0x7
    asks = [_instruction(_MOVE_REGISTER, 1, 3), _instruction(_AND, 1, value=mask)]
    ends = [_instruction(_MOVE, 0, value=int(not allowed)), _instruction(_EXIT)]
    length = len(checks) + len(asks) + 1 + len(ends)
    result = [
        _instruction(operation, register, offset=length - index - 1, value=number)
        for index, (operation, register, number) in enumerate(checks)
    ]
    decides = _JUMP_EQUAL if allowed else _JUMP_UNEQUAL
    return [*result, *asks, _instruction(decides, 1, offset=len(ends), value=0), *ends]


def _instruction(operation: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    value &= 0xFFFFFFFF
    return struct.pack("<BBhi", operation, source << 4 | target, offset, value - (value >> 31 << 32))
