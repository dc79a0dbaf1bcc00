"""How the C library shares out memory in this process. It knows no daemon."""

from __future__ import annotations

import ctypes

#: malloc.h of glibc: the largest number of arenas.
_M_ARENA_MAX = -8


def one_arena() -> None:
    """One heap for all threads, before any is started; a C library without the knob is left as it is.

    glibc gives each new thread a heap of its own, where a burst of work leaves pages that no other thread takes up:
    8 MB of 50 in a daemon. Python's lock keeps threads from contending for the one.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)
