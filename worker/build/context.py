"""What a build is made from: the client's tar, unpacked into a directory of its own, and the Dockerfile in it.

Decides where a Dockerfile is looked for, and that nothing is written outside the directory. ``.dockerignore`` has been applied
by the client; here it only takes back the two files that are sent in spite of it, as Docker does.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from covey import dockerignore
from covey.errors import InvalidArgument
from worker.build.threads import whole
from worker.containers import tree_put
from worker.containers.host import Host
from worker.dockerfile import parser
from worker.images import compression
from worker.images.compression import Peeked, Readable
from worker.images.tar_stream import BadArchive
from worker.kernel import safe_paths, trees

IGNORE = ".dockerignore"


def directory(host: Host) -> Path:
    """Where contexts lie; a daemon's start clears it."""
    return host.options.data_root / "build" / "contexts"


@asynccontextmanager
async def received(host: Host, stream: Readable) -> AsyncIterator[int]:
    """The descriptor of a directory with what ``stream`` (a tar, however compressed) holds; gone afterwards."""
    place = directory(host) / secrets.token_hex(16)
    opened: list[int] = []
    try:
        # A client that leaves makes the read fail for which this waits.
        await whole(host, _unpack, stream, place, opened)
        yield opened[0]
    finally:
        for fd in opened:
            os.close(fd)
        await host.carry(host.run(trees.remove_path, place), "build: context")


def _unpack(stream: Readable, place: Path, opened: list[int]) -> None:
    place.mkdir(mode=0o700, parents=True)
    opened.append(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        tree_put.unpack(compression.plain(Peeked(stream, 8)), opened[0], "/")
    except BadArchive as error:
        raise InvalidArgument(f"the build context is no tar archive: {error.message}") from None
    except OSError as error:
        raise InvalidArgument(f"cannot unpack the build context: {error.strerror} ({error.filename or ''})") from error


def dockerfile(root_fd: int, name: str) -> str:
    """The text of the Dockerfile. Blocking. InvalidArgument in Docker's words."""
    candidates = [name, "dockerfile"] if name == "Dockerfile" else [name]
    for candidate in candidates:
        data = _read(root_fd, candidate)
        if data is None:
            continue
        if not data:
            raise InvalidArgument(f"the Dockerfile ({candidate}) cannot be empty")
        _take_back(root_fd, candidate)
        return data.decode("utf-8", "surrogateescape")
    raise InvalidArgument(f"Cannot locate specified Dockerfile: {name}")


def _read(root_fd: int, name: str) -> bytes | None:
    try:
        fd = safe_paths.open_regular_in_root(root_fd, name)
    except OSError:
        return None
    with open(fd, "rb") as file:
        data = file.read(parser.SIZE_LIMIT + 1)
    if len(data) > parser.SIZE_LIMIT:
        raise InvalidArgument(f"the Dockerfile ({name}) is larger than {parser.SIZE_LIMIT} bytes")
    return data


def _take_back(root_fd: int, name: str) -> None:
    """Remove the Dockerfile and ``.dockerignore`` from the context where the latter names them."""
    data = _read(root_fd, IGNORE)
    if data is None:
        return
    try:
        matcher = dockerignore.Matcher(dockerignore.lines(data.decode("utf-8", "replace")))
    except dockerignore.BadPattern as error:
        raise InvalidArgument(f"error reading .dockerignore: {error}") from None
    for path in (name, IGNORE):
        cleaned = "/".join(part for part in path.split("/") if part not in ("", "."))
        if ".." not in cleaned.split("/") and matcher.excludes(cleaned):
            _unlink(root_fd, cleaned)


def _unlink(root_fd: int, path: str) -> None:
    parent, name = safe_paths.split(path)
    try:
        fd = safe_paths.open_in_root(root_fd, parent, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return
    try:
        if stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=fd)
    finally:
        os.close(fd)
