"""Applies one layer's tar stream to an empty directory, in the form overlayfs reads as a lower.

Decides what each entry becomes: whiteouts are character devices 0:0, an opaque directory carries
``trusted.overlay.opaque``. Nothing is ever written outside the root: paths are cleaned here, resolved below the root
by LayerTree, and every last component is created exclusively, so no write goes through a link. Rules: OCI image-spec
layer.md. Knows neither compression nor where layers are kept.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from worker.images.compression import CHUNK, Readable
from worker.images.layer_tree import LayerTree, inherit
from worker.images.tar_stream import BadArchive, Entry, Limits, TarReader
from worker.kernel import safe_paths, trees

WHITEOUT_PREFIX = ".wh."
OPAQUE_MARK = ".wh..wh..opq"
META_PREFIX = ".wh..wh."
OPAQUE_XATTR = "trusted.overlay.opaque"
_REFUSED_XATTRS = ("trusted.overlay.", "user.overlay.", "security.selinux", "security.ima", "security.evm")
"""A layer must not speak to overlayfs (redirects reach other paths), nor carry another host's labels."""
_UNSUPPORTED = {errno.ENOTSUP, errno.EPERM, errno.EINVAL}
_TIME_LIMIT_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class Applied:
    """``size``: bytes of regular files as they stand (holes not counted); ``entries``: members applied.

    ``sums``: inode → SHA-256 of the content, of files that are not sparse; ``implied``: directories whose attributes the
    layers below decide (see ``LayerTree``).
    """

    size: int
    entries: int
    sums: Mapping[int, str] = field(default_factory=dict, compare=False)
    implied: tuple[str, ...] = field(default=(), compare=False)


def clean_path(name: str, limits: Limits) -> str:
    """``name`` relative to the root, without ``.`` and ``..``; the root itself is "".

    BadArchive when it climbs above the root, is too long, or holds a NUL.
    """
    if "\0" in name:
        raise BadArchive(f"archive has a path with a NUL byte: {name!r}")
    path = posixpath.normpath(name.lstrip("/") or ".")
    if path == ".." or path.startswith("../"):
        raise BadArchive(f"archive entry {name!r} lies outside the root")
    path = "" if path == "." else path
    raw = os.fsencode(path)
    if len(raw) > limits.path_bytes or any(len(part) > limits.name_bytes for part in raw.split(b"/")):
        raise BadArchive(f"archive has a path that is too long: {name[:80]!r}…")
    return path


def apply_layer(stream: Readable, root_fd: int, lowers: Sequence[int] = (), limits: Limits | None = None) -> Applied:
    """Unpack ``stream`` (plain tar) below ``root_fd``, an empty directory that nobody else writes to.

    ``lowers``: descriptors of the layers below, topmost first, as far as they are there already; for the rest the caller
    calls ``inherit`` later. Raises BadArchive, BadCompression or OSError; what was written until then stays for the caller
    to remove.
    """
    limits = limits or Limits()
    tree = LayerTree(root_fd)
    try:
        applied = _Applier(TarReader(stream, limits), tree, limits).run()
    finally:
        tree.close()
    inherit(root_fd, applied.implied, lowers)
    return applied


