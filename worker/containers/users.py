"""Who a container's process runs as: "user[:group]" looked up in the image's own passwd and group files.

Pure: it gets the files' text. How the files are read safely is elsewhere. Words: moby/sys user (facts).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from covey.errors import InvalidArgument

_LIMIT = 2**32 - 2


class User(NamedTuple):
    """Numeric identity; ``home`` is "/" where the files do not say."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


class _Passwd(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: tuple[str, ...]


def _is_number(text: str) -> bool:
    """Whether a file's field is an id: ASCII digits (``isdigit`` takes others, ``int`` does not), and none that wraps."""
    return text.isascii() and text.isdigit() and int(text) <= _LIMIT


def _passwd(text: str) -> list[_Passwd]:
    found = []
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and _is_number(fields[2]) and _is_number(fields[3]):
            found.append(_Passwd(fields[0], int(fields[2]), int(fields[3]), fields[5]))
    return found


def _groups(text: str) -> list[_Group]:
    found = []
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and _is_number(fields[2]):
            members = tuple(one for one in fields[3].split(",") if one)
            found.append(_Group(fields[0], int(fields[2]), members))
    return found


def _number(text: str, what: str) -> int | None:
    if not (text.isascii() and text.lstrip("-").isdigit()):
        return None
    value = int(text)
    if not 0 <= value <= _LIMIT:
        raise InvalidArgument(f"{what} {text} is out of range: uids and gids must be in range 0-{_LIMIT}")
    return value


def _group(text: str, groups: list[_Group]) -> int:
    number = _number(text, "group")
    if number is not None:
        return number
    named = next((one for one in groups if one.name == text), None)
    if named is None:
        raise InvalidArgument(f"unable to find group {text}: no matching entries in group file")
    return named.gid


def resolve(wanted: str, passwd: str, group: str, group_add: Iterable[str] = ()) -> User:
    """The identity of ``wanted`` ("", "name", "uid", "name:group", "uid:gid"). Raises InvalidArgument in Docker's words."""
    user_text, _, group_text = wanted.partition(":")
    users, groups = _passwd(passwd), _groups(group)
    number = _number(user_text, "user") if user_text else 0
    entry = next((one for one in users if one.name == user_text or one.uid == number), None)
    if entry is None and number is None:
        raise InvalidArgument(f"unable to find user {user_text}: no matching entries in passwd file")
    uid = entry.uid if entry is not None else (number or 0)
    gid = entry.gid if entry is not None else 0
    extra: list[int] = []
    if group_text:
        gid = _group(group_text, groups)
    elif entry is not None:
        extra = [one.gid for one in groups if entry.name in one.members]
    extra += [_group(one, groups) for one in group_add]
    return User(uid, gid, tuple(dict.fromkeys(extra)), (entry.home if entry is not None else "") or "/")
