"""What COPY and ADD are asked to copy: names and patterns looked up in a tree, and a checksum of what they mean.

The tree (a build's context, another stage) is untrusted: walked by descriptors, links followed only inside it. Decides
Docker's errors for what is not there.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from covey.dockerignore import WILDCARDS, BadPattern, Matcher, compiled
from covey.errors import InvalidArgument
from worker.kernel import safe_paths, trees

MATCH_LIMIT = 100_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Source:
    """One file or directory below ``root_fd``. ``checksum``: "file:…" or "dir:…". ``left_out``: paths below a directory."""

    root_fd: int
    path: str
    is_directory: bool
    checksum: str
    left_out: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)


def find(root_fd: int, word: str, names: Sequence[str], excluded: Sequence[str] = (), *, owners: bool = False) -> list[Source]:
    """What ``names`` mean, in their order. ``word``: COPY or ADD, for messages; ``owners``: they count in the checksum.

    Blocking. InvalidArgument in Docker's words.
    """
    try:
        matcher = Matcher(excluded)
        found = []
        for name in names:
            for path in _paths(root_fd, word, name):
                found.append(_source(root_fd, word, path, matcher, owners))
                if len(found) > MATCH_LIMIT:
                    raise InvalidArgument(f"{word} failed: more than {MATCH_LIMIT} files are named; copy their directory")
    except BadPattern as error:
        raise InvalidArgument(f"{word} failed: {error}") from None
    if not found:
        raise InvalidArgument(f"{word} failed: no source files were specified")
    return found


def checksum(sources: Sequence[str]) -> str:
    """Of all together, as history shows it."""
    if len(sources) == 1:
        return sources[0]
    return "multi:" + hashlib.sha256(",".join(sources).encode()).hexdigest()


def _cleaned(word: str, name: str) -> str:
    path = posixpath.normpath(name.lstrip("/") or ".")
    if path == ".." or path.startswith("../"):
        raise InvalidArgument(f"{word} failed: forbidden path outside the build context: {name} ()")
    return path


def _paths(root_fd: int, word: str, name: str) -> Iterator[str]:
    path = _cleaned(word, name)
    if not WILDCARDS & set(path):
        yield path
        return
    pending = [("", tuple(path.split("/")))]
    while pending:
        above, (part, *rest) = pending.pop()
        if not WILDCARDS & set(part):
            candidates = [part]
        else:
            pattern = compiled(part)
            candidates = [each for each in _names(root_fd, above) if pattern.fullmatch(each)]
        joined = [f"{above}/{each}" if above else each for each in candidates]
        if rest:
            pending += [(each, tuple(rest)) for each in reversed(joined)]
        else:
            yield from (each for each in joined if _there(root_fd, each))


def _names(root_fd: int, directory: str) -> list[str]:
    try:
        fd = safe_paths.open_in_root(root_fd, directory, _DIRECTORY)
    except OSError:
        return []
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)


def _there(root_fd: int, path: str) -> bool:
    try:
        os.close(safe_paths.open_in_root(root_fd, path, os.O_PATH | os.O_NOFOLLOW))
    except OSError:
        return False
    return True


def _source(root_fd: int, word: str, path: str, matcher: Matcher, owners: bool) -> Source:
    try:
        fd = safe_paths.open_in_root(root_fd, path, os.O_PATH)
    except OSError as error:
        if error.strerror and "No such file" in error.strerror:
            raise InvalidArgument(
                f"{word} failed: file not found in build context or excluded by .dockerignore: stat {path}: file does not exist"
            ) from None
        raise InvalidArgument(f"{word} failed: {path}: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISDIR(status.st_mode):
            hasher = hashlib.sha256(_line(posixpath.basename(path), status, owners))
            if stat.S_ISREG(status.st_mode):
                _hash_file(hasher, os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
            return Source(root_fd, path, False, f"file:{hasher.hexdigest()}")
    finally:
        os.close(fd)
    directory = safe_paths.open_in_root(root_fd, path, _DIRECTORY)
    try:
        digest, left_out = _hash_tree(directory, matcher, owners)
    finally:
        os.close(directory)
    return Source(root_fd, path, True, f"dir:{digest}", left_out)


def _hash_tree(root: int, matcher: Matcher, owners: bool) -> tuple[str, frozenset[str]]:
    """(digest of all that is copied, paths that are not)."""
    hasher = hashlib.sha256()
    left_out: set[str] = set()
    pending = [""]
    while pending:
        directory = pending.pop()
        fd = safe_paths.open_in_root(root, directory, trees.DIRECTORY, follow=False)
        try:
            below = []
            for name in sorted(os.listdir(fd)):
                path = f"{directory}/{name}" if directory else name
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                is_directory = stat.S_ISDIR(status.st_mode)
                if matcher.excludes(path) and not (is_directory and matcher.has_exceptions):
                    left_out.add(path)
                    continue
                hasher.update(_line(path, status, owners))
                if is_directory:
                    below.append(path)
                elif stat.S_ISLNK(status.st_mode):
                    hasher.update(os.fsencode(os.readlink(name, dir_fd=fd)) + b"\0")
                elif stat.S_ISREG(status.st_mode):
                    _hash_file(hasher, safe_paths.open_regular(fd, name))
            pending += reversed(below)
        finally:
            os.close(fd)
    return hasher.hexdigest(), frozenset(left_out)


def _line(name: str, status: os.stat_result, owners: bool) -> bytes:
    """What of an entry counts beside its content; times do not, as with Docker."""
    words = [os.fsencode(name), b"%o" % status.st_mode, b"%d" % (0 if stat.S_ISDIR(status.st_mode) else status.st_size)]
    if owners:
        words += [b"%d" % status.st_uid, b"%d" % status.st_gid]
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        words.append(b"%d" % status.st_rdev)
    return b"\0".join(words) + b"\0\0"


def _hash_file(hasher: hashlib._Hash, fd: int) -> None:
    """Takes the descriptor."""
    with open(fd, "rb", buffering=0) as file:
        hasher.update(hashlib.file_digest(file, "sha256").digest())
