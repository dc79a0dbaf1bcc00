"""Loads a seccomp filter that was compiled elsewhere; bytes in, one system call.

Compiling needs libseccomp and belongs to worker.runtime.seccomp_compile, which the start path never imports.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from worker.kernel import syscalls
from worker.runtime.errors import SpecFault

_FLAGS = {"log": syscalls.SECCOMP_FILTER_FLAG_LOG, "spec_allow": syscalls.SECCOMP_FILTER_FLAG_SPEC_ALLOW}
_MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS


def read(reference: dict[str, Any], bundle: str) -> dict[str, Any]:
    """The filter a config's ``covey.seccomp`` names: {"path": file, absolute or in the bundle, "flags": [...]}.

    Answers {"instructions": bytes, "flags": tuple}. Raises SpecFault when it cannot be a filter.
    """
    flags = tuple(reference.get("flags") or ())
    for flag in flags:
        if flag not in _FLAGS:
            raise SpecFault("covey.seccomp.flags", f"{flag!r} is not one of {', '.join(_FLAGS)}")
    path = os.path.join(bundle, str(reference.get("path", "")))
    try:
        with open(path, "rb") as file:
            instructions = file.read()
    except OSError as error:
        raise SpecFault("covey.seccomp.path", f"{path}: {error.strerror}") from None
    if not instructions or len(instructions) % 8 or len(instructions) > 8 * _MOST_INSTRUCTIONS:
        raise SpecFault("covey.seccomp.path", f"{path} holds {len(instructions)} bytes, which is no filter")
    return {"instructions": instructions, "flags": flags}


def load(instructions: bytes, flags: Iterable[str] = ()) -> None:
    """Put the filter on this process, for good. Needs no_new_privileges or CAP_SYS_ADMIN."""
    mask = 0
    for flag in flags:
        mask |= _FLAGS[flag]
    syscalls.seccomp_set_filter(instructions, mask)
