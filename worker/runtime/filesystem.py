"""The steps of init that make a container's file tree: its root, mounts, the pivot.

Every place in the tree is opened under the root by worker.kernel.safe_paths: an image cannot lead a mount elsewhere.
Which mounts there are is decided by worker.runtime.launch.
"""

from __future__ import annotations

import errno
import os
import stat

from worker.kernel import mounts, safe_paths, syscalls
from worker.kernel.bare import Any, Protocol
from worker.runtime import sync
from worker.runtime.copy_up import copy_up as copy_tree
from worker.runtime.errors import RuntimeFault

_NOT_BEHIND_LINKS = ("proc", "sysfs")
"""Whoever may move a link's target could move the mount away from its masks (CVE-2023-27561)."""

Attributes = tuple[int, int]


_SKELETON_ROOT = "root"


class Tree(Protocol):
    """``root_fd``: the root under construction. ``place_fd``: where it goes, if that is open already, else -1. ``sources``:
    (path, recursive) → detached copies made beforehand, one a use.
    """

    root_fd: int
    place_fd: int
    channel: sync.Channel
    sources: dict[tuple[str, bool], list[int]]


def private_mounts(tree: Tree, propagation: int) -> None:
    syscalls.mount(None, "/", None, propagation)


def private_parent(tree: Tree, path: str) -> None:
    """Make the mount that holds the rootfs private: what is put into a shared one would show on the host."""
    place = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    wanted = _mount_id(place)
    os.close(place)
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.split(" ")
            if fields[0] == wanted:
                syscalls.mount(None, mounts.unescape(fields[4]), None, syscalls.MS_PRIVATE)


def open_root(tree: Tree, path: str) -> None:
    """Make the rootfs a mount of its own, private so that nothing put into it shows on the host, and open it."""
    target = tree.place_fd if tree.place_fd >= 0 else _opened_root(path)
    copy = _copy_of(tree, path, True)
    mounts.set_attributes(copy, 0, 0, recursive=True, propagation=syscalls.MS_PRIVATE)
    mounts.attach(copy, target)
    os.close(target)
    tree.root_fd = copy


def hold_sources(tree: Tree, root: str, binds: list[tuple[str, bool]]) -> None:
    """In a user namespace, before its mapped root's ids are taken: copies of the root and of the binds' sources.

    Until then the owner of the machine's directories may pass them; what the machine has set on the mounts stays set.
    """
    tree.place_fd = _opened_root(root)
    for path, recursive in [(root, True), *binds]:
        try:
            copy = _cloned(path, recursive)
        except PermissionError:
            raise RuntimeFault("invalid", f"bind source {path}: {_closed_directory(path)}", "hold_sources") from None
        tree.sources.setdefault((path, recursive), []).insert(0, copy)


