"""Capability names and sets: what a process may hold, as bit masks, and the calls that make it so.

Names and numbers are include/uapi/linux/capability.h. Which names a container gets is decided by the bundle.
"""

from __future__ import annotations

from worker.kernel import syscalls
from worker.kernel.bare import Any
from worker.runtime.errors import SpecFault

NAMES: tuple[str, ...] = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip

SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
_NUMBER = {name: number for number, name in enumerate(NAMES)}


def masks(capabilities: dict[str, Any] | None, field: str = "process.capabilities") -> dict[str, int]:
    """OCI capability lists as one bit mask a set; no object means no capability at all. Raises SpecFault.

    A name nobody knows is left out: the specification wants a warning (``warnings``) and no failure.
    """
    result = dict.fromkeys(SETS, 0)
    for name, values in (capabilities or {}).items():
        if name not in SETS:
            continue
        if not isinstance(values or [], list) or not all(isinstance(value, str) for value in values or []):
            raise SpecFault(f"{field}.{name}", "must be a list of names")
        for value in values or []:
            if value in _NUMBER:
                result[name] |= 1 << _NUMBER[value]
    return result


def warnings(capabilities: dict[str, Any] | None, can_give: int) -> list[str]:
    """One sentence each for names nobody knows and for capabilities this machine cannot give."""
    wanted = {value for name in SETS for value in (capabilities or {}).get(name) or []}
    unknown = sorted(value for value in wanted if value not in _NUMBER)
    lacking = sorted(value for value in wanted if value in _NUMBER and not can_give >> _NUMBER[value] & 1)
    result = []
    if unknown:
        result.append(f"process.capabilities: {', '.join(unknown)}: no such capability, left out")
    if lacking:
        result.append(f"process.capabilities: {', '.join(lacking)}: not held by this runtime, so the process lacks it")
    return result


def held() -> int:
    """What this process could hand on at most: root on a restricted machine lacks some of them."""
    return syscalls.capget()[1]


def drop_bounding(keep: int) -> None:
    """Leave only ``keep`` in the bounding set (bits the kernel does not know end the loop)."""
    for number in range(64):
        if keep >> number & 1:
            continue
        try:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
        except OSError:
            return


def set_all(effective: int, permitted: int, inheritable: int, ambient: int) -> None:
    syscalls.capset(effective, permitted, inheritable)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(len(NAMES)):
        if ambient >> number & 1:
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
