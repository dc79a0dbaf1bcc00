"""AppArmor profiles and SELinux labels of a process, where the kernel has the module; where it has not, an error.

OCI config.md, "Linux Process". The label is written for the next execve, through a descriptor verified to be procfs
(CVE-2019-16884).
"""

from __future__ import annotations

import errno
import os

from worker.kernel import safe_paths
from worker.kernel.bare import Any
from worker.runtime.errors import RuntimeFault

ROOTS = {"apparmor": "/sys/kernel/security/apparmor", "selinux": "/sys/fs/selinux"}
"""Where the machine shows that it runs the module."""
_NAMES = {"apparmor": "AppArmor", "selinux": "SELinux"}


def present(module: str) -> bool:
    """Whether this machine's kernel runs the security module."""
    root = ROOTS[module]
    return os.path.isdir(root) and bool(os.listdir(root))


def require_module(init: Any, module: str, field: str) -> None:
    if not present(module):
        words = f"this machine runs no {_NAMES[module]} (nothing at {ROOTS[module]}): leave the field out"
        raise RuntimeFault("invalid", f"{field}: {words}", "config.json")


def label(init: Any, module: str, text: str) -> None:
    """For the next execve. The module's own directory is there since Linux 5.8; before, the modules share one file."""
    for directory in (f"{module}/", "") if module else ("",):
        try:
            safe_paths.write_proc(f"thread-self/attr/{directory}exec", text)
            return
        except OSError as error:
            if error.errno != errno.ENOENT or not directory:
                raise RuntimeFault("kernel", f"the label {text!r} is refused: {error.strerror}", "label") from None


LABEL_STEPS: dict[str, Any] = {"label": label, "require_module": require_module}