def _opened_root(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        raise RuntimeFault("invalid", f"root.path: {_closed_directory(path)}", "open_root") from None
    except FileNotFoundError:
        raise RuntimeFault("invalid", f"root.path: there is no directory {path}", "open_root") from None
    except NotADirectoryError:
        raise RuntimeFault("invalid", f"root.path: {path} is not a directory", "open_root") from None


def _closed_directory(path: str) -> str:
    """Which directory on the way keeps the mapped root of a user namespace out, in words."""
    way = os.path.dirname(path)
    parts = [part for part in way.split("/") if part]
    for index in range(len(parts) + 1):
        directory = "/" + "/".join(parts[:index])
        if not os.access(directory, os.X_OK, effective_ids=True):
            return f"directory {directory} is closed to the container's root user: it needs the x permission for it"
    return f"{path} is closed to the container's root user"


def skeleton(tree: Tree, place: str) -> None:
    """An empty root of a sandbox's own, with a directory for the container's root; put over ``place``, seen by nobody else."""
    top = mounts.new_filesystem("tmpfs", ["mode=755", "size=64k"])
    target = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mounts.attach(top, target)
    os.close(target)
    os.mkdir(_SKELETON_ROOT, 0o755, dir_fd=top)
    tree.root_fd = top


def take_root(tree: Tree, path: str) -> None:
    """The container's root, over the skeleton's directory for it; private, so that nothing put into it shows on the host."""
    copy = tree.sources[path, True].pop()
    mounts.set_attributes(copy, 0, 0, recursive=True, propagation=syscalls.MS_PRIVATE)
    target = os.open(f"/{_SKELETON_ROOT}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mounts.attach(copy, target)
    os.close(target)
    os.close(tree.root_fd)
    tree.root_fd = copy


def take_tree(tree: Tree, path: str) -> None:
    """Move a tree of the skeleton, with all that is mounted in it, to the same place of the container's root."""
    make = safe_paths.make_dirs_in_root if path == "/dev" else _make_without_links
    target = make(tree.root_fd, path)
    mounts.move(path, target)
    os.close(target)


def _finish(
    mount_fd: int,
    target: int,
    attributes: Attributes,
    recursive_attributes: Attributes,
    propagation: list[int],
) -> None:
    """Set attributes on a detached mount, put it in place, then its propagation (a detached one has no peers)."""
    try:
        _set_attributes(mount_fd, attributes, recursive_attributes)
        mounts.attach(mount_fd, target)
        for flag in propagation:
            recursive = bool(flag & syscalls.MS_REC)
            mounts.set_attributes(mount_fd, 0, 0, recursive=recursive, propagation=flag & ~syscalls.MS_REC)
    finally:
        os.close(mount_fd)
        os.close(target)


def _set_attributes(mount_fd: int, attributes: Attributes, recursive_attributes: Attributes) -> None:
    try:
        if attributes != (0, 0):
            mounts.set_attributes(mount_fd, *attributes)
        if recursive_attributes != (0, 0):
            mounts.set_attributes(mount_fd, *recursive_attributes, recursive=True)
    except PermissionError as error:
        # The kernel keeps what the host has set on a mount that came into a user namespace (mount_namespaces(7)).
        words = "an option would undo what the host has set on it, which a user namespace may not"
        raise RuntimeFault("kernel", f"{words} (errno {error.errno})") from None


def mount_bind(tree: Tree, source: str, recursive: bool, destination: str, **how: Any) -> None:
    _attach_bind(tree, _copy_of(tree, source, recursive), destination, how)


def _copy_of(tree: Tree, source: str, recursive: bool) -> int:
    made = tree.sources.get((source, recursive))
    return made.pop() if made else _cloned(source, recursive)


def _cloned(source: str, recursive: bool) -> int:
    try:
        return mounts.clone(source, recursive=recursive)
    except FileNotFoundError:
        raise RuntimeFault("invalid", f"bind source {source} does not exist") from None


def mount_mapped(tree: Tree, source: str, destination: str, **how: Any) -> None:
    """A bind whose owners are mapped: the parent has made it."""
    _, (copy,) = tree.channel.expect(sync.TREE)
    _attach_bind(tree, copy, destination, how)


def _attach_bind(tree: Tree, copy: int, destination: str, how: dict[str, Any]) -> None:
    if stat.S_ISDIR(os.fstat(copy).st_mode):
        target = safe_paths.make_dirs_in_root(tree.root_fd, destination)
    else:
        target = safe_paths.create_file_in_root(tree.root_fd, destination)
    _finish(copy, target, **how)


def remount(
    tree: Tree,
    fstype: str,
    options: list[str],
    destination: str,
    attributes: Attributes,
    recursive_attributes: Attributes,
) -> None:
    """Change what is mounted at the place already: the mount's attributes, then its filesystem's own options."""
    target = safe_paths.open_in_root(tree.root_fd, destination)
    try:
        if not _is_mount_point(target):
            raise RuntimeFault("invalid", f"remount: nothing is mounted at {destination}")
        _set_attributes(target, attributes, recursive_attributes)
        if options:
            mounts.reconfigure(target, fstype, options)
    finally:
        os.close(target)


def mount_filesystem(
    tree: Tree,
    fstype: str,
    source: str | None,
    options: list[str],
    copy_up: bool,
    destination: str,
    attributes: Attributes,
    **how: Any,
) -> None:
    make = _make_without_links if fstype in _NOT_BEHIND_LINKS else safe_paths.make_dirs_in_root
    target = make(tree.root_fd, destination)
    if fstype == "tmpfs" and not any(option.startswith("mode=") for option in options):
        # A tmpfs over an existing directory takes its mode (and owner), as a fresh volume would.
        entry = os.stat(target)
        options = [*options, f"mode={stat.S_IMODE(entry.st_mode):o}"]
    if copy_up:
        made = mounts.new_filesystem(fstype, options, source=source)
        copy_tree(target, made)
    else:
        # A new mount has nothing set that would have to be cleared.
        made = mounts.new_filesystem(fstype, options, attributes[0], source=source)
        attributes = (0, 0)
    _finish(made, target, attributes, **how)


def _make_without_links(root_fd: int, destination: str) -> int:
    """As ``make_dirs_in_root``, but a link on the way is refused."""
    try:
        try:
            return safe_paths.open_in_root(root_fd, destination, os.O_PATH | os.O_DIRECTORY, follow=False)
        except FileNotFoundError:
            os.close(safe_paths.make_dirs_in_root(root_fd, destination))
            return safe_paths.open_in_root(root_fd, destination, os.O_PATH | os.O_DIRECTORY, follow=False)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise RuntimeFault("invalid", f"the image has a link at {destination}, which must be a directory") from None


def mount_cgroup(
    tree: Tree,
    directories: list[tuple[str, str, tuple[str, ...]]],
    destination: str,
    attributes: Attributes,
    recursive_attributes: Attributes,
    propagation: list[int],
) -> None:
    """The container's own cgroup directories: v2's as they are, v1's each below a tmpfs."""
    if [name for name, _, _ in directories] == [""]:
        mount_bind(
            tree,
            directories[0][1],
            False,
            destination,
            attributes=attributes,
            recursive_attributes=recursive_attributes,
            propagation=propagation,
        )
        return
    target = safe_paths.make_dirs_in_root(tree.root_fd, destination)
    top = mounts.new_filesystem("tmpfs", ["mode=755", "size=64k"])
    mounts.attach(top, target)
    os.close(target)
    before = _working_directory()
    os.fchdir(top)
    try:
        for name, directory, aliases in directories:
            os.mkdir(name, 0o755)
            # By its name, as nobody else has seen this directory: a third of the calls that a detached copy takes.
            syscalls.mount(directory, name, None, syscalls.MS_BIND)
            for alias in aliases:
                os.symlink(name, alias)
    finally:
        os.fchdir(before)
        os.close(before)
    # All at once, of what nobody has seen yet.
    mounts.set_attributes(top, *attributes, recursive=True, propagation=syscalls.MS_PRIVATE)
    _set_attributes(top, (0, 0), recursive_attributes)
    os.close(top)


def _working_directory() -> int:
    """A descriptor of it, or of the root where the mapped root of a user namespace is kept out."""
    try:
        return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def make_directory(tree: Tree, path: str) -> None:
    """The working directory, if it can be made; whether it can be entered is found out later, as the user."""
    try:
        os.close(safe_paths.make_dirs_in_root(tree.root_fd, path))
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.ENOTDIR, errno.EACCES, errno.EEXIST):
            raise


def pivot(tree: Tree) -> None:
    """Swap the root: the old one lies under the new for a moment and is let go of without a name (pivot_root(2))."""
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fchdir(tree.root_fd)
    syscalls.pivot_root(".", ".")
    os.fchdir(old)
    syscalls.mount(None, ".", None, syscalls.MS_SLAVE | syscalls.MS_REC)
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.close(old)
    os.chdir("/")


def move_root(tree: Tree) -> None:
    """Instead of the pivot, where the old root is a ramdisk that cannot be swapped: it stays below, hidden by a chroot."""
    os.fchdir(tree.root_fd)
    syscalls.mount(".", "/", None, syscalls.MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def _mount_id(fd: int) -> str:
    with open(f"/proc/thread-self/fdinfo/{fd}", encoding="ascii") as info:
        for line in info:
            if line.startswith("mnt_id:"):
                return line.split()[1]
    return ""


def _is_mount_point(fd: int) -> bool:
    """Whether an open place is the root of its mount, and not a file below (mountinfo has no other line for it)."""
    wanted, path = _mount_id(fd), os.readlink(f"/proc/thread-self/fd/{fd}")
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return any(fields[0] == wanted and mounts.unescape(fields[4]) == path for fields in (line.split(" ") for line in lines))


def readonly_root(tree: Tree) -> None:
    mounts.set_attributes(tree.root_fd, syscalls.MOUNT_ATTR_RDONLY, 0)


def root_propagation(tree: Tree, propagation: int) -> None:
    syscalls.mount(None, "/", None, propagation)


FILESYSTEM_STEPS: dict[str, Any] = {
    "hold_sources": hold_sources,
    "make_directory": make_directory,
    "mount_bind": mount_bind,
    "mount_cgroup": mount_cgroup,
    "mount_filesystem": mount_filesystem,
    "mount_mapped": mount_mapped,
    "open_root": open_root,
    "move_root": move_root,
    "pivot": pivot,
    "private_mounts": private_mounts,
    "private_parent": private_parent,
    "readonly_root": readonly_root,
    "remount": remount,
    "root_propagation": root_propagation,
    "skeleton": skeleton,
    "take_root": take_root,
    "take_tree": take_tree,
}
