"""COPY and ADD made ready: destination, owner and mode read, sources found wherever they lie.

Decides what a destination means, who owns what is copied, and fetches what ADD names by address.
"""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import os
import posixpath
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from covey.errors import InvalidArgument
from worker.build import context, sources, transfer
from worker.build.sources import Source
from worker.build.threads import whole
from worker.containers import remap, surroundings, tree_put
from worker.containers.host import Host
from worker.dockerfile.instructions import Copy
from worker.images import web
from worker.kernel import trees

_GIT = ("git@", "git://", "ssh://", "github.com/")


@dataclass(frozen=True, slots=True)
class Found:
    """``local``: what ADD may unpack; ``fetched``: what it may not."""

    local: list[Source]
    fetched: list[Source]

    @property
    def checksum(self) -> str:
        return sources.checksum([one.checksum for one in (*self.local, *self.fetched)])


def destination(config: Mapping[str, Any], command: Copy) -> str:
    """Absolute; a last slash is kept, it says directory."""
    given = command.destination
    if not given:
        raise InvalidArgument(f"{command.word}: the destination is empty")
    if given.startswith("/"):
        return given
    joined = posixpath.normpath(posixpath.join(config.get("WorkingDir") or "/", given))
    return joined + "/" if given.endswith("/") and joined != "/" else joined


def mode(command: Copy) -> int | None:
    """``--chmod``, in octal digits."""
    if not command.mode:
        return None
    try:
        value = int(command.mode, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o7777:
        raise InvalidArgument(f"invalid chmod parameter: '{command.mode}'. it should be octal string and between 0 and 07777")
    return value


def owner(root_fd: int, command: Copy) -> tuple[int, int] | None:
    """``--chown`` by the image's own users and groups; without a group, the group named like the user. Blocking."""
    if not command.owner:
        return None
    user, colon, group = command.owner.partition(":")
    if not user or (colon and not group):
        raise InvalidArgument(f"invalid chown string format: {command.owner}")
    try:
        who = surroundings.user_in(root_fd, f"{user}:{group or user}")
    except InvalidArgument as error:
        raise InvalidArgument(f"{command.word} failed: --chown={command.owner}: {error.message}") from None
    return who.uid, who.gid


async def find(host: Host, command: Copy, root_fd: int, stack: AsyncExitStack) -> Found:
    """All sources; what was fetched or written for them goes with ``stack``."""
    addresses = [one for one in command.sources if command.word == "ADD" and "://" in one.partition("?")[0]]
    plain = [one for one in command.sources if one not in addresses]
    if any(one.startswith(_GIT) or (command.word == "ADD" and one.endswith(".git")) for one in command.sources):
        raise InvalidArgument(f"{command.word} of a git repository is refused: clone it into the context first")
    if command.checksum and (len(addresses) != 1 or plain):
        raise InvalidArgument("checksum can't be specified for multiple or local sources")
    local = []
    if plain:
        owners = bool(command.stage) and not command.owner
        local = await whole(host, sources.find, root_fd, command.word, plain, command.excluded, owners=owners)
    fetched: list[Source] = []
    for address in addresses:
        place, fd = await stack.enter_async_context(scratch(host))
        name = await _fetch(address, command, place)
        fetched += await whole(host, sources.find, fd, "ADD", [name])
        _check(command, place / name)
    if command.files:
        place, fd = await stack.enter_async_context(scratch(host))
        for heredoc in command.files:
            fetched += await whole(host, _written, fd, place, heredoc.name, heredoc.content)
    return Found(local, fetched)


@asynccontextmanager
async def scratch(host: Host) -> AsyncIterator[tuple[Path, int]]:
    """A directory for files that come from elsewhere, and its descriptor."""
    place = context.directory(host) / secrets.token_hex(16)
    place.mkdir(mode=0o700, parents=True)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield place, fd
    finally:
        os.close(fd)
        await host.carry(host.run(trees.remove_path, place), "build: scratch")


def _written(fd: int, place: Path, name: str, content: str) -> list[Source]:
    if "/" in name or name in (".", ".."):
        raise InvalidArgument(f"a here-document called {name!r} cannot be a file: choose another delimiter")
    path = place / name
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    path.chmod(0o644)
    return [replace(one, path=name) for one in sources.find(fd, "COPY", [name])]


async def _fetch(address: str, command: Copy, place: Path) -> str:
    """Download into ``place``; the file's name. Docker's: the last part of the path, mode 0600, Last-Modified's time."""
    parts = urlsplit(address)
    name = posixpath.basename(parts.path)
    if not name:
        if command.destination.endswith("/"):
            raise InvalidArgument(f"ADD failed: cannot determine filename from url: {address}")
        name = "file"
    try:
        async with web.fetched(address) as page:
            await _save(page.chunks, place / name, _stamp(page.headers))
    except InvalidArgument as error:
        raise InvalidArgument(f"ADD failed: {error.message}") from error
    return name


async def _save(chunks: AsyncIterator[bytes], path: Path, stamp: float) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        async for chunk in chunks:
            await asyncio.to_thread(tree_put.write, fd, chunk)
        os.utime(fd, (stamp, stamp))
    finally:
        os.close(fd)


def _stamp(headers: Mapping[str, str]) -> float:
    """Last-Modified in seconds since the epoch, 0 without one."""
    try:
        return email.utils.parsedate_to_datetime(headers.get("Last-Modified", "")).timestamp()
    except ValueError:
        return 0.0


def _check(command: Copy, path: Path) -> None:
    """``--checksum=sha256:…``."""
    if not command.checksum:
        return
    with open(path, "rb") as file:
        found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if found != command.checksum:
        raise InvalidArgument(f"ADD failed: digest mismatch {found}: {command.checksum}")


def make_workdir(host: Host, root_fd: int, path: str) -> bool:
    """Make the directory of WORKDIR, root's; whether it was not there. Blocking."""
    try:
        return transfer.make_directory(root_fd, path, None, _owners(host, remap.outside))
    except OSError as error:
        raise InvalidArgument(f"WORKDIR {path}: {error.strerror}") from None


def carry_out(host: Host, root_fd: int, command: Copy, where: str, found: Found) -> None:
    """Copy what was found into the workspace ``root_fd``. Blocking."""
    wish = transfer.Wish(
        command.word,
        where,
        owner=owner(root_fd, command) or (None if command.stage else (0, 0)),
        mode=mode(command),
        owners=_owners(host, remap.outside),
        read_owners=_owners(host, remap.inside) if command.stage else None,
        parents=command.parents,
    )
    local = replace(wish, extract=True, archive_owner=owner(root_fd, command)) if command.word == "ADD" else wish
    transfer.carry_out(root_fd, found.local, local)
    transfer.carry_out(root_fd, found.fetched, wish)


def _owners(host: Host, convert: Callable[[tuple[remap.Range, ...], int], int]) -> tree_put.Owners | None:
    """How owners are written to disk, or read from it, where containers have a user namespace."""
    ids = host.options.remap
    if ids is None:
        return None
    return lambda uid, gid: (convert(ids.uids, uid), convert(ids.gids, gid))


def fits(found: Sequence[Source], command: Copy) -> None:
    """Raises InvalidArgument where many things would be copied to one name."""
    if len(found) > 1 and not command.destination.endswith("/"):
        raise InvalidArgument(
            f"When using {command.word} with more than one source file, the destination must be a directory and end with a /"
        )
