"""Loads a seccomp filter that was compiled elsewhere; bytes in, one system call.

Compiling belongs to worker.runtime.seccomp_compile, which only a bundle that brings a profile as such makes us import.
"""

from __future__ import annotations

import os

from worker.kernel import syscalls
from worker.kernel.bare import Any, Iterable
from worker.runtime.errors import SpecFault

_FLAGS = {
    "tsync": syscalls.SECCOMP_FILTER_FLAG_TSYNC,
    "log": syscalls.SECCOMP_FILTER_FLAG_LOG,
    "spec_allow": syscalls.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    "wait_killable_recv": syscalls.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
}
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
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            instructions = os.read(fd, 8 * _MOST_INSTRUCTIONS + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise SpecFault("covey.seccomp.path", f"{path}: {error.strerror}") from None
    if not instructions or len(instructions) % 8 or len(instructions) > 8 * _MOST_INSTRUCTIONS:
        raise SpecFault("covey.seccomp.path", f"{path} holds {len(instructions)} bytes, which is no filter")
    return {"instructions": instructions, "flags": flags}


def of_config(config: dict[str, Any], bundle: str) -> dict[str, Any] | None:
    """The filter of a bundle: the compiled one that ``covey.seccomp`` names, or else ``linux.seccomp``, compiled now.

    Answers {"instructions", "flags", "listener", "listener_path", "listener_metadata"} (the last three only where a
    supervisor is asked), or None without any. Raises SpecFault.
    """
    reference = (config.get("covey") or {}).get("seccomp")
    if reference:
        return read(reference, bundle)
    profile = (config.get("linux") or {}).get("seccomp")
    if not profile:
        return None
    # Rarely needed, and never in a process that has left the host's files: not for every shim to carry.
    from worker.runtime import seccomp_compile

    held = ((config.get("process") or {}).get("capabilities") or {}).get("bounding") or []
    result: dict[str, Any] = {
        "instructions": seccomp_compile.compile(profile, held, os.uname().machine),
        "flags": seccomp_compile.flags(profile),
    }
    if seccomp_compile.notifies(profile):
        if not profile.get("listenerPath"):
            raise SpecFault("linux.seccomp.listenerPath", "is required with SCMP_ACT_NOTIFY")
        result["listener"] = True
        result["listener_path"] = profile["listenerPath"]
        result["listener_metadata"] = profile.get("listenerMetadata") or ""
    return result


def load(instructions: bytes, flags: Iterable[str] = (), *, listener: bool = False) -> int | None:
    """Put the filter on this process, for good. Needs no_new_privileges or CAP_SYS_ADMIN.

    ``listener``: answer the descriptor on which a supervisor is asked about calls (SCMP_ACT_NOTIFY).
    """
    mask = 0
    for flag in flags:
        mask |= _FLAGS[flag]
    if not listener:
        syscalls.seccomp_set_filter(instructions, mask & ~syscalls.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
        return None
    # One thread has nobody to be in step with, and the kernel refuses TSYNC together with a listener.
    mask &= ~syscalls.SECCOMP_FILTER_FLAG_TSYNC
    return syscalls.seccomp_set_filter(instructions, mask | syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER)
