"""What a bundle needs of the machine: the user's ids, devices, compiled filters, files of the network, namespaces to join.

Blocking reads of the host and of the container's own tree (through safe_paths only); it decides no defaults.
"""

from __future__ import annotations

import grp
import json
import logging
import os
import pwd
import resource
import stat
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from covey.errors import Internal, InvalidArgument
from worker.containers import remap, users
from worker.kernel import mounts, safe_paths, syscalls, trees
from worker.runtime.errors import remedy

log = logging.getLogger(__name__)

_compiled: dict[tuple[str, frozenset[str], Path], str] = {}
"""Where the program of a profile, for a set of capabilities, was found to be."""
_FILE_LIMIT, _READ = 1 << 22, 1 << 16
_SKIPPED_DEVICES = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", "console"})


def read_inside(root_fd: int, path: str) -> str:
    """A regular file of the container's tree, "" when there is none; the first 4 MiB or so."""
    try:
        fd = safe_paths.open_regular_in_root(root_fd, path)
    except OSError:
        return ""
    try:
        text = b""
        while len(text) < _FILE_LIMIT and (more := os.read(fd, _READ)):
            text += more
        return text.decode("utf-8", "replace")
    finally:
        os.close(fd)


def user(root: Path, wanted: str, group_add: Iterable[str] = ()) -> users.User:
    """Who ``wanted`` is by the tree's own passwd and group. Raises InvalidArgument."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return user_in(root_fd, wanted, group_add)
    finally:
        os.close(root_fd)


def user_in(root_fd: int, wanted: str, group_add: Iterable[str] = ()) -> users.User:
    """The same for a tree that is open."""
    return users.resolve(wanted, read_inside(root_fd, "etc/passwd"), read_inside(root_fd, "etc/group"), group_add)


@cache
def processors() -> int:
    """How many the machine has, as it was first asked: the kernel is asked by reading a file."""
    return os.cpu_count() or 1


def host_resolv_conf() -> str:
    """The host's, "" where it has none."""
    try:
        return Path("/etc/resolv.conf").read_text()
    except FileNotFoundError:
        return ""


@cache
def hard_limits() -> dict[str, int]:
    """The hard rlimits of this process by OCI name, -1 for none: root without CAP_SYS_RESOURCE cannot raise them."""
    found = {}
    for name in dir(resource):
        if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE":
            found[name] = resource.getrlimit(getattr(resource, name))[1]
    return found


def _node(path: str, inside: str, access: str) -> dict[str, Any] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        return None
    return {
        "path": inside,
        "type": "c" if stat.S_ISCHR(status.st_mode) else "b",
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "access": access,
    }


def _nodes_below(directory: str, inside: str, access: str) -> list[dict[str, Any]]:
    found = []
    for entry in sorted(os.scandir(directory), key=lambda one: one.name):
        if entry.name in _SKIPPED_DEVICES or entry.is_symlink():
            continue
        target = f"{inside}/{entry.name}"
        if entry.is_dir():
            found += _nodes_below(entry.path, target, access)
        elif (node := _node(entry.path, target, access)) is not None:
            found.append(node)
    return found


def devices(host_config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """OCI device nodes with an "access" each: those asked for, all of the machine when privileged."""
    found: list[dict[str, Any]] = []
    if host_config.get("Privileged"):
        found = _nodes_below("/dev", "/dev", "rwm")
    for wanted in host_config.get("Devices") or []:
        path = str(wanted.get("PathOnHost") or "")
        inside = str(wanted.get("PathInContainer") or path)
        access = str(wanted.get("CgroupPermissions") or "rwm")
        if os.path.isdir(path):
            found += _nodes_below(os.path.realpath(path), inside, access)
            continue
        node = _node(path, inside, access)
        if node is None:
            raise InvalidArgument(
                f'error gathering device information while adding custom device "{path}": no such file or directory '
                "or not a device node"
            )
        found.append(node)
    return list({node["path"]: node for node in found}.values())


def compiled_seccomp(text: str | None, capabilities: Iterable[str], directory: Path, required: bool) -> str:
    """The file with the profile's compiled program, "" for unconfined; kept in ``directory`` by what it depends on.

    Where it cannot be compiled or kept: Internal if ``required``, else a warning and "".
    """
    if text is None:
        return ""
    key = (text, frozenset(capabilities), directory)
    known = _compiled.get(key)
    if known is not None and os.path.exists(known):
        return known
    from worker.runtime import seccomp_compile

    try:
        _compiled[key] = str(seccomp_compile.compiled_file(directory, json.loads(text), capabilities, os.uname().machine))
        return _compiled[key]
    except OSError as error:
        words = f"seccomp filters cannot be compiled ({error}): see to {directory}"
        if required and remedy(error):
            raise Internal(f"{words}{remedy(error)}") from None
        if required:
            raise Internal(f"{words}, or run the container with --security-opt seccomp=unconfined") from None
        log.warning("%s; this container runs WITHOUT a filter on its system calls", words)
        return ""


def read_remap(option: str, asked: str = "--userns-remap") -> remap.Remap:
    """The ids of ``--userns-remap`` by this machine's users, groups, /etc/subuid and /etc/subgid. Raises InvalidArgument.

    ``asked``: what wants it, for messages.
    """
    user, group = remap.split(option)
    users_, groups = _user_names(user), _group_names(group) if group else set()
    for names, kind, name in ((users_, "user", user), (groups, "group", group)):
        if names is None:
            raise InvalidArgument(
                f"{asked} {option}: there is no {kind} {name!r} on this machine: "
                f"add it ({kind}add --system {'--shell /usr/sbin/nologin ' if kind == 'user' else ''}{name})"
            )
    assert users_ is not None
    texts = {file: Path(file).read_text(encoding="utf-8") if os.path.exists(file) else "" for file in remap.FILES}
    # subgid(5) is by the user's name; a group's is taken too, as older Dockers had it.
    allowed = (users_, users_ | (groups or set()))
    uids, gids = (
        remap.ranges(texts[file], who, file, f"{asked} {option}") for file, who in zip(remap.FILES, allowed, strict=True)
    )
    return remap.Remap(uids, gids)


def _user_names(name: str) -> set[str] | None:
    """Both spellings of a user: name and number."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        return None
    return {entry.pw_name, str(entry.pw_uid)}


def _group_names(name: str) -> set[str] | None:
    try:
        entry = grp.getgrgid(int(name)) if name.isdigit() else grp.getgrnam(name)
    except KeyError:
        return None
    return {entry.gr_name, str(entry.gr_gid)}


def make_shm(place: Path, size: int) -> None:
    """A tmpfs of ``size`` bytes at ``place``, to be shared as /dev/shm by containers of one ipc namespace."""
    place.mkdir(mode=0o700, exist_ok=True)
    if str(place) in mounts.mount_points(str(place)):
        return
    flags = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
    mount_fd = mounts.new_filesystem("tmpfs", ["mode=1777", f"size={size}"], flags)
    try:
        target = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mounts.attach(mount_fd, target)
        finally:
            os.close(target)
    finally:
        os.close(mount_fd)


def write_file(path: Path | str, text: str) -> None:
    """Replaces a file's content in place: containers hold a bind on the inode. Raises OSError with the path."""
    try:
        trees.overwrite(path, text.encode())
        os.chmod(path, 0o644)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
