"""Which ids of the host stand for those inside a container that has a user namespace of its own. Pure.

``--userns-remap`` takes what Docker's takes: ``default``, ``USER``, ``USER:GROUP``, by name or number; the ranges are those
of /etc/subuid and /etc/subgid. ``default`` is the user ``dockremap``, as on a Docker host, so that a machine
prepared for Docker needs nothing; unlike Docker, nothing is made that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from covey.errors import InvalidArgument

DEFAULT = "dockremap"
FILES = ("/etc/subuid", "/etc/subgid")
_MOST_RANGES = 340  # user_namespaces(7)


class Range(NamedTuple):
    inside: int
    outside: int
    size: int


class Remap(NamedTuple):
    """``uids``, ``gids``: ranges from 0 on, without gaps inside."""

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]

    @property
    def root(self) -> tuple[int, int]:
        """uid and gid of the container's root, as the host counts."""
        return self.uids[0].outside, self.gids[0].outside

    def as_lists(self) -> dict[str, list[list[int]]]:
        return {"uids": [list(one) for one in self.uids], "gids": [list(one) for one in self.gids]}


def from_lists(found: Mapping[str, Any]) -> Remap:
    """The reverse of ``as_lists``."""
    uids, gids = (tuple(Range(*one) for one in found[key]) for key in ("uids", "gids"))
    return Remap(uids, gids)


def map_text(ranges: tuple[Range, ...]) -> str:
    """As /proc/PID/uid_map takes it."""
    return "".join(f"{one.inside} {one.outside} {one.size}\n" for one in ranges)


def outside(ranges: tuple[Range, ...], number: int) -> int:
    """The host's number of a container's id. InvalidArgument for one that no range has."""
    for one in ranges:
        if 0 <= number - one.inside < one.size:
            return one.outside + number - one.inside
    raise InvalidArgument(f"id {number} is beyond the {sum(one.size for one in ranges)} ids of the container's user namespace")


def inside(ranges: tuple[Range, ...], number: int) -> int:
    """A container's id for a number of the host; the overflow id 65534 where it has none, as the kernel shows it."""
    for one in ranges:
        if 0 <= number - one.outside < one.size:
            return one.inside + number - one.outside
    return 65534


def split(option: str) -> tuple[str, str]:
    """(user, group) of the option's value, the group "" where none is given."""
    user, colon, group = option.partition(":")
    if option == "default":
        user = DEFAULT
    if not user or (colon and not group):
        raise InvalidArgument(f"--userns-remap {option!r}: give default, USER or USER:GROUP")
    return user, group


def ranges(text: str, names: set[str], file: str, asked: str) -> tuple[Range, ...]:
    """The ranges that ``file`` (subuid(5): name-or-id:first:count) gives to any of ``names``, one after the other."""
    found: list[Range] = []
    place = 0
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) != 3 or fields[0] not in names or not all(_is_number(field) for field in fields[1:]):
            continue
        first, count = int(fields[1]), int(fields[2])
        if count and first + count <= 2**32 - 1:
            found.append(Range(place, first, count))
            place += count
    if not found:
        name = sorted(names, key=str.isdigit)[0]
        raise InvalidArgument(
            f"{asked}: {file} has no ids for {name}: add a line such as {name}:165536:65536 "
            f"(usermod --add-sub{'uids' if file.endswith('uid') else 'gids'} 165536-231071 {name})"
        )
    return tuple(found[:_MOST_RANGES])


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


#: HostConfig field → what of it cannot be had in a user namespace of one's own; words: moby daemon_unix.go (facts).
_CONFLICTS = (
    ("Privileged", True, "privileged mode is incompatible with user namespaces.  You must run the container in the host "
     "namespace when running privileged mode"),
    ("NetworkMode", "host", "cannot share the host's network namespace when user namespaces are enabled"),
    ("PidMode", "host", "cannot share the host PID namespace when user namespaces are enabled"),
    ("IpcMode", "host", "cannot share the host IPC namespace when user namespaces are enabled"),
)  # fmt: skip


def applies(remap: Remap | None, settings: Mapping[str, Any]) -> bool:
    """Whether a container with this HostConfig gets a user namespace. Raises InvalidArgument for what then cannot be."""
    if remap is None or settings.get("UsernsMode") == "host":
        return False
    for field, value, words in _CONFLICTS:
        if settings.get(field) == value:
            raise InvalidArgument(f"{words}: give --userns=host too")
    return True
