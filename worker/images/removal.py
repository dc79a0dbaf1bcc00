"""Decides what removing an image means: which names go, whether the image goes, or which conflict stands in the way.

Pure. The rules and words are those of Docker's image delete (moby daemon/images/image_delete.go, facts only).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from covey.errors import Conflict
from worker.images import reference
from worker.images.image import short
from worker.images.reference import Reference


@dataclass(frozen=True, slots=True)
class Removal:
    """``untag``: references that go; ``delete``: whether the image itself goes with them."""

    untag: tuple[Reference, ...]
    delete: bool


@dataclass(frozen=True, slots=True)
class Users:
    """Containers of the image, by name or id: the running ones and the rest."""

    running: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Removed:
    """What one removal did: familiar names untagged, ids deleted (the image's, then its layers' chain ids),
    bytes freed of blobs and unpacked layers."""

    untagged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    freed: int = 0

    def plus(self, other: Removed) -> Removed:
        return Removed(self.untagged + other.untagged, self.deleted + other.deleted, self.freed + other.freed)


def users(names: Sequence[str], running: Collection[str]) -> Users:
    """Splits an image's containers into the running ones and the rest."""
    return Users(
        running=tuple(name for name in names if name in running),
        stopped=tuple(name for name in names if name not in running),
    )


def decide(asked: str, image_id: str, names: Sequence[Reference], used_by: Users, *, force: bool) -> Removal:
    """What removing ``asked``, a name or an id (prefix) of the image, does. Conflict when it must not be."""
    prefix = reference.id_prefix(asked)
    if prefix is not None and image_id.startswith(f"sha256:{prefix}"):
        return by_id(image_id, names, used_by, force=force)
    named = reference.parse_tagged(asked)
    if named.digest:
        named = Reference(named.domain, named.path, None, named.digest)
    return by_name(image_id, named, names, used_by, force=force)


def by_name(image_id: str, name: Reference, names: Sequence[Reference], users: Users, *, force: bool) -> Removal:
    """Remove one of the image's ``names``; the image follows its last name unless a running container holds it."""
    in_use = users.running + users.stopped
    if in_use and not force and _single(names):
        raise Conflict(
            f'conflict: unable to remove repository reference "{name.familiar}" (must force) - '
            f"container {in_use[0]} is using its referenced image {short(image_id)}"
        )
    gone = [name]
    if name.tag and not any(other.tag and other.name == name.name for other in names if other != name):
        gone += [other for other in names if other.digest and not other.tag and other.name == name.name]
    left = [other for other in names if other not in gone]
    return Removal(tuple(gone), delete=not left and not users.running)


def by_id(image_id: str, names: Sequence[Reference], users: Users, *, force: bool) -> Removal:
    """Remove the image with all its names."""
    if users.running:
        raise _refused(image_id, "cannot be forced", f"image is being used by running container {users.running[0]}")
    if not force and not _single(names):
        raise _refused(image_id, "must be forced", "image is referenced in multiple repositories")
    if not force and users.stopped:
        raise _refused(image_id, "must be forced", f"image is being used by stopped container {users.stopped[0]}")
    return Removal(tuple(names), delete=True)


def _single(names: Sequence[Reference]) -> bool:
    """At most one name, or one tag and one digest of the same repository."""
    if len(names) <= 1:
        return True
    tags = [name for name in names if name.tag]
    return len(names) == 2 and len(tags) == 1 and names[0].name == names[1].name


def _refused(image_id: str, how: str, why: str) -> Conflict:
    return Conflict(f"conflict: unable to delete {short(image_id)} ({how}) - {why}")
