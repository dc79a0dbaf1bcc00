"""Makes binds whose owners are mapped (mount_setattr MOUNT_ATTR_IDMAP), in the parent, which may map any id.

Which mounts these are is worker.runtime.mount_options; init puts them in place. Errors are RuntimeFault naming the
mount's field.
"""

from __future__ import annotations

import os

from worker.kernel import mounts, safe_paths, syscalls
from worker.kernel.bare import signal
from worker.runtime.errors import RuntimeFault
from worker.runtime.mount_options import MappedTree


def make_tree(tree: MappedTree) -> int:
    """A detached, mapped copy of the mount at ``tree.source``: its descriptor."""
    try:
        copy = mounts.clone(tree.source, recursive=tree.recursive)
    except FileNotFoundError:
        raise RuntimeFault("invalid", f"{tree.field}.source: {tree.source} does not exist", "mount") from None
    try:
        namespace = _user_namespace(tree)
        try:
            mounts.map_ids(copy, namespace, recursive=tree.recursive_map)
        finally:
            os.close(namespace)
    except OSError as error:
        os.close(copy)
        words = f"the filesystem of {tree.source} cannot map owners: {error.strerror}"
        raise RuntimeFault("kernel", f"{tree.field}: idmap: {words}", "mount") from None
    return copy


def _user_namespace(tree: MappedTree) -> int:
    """A user namespace with the tree's maps; it lives as long as its descriptor and the mounts that use it."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    pid = syscalls.fork_into(syscalls.CLONE_NEWUSER)
    if pid == 0:
        try:
            # Closed by the parent's end, whichever way that comes.
            os.close(write_end)
            os.read(read_end, 1)
        finally:
            os._exit(0)
    try:
        for kind, text in (("uid", tree.uid_map), ("gid", tree.gid_map)):
            try:
                safe_paths.write_proc(f"{pid}/{kind}_map", text)
            except OSError as error:
                words = f"{kind}Mappings: the kernel refuses {text.strip()!r}: {error.strerror}"
                raise RuntimeFault("invalid", f"{tree.field}.{words}", "mount") from None
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(read_end)
        os.close(write_end)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
