"""``RUN --mount``: what its comma-separated words say. Pure.

Decides types, options and their defaults (docs.docker.com/reference/dockerfile, "RUN --mount"; facts).
"""

from __future__ import annotations

import csv
import posixpath
import re
from dataclasses import dataclass

from covey.errors import InvalidArgument

TYPES = ("bind", "cache", "secret", "tmpfs")
_SIZE = re.compile(r"(\d+)([kmg]?)b?", re.IGNORECASE)
_SHARING = ("shared", "private", "locked")


@dataclass(frozen=True, slots=True)
class RunMount:
    """``stage``: where a bind's or cache's content comes from, "" the context. ``size`` in bytes, 0 no limit."""

    type: str
    target: str
    source: str = ""
    stage: str = ""
    read_only: bool = True
    id: str = ""
    sharing: str = "shared"
    mode: int | None = None
    uid: int = 0
    gid: int = 0
    size: int = 0
    required: bool = False
    variable: str = ""


def _words(text: str) -> dict[str, str]:
    try:
        row = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise InvalidArgument(f"invalid mount {text!r}: {error}") from None
    found = {}
    for word in row:
        name, equals, value = word.partition("=")
        name = _SAME.get(name.strip().lower(), name.strip().lower())
        if (name in ("ro", "rw") and not equals) or (name == "required" and not equals):
            value = "true"
        elif not equals:
            raise InvalidArgument(f"invalid field {word!r} must be a key=value pair")
        found[name] = value
    return found


_SAME = {"dst": "target", "destination": "target", "src": "source", "readonly": "ro", "readwrite": "rw"}


def stage_of(text: str) -> str:
    """The stage or image of ``from=``; "" where there is none, or the text cannot be read."""
    try:
        return _words(text).get("from", "")
    except InvalidArgument:
        return ""


def parse(text: str, directory: str = "/") -> RunMount:
    """One ``--mount``; a relative target lies below ``directory``. InvalidArgument names what is wrong."""
    given = _words(text)
    kind = given.pop("type", "bind")
    if kind == "ssh":
        raise InvalidArgument("--mount=type=ssh is refused: this release forwards no agents; use a secret")
    if kind not in TYPES:
        raise InvalidArgument(f"unsupported mount type {kind!r}: give one of {', '.join(TYPES)}")
    for name in given:
        if name not in _FIELDS[kind]:
            raise InvalidArgument(f"unexpected key '{name}' in a mount of type {kind}")
    target = given.get("target", "")
    if kind == "secret" and not target:
        name = given.get("id") or posixpath.basename(given.get("source", ""))
        target = "" if "env" in given else f"/run/secrets/{name}"
        if not name:
            raise InvalidArgument("invalid mount of type secret: it needs an id, a source or a target")
    elif not target:
        raise InvalidArgument(f"invalid mount of type {kind}: target is missing")
    target = posixpath.normpath(posixpath.join(directory, target)) if target else ""
    if target == "/":
        raise InvalidArgument(f"invalid mount of type {kind}: target can't be '/'")
    sharing = given.get("sharing", "shared")
    if sharing not in _SHARING:
        raise InvalidArgument(f"unsupported sharing value {sharing!r}: give one of {', '.join(_SHARING)}")
    return RunMount(
        type=kind,
        target=target,
        source=given.get("source", ""),
        stage=given.get("from", ""),
        read_only=_read_only(kind, given),
        id=given.get("id") or (posixpath.basename(target or given.get("source", "")) if kind == "secret" else target),
        sharing=sharing,
        mode=_number("mode", given["mode"], 8) if "mode" in given else None,
        uid=_number("uid", given.get("uid", "0"), 10),
        gid=_number("gid", given.get("gid", "0"), 10),
        size=_size(given.get("size", "0")),
        required=_truth("required", given.get("required", "false")),
        variable=given.get("env", ""),
    )


_FIELDS = {
    "bind": {"target", "source", "from", "ro", "rw"},
    "cache": {"target", "source", "from", "ro", "rw", "id", "sharing", "mode", "uid", "gid"},
    "secret": {"target", "source", "id", "required", "mode", "uid", "gid", "env"},
    "tmpfs": {"target", "size"},
}


def _truth(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", ""):
        raise InvalidArgument(f"invalid value for {name}: {text}")
    return text.lower() in ("true", "1", "")


def _read_only(kind: str, given: dict[str, str]) -> bool:
    if "rw" in given:
        return not _truth("rw", given["rw"])
    return _truth("ro", given["ro"]) if "ro" in given else kind in ("bind", "secret")


def _number(name: str, text: str, base: int) -> int:
    try:
        value = int(text, base)
    except ValueError:
        value = -1
    if not 0 <= value < 2**32 - 1:
        raise InvalidArgument(f"invalid value for {name}: {text}")
    return value


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"invalid value for size: {text}")
    return int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2].lower()]
