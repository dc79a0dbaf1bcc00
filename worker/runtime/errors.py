"""What can go wrong when a bundle is run, as one exception with a code that survives a trip between processes.

Codes: ``invalid`` (the bundle or request can never work), ``not-found`` and ``not-executable`` (the program of the
process), ``bad-state``, ``unfit`` (a sandbox cannot become the bundle it was claimed for), ``kernel`` (a call failed). It
knows no wire format beyond ``as_dict`` and ``from_dict``.
"""

from __future__ import annotations

import errno

from worker.kernel.bare import Any

UNFIT = "unfit"
_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or raise the quota",
    errno.EMFILE: "raise the daemon's limit of open files (LimitNOFILE), or end containers",
    errno.ENFILE: "raise the machine's limit of open files (fs.file-max)",
    errno.ENOMEM: "free memory",
    errno.EAGAIN: "raise the limit of processes (pids.max of the cgroup the zygote is in, kernel.pid_max)",
}


def remedy(error: OSError) -> str:
    """ ": what to do", for an errno that says the machine has run out of something; else nothing."""
    words = _REMEDIES.get(error.errno or 0)
    return f": {words}" if words else ""


class RuntimeFault(Exception):
    """An error for a person; ``step`` names what was being done, for instance ``mount /proc``."""

    def __init__(self, code: str, message: str, step: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.step = step

    def __str__(self) -> str:
        return f"{self.step}: {self.message}" if self.step else self.message

    def as_dict(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message, "step": self.step}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RuntimeFault:
        return cls(str(data.get("code", "kernel")), str(data.get("message", "")), str(data.get("step", "")))


class SpecFault(RuntimeFault):
    """config.json cannot be run as it is; ``field`` is the path of the offending field."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__("invalid", f"{field}: {message}", "config.json")
        self.field = field
