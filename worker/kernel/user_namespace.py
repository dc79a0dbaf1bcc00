"""A user namespace with given id maps, as a descriptor: what an id-mapped mount refers to.

Made by a small program of its own (this module, run), so that a process with threads can ask for one: a fork of such a
process may not do more than exec. Errors are OSError.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys

from worker.kernel import safe_paths, syscalls


def make(uid_map: str, gid_map: str) -> int:
    """A descriptor of a new user namespace. The maps are text for /proc/PID/uid_map and gid_map (user_namespaces(7)).

    It costs some 50 ms: keep it. The namespace lives as long as the descriptor and the mounts that use it.
    """
    command = [sys.executable, "-P", "-m", "worker.kernel.user_namespace"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"made\n":
            raise OSError(errno.ENOSPC, "a user namespace cannot be made: is user.max_user_namespaces 0?", "unshare")
        for kind, text in (("uid", uid_map), ("gid", gid_map)):
            safe_paths.write_proc(f"{process.pid}/{kind}_map", text)
        # Leaving the context closes its standard input, which ends it.
        return os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def main() -> None:
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    os.write(1, b"made\n")
    os.read(0, 1)


if __name__ == "__main__":
    main()