class _Applier:
    def __init__(self, reader: TarReader, tree: LayerTree, limits: Limits) -> None:
        self._reader, self._tree, self._limits = reader, tree, limits
        self._size = 0
        self._sums: dict[int, str] = {}
        self._directory_times: dict[str, int] = {}
        self._make: dict[str, Callable[[Entry, int, str], None]] = {
            "file": self._file,
            "hardlink": self._hardlink,
            "symlink": self._symlink,
            "char": self._device,
            "block": self._device,
            "fifo": self._fifo,
        }

    def run(self) -> Applied:
        count = 0
        for entry in self._reader:
            try:
                self._apply(entry)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                    raise
                raise BadArchive(f"cannot unpack {entry.name!r}: {error.strerror}") from error
            except (OverflowError, ValueError) as error:
                raise BadArchive(f"cannot unpack {entry.name!r}: {error}") from error
            count += 1
            if count + len(self._tree.implied) > self._limits.entries:
                raise BadArchive(f"archive makes more than {self._limits.entries} entries with the directories its paths imply")
        for path in sorted(self._directory_times, reverse=True):
            self._set_directory_time(path)
        return Applied(self._size, count, self._sums, tuple(self._tree.implied.values()))

    def _apply(self, entry: Entry) -> None:
        path = clean_path(entry.name, self._limits)
        if not path:
            if entry.kind == "directory":
                self._tree.stated(os.fstat(self._tree.root_fd).st_ino)
                self._attributes(self._tree.root_fd, entry)
                self._directory_times[""] = entry.mtime_ns
            return
        parent_path, _, name = path.rpartition("/")
        if name == OPAQUE_MARK:
            self._opaque(parent_path)
        elif path.startswith(META_PREFIX) or f"/{META_PREFIX}" in path:
            return
        elif name.startswith(WHITEOUT_PREFIX):
            self._whiteout(parent_path, name[len(WHITEOUT_PREFIX) :])
        elif entry.kind == "directory":
            self._directory(entry, path, parent_path, name)
        else:
            parent_fd = self._free(parent_path, name)
            self._make[entry.kind](entry, parent_fd, name)

    def _free(self, parent_path: str, name: str) -> int:
        """The parent's descriptor, with nothing at ``name``."""
        parent_fd = self._tree.parent(parent_path)
        status = self._tree.status(parent_fd, name)
        if status is None:
            return parent_fd
        trees.remove_tree(parent_fd, name)
        if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):
            self._tree.forget()
            return self._tree.parent(parent_path)
        return parent_fd

    def _opaque(self, path: str) -> None:
        os.setxattr(self._tree.parent(path), OPAQUE_XATTR, b"y")

    def _whiteout(self, parent_path: str, name: str) -> None:
        """Hide ``name`` of the layers below; what this layer itself has under that name stays (OCI layer.md)."""
        if name in ("", ".", ".."):
            raise BadArchive(f"archive has a whiteout of {name!r} in {parent_path!r}")
        parent_fd = self._tree.parent(parent_path)
        status = self._tree.status(parent_fd, name)
        if status is None:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent_fd)
        elif stat.S_ISDIR(status.st_mode):
            self._opaque(f"{parent_path}/{name}" if parent_path else name)

    def _directory(self, entry: Entry, path: str, parent_path: str, name: str) -> None:
        parent_fd = self._tree.parent(parent_path)
        status = self._tree.status(parent_fd, name)
        hides_lower = status is not None and _is_whiteout(status)
        if status is None or not stat.S_ISDIR(status.st_mode):
            parent_fd = self._free(parent_path, name)
            os.mkdir(name, 0o700, dir_fd=parent_fd)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
        try:
            self._tree.stated(os.fstat(fd).st_ino)
            if hides_lower:
                os.setxattr(fd, OPAQUE_XATTR, b"y")
            self._attributes(fd, entry)
        finally:
            os.close(fd)
        self._directory_times[path] = entry.mtime_ns

    def _file(self, entry: Entry, parent_fd: int, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent_fd)
        try:
            hasher = hashlib.sha256()
            if entry.sparse is None:
                self._copy(fd, entry.size, hasher.update)
                if entry.size:
                    self._sums[os.fstat(fd).st_ino] = hasher.hexdigest()
            else:
                for offset, length in entry.sparse:
                    os.lseek(fd, offset, os.SEEK_SET)
                    self._copy(fd, length, hasher.update)
                os.ftruncate(fd, entry.size)
                self._sums.pop(os.fstat(fd).st_ino, None)
            self._attributes(fd, entry)
            os.utime(fd, ns=_times(entry.mtime_ns))
        finally:
            os.close(fd)

    def _copy(self, fd: int, length: int, seen: Callable[[bytes], None]) -> None:
        self._size += length
        while length:
            data = self._reader.read(min(length, CHUNK))
            length -= len(data)
            seen(data)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]

    def _hardlink(self, entry: Entry, parent_fd: int, name: str) -> None:
        target = clean_path(entry.link, self._limits)
        target_parent, _, target_name = target.rpartition("/")
        if not target_name:
            raise BadArchive(f"hard link {entry.name!r} points at the root")
        held = os.dup(parent_fd)
        try:
            source_fd = self._tree.parent(target_parent)
            status = self._tree.status(source_fd, target_name)
            if status is None or stat.S_ISDIR(status.st_mode):
                raise BadArchive(f"hard link {entry.name!r} points at {entry.link!r}, which this layer does not have")
            os.link(target_name, name, src_dir_fd=source_fd, dst_dir_fd=held, follow_symlinks=False)
        finally:
            os.close(held)

    def _symlink(self, entry: Entry, parent_fd: int, name: str) -> None:
        if not entry.link or "\0" in entry.link or len(os.fsencode(entry.link)) > self._limits.path_bytes:
            raise BadArchive(f"symbolic link {entry.name!r} has a target that cannot be")
        os.symlink(entry.link, name, dir_fd=parent_fd)
        self._name_attributes(entry, parent_fd, name)

    def _device(self, entry: Entry, parent_fd: int, name: str) -> None:
        kind = stat.S_IFCHR if entry.kind == "char" else stat.S_IFBLK
        os.mknod(name, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=parent_fd)
        self._name_attributes(entry, parent_fd, name, mode=entry.mode)

    def _fifo(self, entry: Entry, parent_fd: int, name: str) -> None:
        os.mkfifo(name, 0o600, dir_fd=parent_fd)
        self._name_attributes(entry, parent_fd, name, mode=entry.mode)

    def _name_attributes(self, entry: Entry, parent_fd: int, name: str, mode: int | None = None) -> None:
        os.chown(name, entry.uid, entry.gid, dir_fd=parent_fd, follow_symlinks=False)
        if mode is not None:
            os.chmod(name, mode, dir_fd=parent_fd)
        for key, value in _allowed(entry.xattrs):
            _set_xattr(f"/proc/self/fd/{parent_fd}/{name}", key, value)
        os.utime(name, ns=_times(entry.mtime_ns), dir_fd=parent_fd, follow_symlinks=False)

    @staticmethod
    def _attributes(fd: int, entry: Entry) -> None:
        # Owner first: chown clears set-id bits and file capabilities.
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        for key, value in _allowed(entry.xattrs):
            _set_xattr(fd, key, value)

    def _set_directory_time(self, path: str) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            fd = safe_paths.open_in_root(self._tree.root_fd, path, flags)
        except OSError:
            return  # a later entry put something else there
        try:
            os.utime(fd, ns=_times(self._directory_times[path]))
        finally:
            os.close(fd)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _times(mtime_ns: int) -> tuple[int, int]:
    bounded = max(-_TIME_LIMIT_NS, min(mtime_ns, _TIME_LIMIT_NS))
    return bounded, bounded


def _allowed(xattrs: dict[str, bytes]) -> list[tuple[str, bytes]]:
    return [(key, value) for key, value in xattrs.items() if not key.startswith(_REFUSED_XATTRS)]


def _set_xattr(where: int | str, key: str, value: bytes) -> None:
    """Set one attribute; one this filesystem or kernel does not take is left out, as Docker does."""
    try:
        os.setxattr(where, key, value, follow_symlinks=isinstance(where, int))
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
