"""COPY and ADD carried out: from sources into a workspace, by the classic builder's rules for directories and owners.

Everything goes through the tar writer and the safe unpacker of ``docker cp``, so nothing is written outside the root.
Facts: moby builder/dockerfile/copy.go.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from covey.errors import InvalidArgument
from worker.build.layer_tar import Stream
from worker.build.sources import Source
from worker.containers import tree_put, tree_tar
from worker.containers.tree_put import Owner, Owners
from worker.images import compression
from worker.images.compression import BadCompression, Peeked, Readable
from worker.images.tar_stream import BadArchive, TarReader
from worker.kernel import safe_paths

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_TAR_HEAD = 4096


@dataclass(frozen=True, slots=True)
class Wish:
    """``destination``: absolute; a last slash says directory. ``owner``, ``mode``: instead of the sources'.

    ``owners``, ``read_owners``: how ids are converted on their way to the disk and from it. ``extract``: local archives are
    unpacked (ADD), their entries ``archive_owner``'s or whose they say.
    """

    word: str
    destination: str
    owner: Owner = None
    mode: int | None = None
    owners: Owners | None = None
    read_owners: Owners | None = None
    extract: bool = False
    archive_owner: Owner = None
    parents: bool = False


def carry_out(root_fd: int, sources: list[Source], wish: Wish) -> None:
    """Copy all of it. Blocking. InvalidArgument in Docker's words, also for what the file system refuses."""
    for source in sources:
        try:
            _one(root_fd, source, wish)
        except OSError as error:
            words = f"{error.strerror} ({error.filename or wish.destination})"
            raise InvalidArgument(f"{wish.word} failed: cannot copy {source.path} to {wish.destination}: {words}") from error


def _one(root_fd: int, source: Source, wish: Wish) -> None:
    destination = wish.destination
    if wish.parents:
        above = source.path if source.is_directory else posixpath.dirname(source.path)
        destination = posixpath.join(destination, above) + "/"
    if source.is_directory:
        _directory(root_fd, source, destination, wish)
        return
    found = _kind(root_fd, destination)
    if wish.extract and (archive := _archive(source)) is not None:
        if found not in (None, stat.S_IFDIR):
            raise InvalidArgument(f"{wish.word} failed: cannot extract to non-directory: {destination}")
        with archive as stream:
            make_directory(root_fd, destination, wish.owner, wish.owners)
            tree_put.unpack(stream, root_fd, destination, owner=wish.archive_owner, owners=wish.owners)
        return
    if destination.endswith("/") or found == stat.S_IFDIR:
        destination = posixpath.join(destination, source.name)
    elif found is not None:
        destination = resolved(root_fd, destination)
    parent, name = posixpath.split(destination)
    make_directory(root_fd, parent, wish.owner, wish.owners)
    above_fd, last = tree_tar.open_parent(source.root_fd, resolved(source.root_fd, source.path))
    try:
        pieces = tree_tar.pack(above_fd, last, name, owners=wish.read_owners)
        tree_put.unpack(Stream(pieces), root_fd, parent, owner=wish.owner, owners=wish.owners, mode=wish.mode)
    finally:
        os.close(above_fd)


def _directory(root_fd: int, source: Source, destination: str, wish: Wish) -> None:
    """What is in it, not itself."""
    if _kind(root_fd, destination) not in (None, stat.S_IFDIR):
        raise InvalidArgument(f"{wish.word} failed: cannot copy to non-directory: {destination}")
    make_directory(root_fd, destination, wish.owner, wish.owners)
    fd = safe_paths.open_in_root(source.root_fd, source.path, _DIRECTORY)
    try:
        pieces = tree_tar.pack(fd, ".", "", owners=wish.read_owners, left_out=source.left_out)
        tree_put.unpack(Stream(pieces), root_fd, destination, owner=wish.owner, owners=wish.owners, mode=wish.mode)
    finally:
        os.close(fd)


def resolved(root_fd: int, path: str) -> str:
    """Where ``path``, which may be a link, really lies, from the root. OSError when nothing is there."""
    fd = safe_paths.open_in_root(root_fd, path, os.O_PATH)
    try:
        root = os.readlink(f"/proc/self/fd/{root_fd}")
        return os.readlink(f"/proc/self/fd/{fd}").removeprefix(root.rstrip("/")) or "/"
    finally:
        os.close(fd)


def _kind(root_fd: int, path: str) -> int | None:
    try:
        fd = safe_paths.open_in_root(root_fd, path, os.O_PATH)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return stat.S_IFREG
    try:
        return stat.S_IFMT(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


def make_directory(root_fd: int, path: str, owner: Owner, owners: Owners | None) -> bool:
    """Make ``path`` with its parents, all that is new ``owner``'s (root's); whether anything was."""
    uid, gid = owner or (0, 0)
    if owners is not None:
        uid, gid = owners(uid, gid)
    made = False
    parts = [part for part in path.split("/") if part]
    for depth in range(1, len(parts) + 1):
        above = "/".join(parts[:depth])
        if _kind(root_fd, above) is not None:
            continue
        fd = safe_paths.make_dirs_in_root(root_fd, above)
        try:
            os.chown(f"/proc/self/fd/{fd}", uid, gid)
            os.chmod(f"/proc/self/fd/{fd}", 0o755)
        finally:
            os.close(fd)
        made = True
    return made


def _archive(source: Source) -> contextlib.AbstractContextManager[Readable] | None:
    """The tar in a file, opened; None when it is none."""
    try:
        with _plain(source) as stream:
            if next(iter(TarReader(stream)), None) is None:
                return None
    except (BadArchive, BadCompression, OSError):
        return None
    return _plain(source)


@contextlib.contextmanager
def _plain(source: Source) -> Iterator[Readable]:
    with open(safe_paths.open_regular_in_root(source.root_fd, source.path), "rb") as file:
        yield compression.plain(Peeked(file, _TAR_HEAD))
