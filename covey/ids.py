"""Formats and parses ids. A new task's id is a hash of what it is for, so a decision made twice makes one key.

Pure: what is random lives in covey.entropy.
"""

from __future__ import annotations

import hashlib

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS = [high + low for high in _DIGITS for low in _DIGITS]
_PAIR = len(_PAIRS)


def base36(number: int, width: int) -> str:
    """``number`` in base 36, left-padded with zeros to ``width`` digits, its highest digits cut."""
    pairs = []
    for _ in range((width + 1) // 2):
        number, pair = divmod(number, _PAIR)
        pairs.append(_PAIRS[pair])
    text = "".join(reversed(pairs))
    return text[1:] if width % 2 else text


def task_id(service_id: str, slot: int, node_id: str, attempt: int, iteration: int = 0) -> str:
    """The id of the ``attempt``-th task of a slot (replicated: ``node_id`` empty) or of a node (global: ``slot`` 0).

    ``iteration`` is the execution of a job: slots and attempts begin anew with each.
    """
    key = f"{service_id}\0{slot}\0{node_id}\0{attempt}" + (f"\0{iteration}" if iteration else "")
    return base36(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16]), 25)


def tie_break(*parts: str) -> int:
    """A 64-bit number from ``parts``, the same in every process: the seeded hash that breaks ties."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest())


def task_name(service_name: str, place: str, task: str) -> str:
    """The container name of a task as Docker shows it: ``web.3.<task id>``, for global services ``web.<node>.<task>``."""
    return f"{service_name}.{place}.{task}"
