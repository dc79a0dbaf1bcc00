"""What each instruction of a Dockerfile says: from a parsed line to a command with named parts. Pure.

Decides how many arguments and which flags an instruction takes, in Docker's words. Variables are ``expansion``'s; what a
command does to an image is ``config``'s (metadata) or worker.build's (files, processes).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from covey.errors import InvalidArgument
from worker.dockerfile import parser, words
from worker.dockerfile.parser import DockerfileError, Heredoc, Node

Pairs = tuple[tuple[str, str], ...]
_STAGE_NAME = re.compile(r"[a-z][a-z0-9._-]*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


@dataclass(frozen=True, slots=True)
class From:
    base: str
    name: str
    platform: str


@dataclass(frozen=True, slots=True)
class Arg:
    """``pairs``: (name, default or None)."""

    pairs: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Env:
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class Label:
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class Command:
    """RUN, CMD, ENTRYPOINT. ``shell``: ``words`` is one line for the shell, else an argument vector."""

    word: str
    words: tuple[str, ...]
    shell: bool
    files: tuple[Heredoc, ...] = ()
    mounts: tuple[str, ...] = ()
    network: str = ""


@dataclass(frozen=True, slots=True)
class Copy:
    """ADD and COPY. ``files`` are here-documents, which come after ``sources``."""

    word: str
    sources: tuple[str, ...]
    destination: str
    files: tuple[Heredoc, ...] = ()
    stage: str = ""
    owner: str = ""
    mode: str = ""
    excluded: tuple[str, ...] = ()
    parents: bool = False
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """One value: MAINTAINER, ONBUILD, STOPSIGNAL, USER, WORKDIR."""

    word: str
    value: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Several: EXPOSE, SHELL, VOLUME."""

    word: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """HEALTHCHECK, as the image config has it."""

    check: Mapping[str, Any]


Instruction = From | Arg | Env | Label | Command | Copy | Setting | Listing | Health


@dataclass(frozen=True, slots=True)
class Step:
    """An instruction and where it stands."""

    node: Node
    command: Instruction


def read(node: Node, escape: str = "\\") -> Step:
    """The command of ``node``. DockerfileError with its line."""
    try:
        flags = _Flags(node)
        command = _READERS[node.word](node, flags, escape)
        flags.check()
    except DockerfileError:
        raise
    except InvalidArgument as error:
        raise DockerfileError(node.start, error.message) from None
    return Step(node, command)


class _Flags:
    """The flags of a line; each may be asked for, and what nobody asked for is refused."""

    def __init__(self, node: Node) -> None:
        self._given: dict[str, list[str | None]] = {}
        for flag in node.flags:
            name, equals, value = flag[2:].partition("=")
            self._given.setdefault(name, []).append(value if equals else None)

    def all(self, name: str) -> tuple[str, ...]:
        values = self._given.pop(name, [])
        if None in values:
            raise InvalidArgument(f"missing a value on flag: --{name}")
        return tuple(value for value in values if value is not None)

    def one(self, name: str) -> str:
        values = self.all(name)
        if len(values) > 1:
            raise InvalidArgument(f"duplicate flag specified: --{name}")
        return values[0] if values else ""

    def truth(self, name: str) -> bool:
        values = self._given.pop(name, [])
        text = "true" if values and values[0] is None else values[0] if values else "false"
        if text not in ("true", "false"):
            raise InvalidArgument(f"expecting boolean value for flag --{name}, not: {text}")
        return text == "true"

    def check(self) -> None:
        for name in self._given:
            raise InvalidArgument(f"unknown flag: --{name}")


def json_list(text: str) -> tuple[str, ...] | None:
    """The exec form's words; None when it is not in that form. InvalidArgument for a list of other things."""
    if not text.lstrip().startswith("["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list):
        return None
    if not all(isinstance(item, str) for item in value):
        raise InvalidArgument("when using JSON array syntax, arrays must be comprised of strings only")
    return tuple(value)


def _needed(node: Node) -> str:
    if not node.rest:
        raise InvalidArgument(f"{node.word} requires at least one argument")
    return node.rest


def _exactly_one(node: Node, flags: _Flags, escape: str) -> Setting:
    if not node.rest:
        raise InvalidArgument(f"{node.word} requires exactly one argument")
    return Setting(node.word, node.rest)


def _from(node: Node, flags: _Flags, escape: str) -> From:
    parts = node.rest.split()
    named = len(parts) == 3 and parts[1].lower() == "as"
    if len(parts) != 1 and not named:
        raise InvalidArgument("FROM requires either one or three arguments")
    name = parts[2].lower() if named else ""
    if name and not _STAGE_NAME.fullmatch(name):
        raise InvalidArgument(f"invalid name for build stage: {parts[2]!r}, name can't start with a number or contain symbols")
    return From(parts[0], name, flags.one("platform"))


def _pairs(node: Node, escape: str) -> Pairs:
    text = _needed(node)
    found = words.split(text, escape)
    if "=" not in found[0]:
        parts = re.split(r"\s+", text, maxsplit=1)
        if len(parts) < 2:
            raise InvalidArgument(f"{node.word} must have two arguments")
        return ((parts[0], parts[1]),)
    pairs = []
    for word in found:
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidArgument(f"Syntax error - can't find = in {json.dumps(word)}. Must be of the form: name=value")
        if not name:
            raise InvalidArgument(f"{node.word} names can not be blank")
        pairs.append((name, value))
    return tuple(pairs)


def _env(node: Node, flags: _Flags, escape: str) -> Env:
    return Env(_pairs(node, escape))


def _label(node: Node, flags: _Flags, escape: str) -> Label:
    return Label(_pairs(node, escape))


def _arg(node: Node, flags: _Flags, escape: str) -> Arg:
    pairs = []
    for word in words.split(_needed(node), escape):
        name, equals, value = word.partition("=")
        if not name:
            raise InvalidArgument("ARG names can not be blank")
        pairs.append((name, value if equals else None))
    return Arg(tuple(pairs))


def _command(node: Node, flags: _Flags, escape: str) -> Command:
    exec_form = json_list(node.rest)
    if exec_form is None:
        return Command(node.word, (node.rest,) if node.rest else (), True)
    return Command(node.word, exec_form, False)


def _run(node: Node, flags: _Flags, escape: str) -> Command:
    _needed(node)
    network = flags.one("network")
    if network not in ("", "default", "none", "host"):
        raise InvalidArgument(f"invalid network mode {network!r}: give default, none or host")
    if flags.one("security") not in ("", "sandbox"):
        raise InvalidArgument("--security=insecure is refused: a build step gets no privileges")
    command = _command(node, flags, escape)
    return replace(command, files=node.heredocs, mounts=flags.all("mount"), network=network)


def _copy(node: Node, flags: _Flags, escape: str) -> Copy:
    exec_form = json_list(node.rest)
    parts = exec_form if exec_form is not None else tuple(node.rest.split())
    if not parts:
        raise InvalidArgument(f"{node.word} requires at least two arguments, but none were provided")
    if len(parts) == 1:
        raise InvalidArgument(
            f"{node.word} requires at least two arguments, but only one was provided. Destination could not be determined"
        )
    given = parts[:-1]
    if node.heredocs:
        given = tuple(part for part in given if parser.heredoc_mark(part) is None)
    command = Copy(node.word, given, parts[-1], node.heredocs, owner=flags.one("chown"), mode=flags.one("chmod"))
    flags.truth("link")
    excluded = flags.all("exclude")
    if node.word == "COPY":
        return replace(command, stage=flags.one("from"), parents=flags.truth("parents"), excluded=excluded)
    if flags.truth("keep-git-dir"):
        raise InvalidArgument("ADD --keep-git-dir is refused: this release adds no git repositories")
    return replace(command, checksum=flags.one("checksum"), excluded=excluded)


def _expose(node: Node, flags: _Flags, escape: str) -> Listing:
    return Listing("EXPOSE", tuple(sorted(_needed(node).split())))


def _volume(node: Node, flags: _Flags, escape: str) -> Listing:
    paths = json_list(_needed(node))
    if paths is None:
        paths = tuple(node.rest.split())
    if not paths or not all(path.strip() for path in paths):
        raise InvalidArgument("VOLUME specified can not be an empty string")
    return Listing("VOLUME", tuple(path.strip() for path in paths))


def _shell(node: Node, flags: _Flags, escape: str) -> Listing:
    found = json_list(node.rest)
    if found is None:
        raise InvalidArgument(f"SHELL requires the arguments to be in JSON form: {node.rest}")
    if not found:
        raise InvalidArgument("SHELL requires at least one argument")
    return Listing("SHELL", found)


def _onbuild(node: Node, flags: _Flags, escape: str) -> Setting:
    word, trigger_flags, rest = parser.split_instruction(_needed(node))
    if word == "ONBUILD":
        raise InvalidArgument("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if word in ("FROM", "MAINTAINER"):
        raise InvalidArgument(f"{word} isn't allowed as an ONBUILD trigger")
    if word not in parser.KNOWN:
        raise InvalidArgument(f"unknown instruction: {word}")
    trigger = re.sub(r"^\s*ONBUILD\s*", "", node.original, flags=re.IGNORECASE)
    for heredoc in node.heredocs:
        trigger += f"\n{heredoc.content}{heredoc.name}"
    read(Node(word, trigger_flags, rest, trigger, node.start, node.end, node.heredocs), escape)
    return Setting("ONBUILD", trigger)


def _health(node: Node, flags: _Flags, escape: str) -> Health:
    kind, _, rest = _needed(node).partition(" ")
    kind, rest = kind.upper(), rest.strip()
    if kind == "NONE":
        if rest:
            raise InvalidArgument("HEALTHCHECK NONE takes no arguments")
        return Health({"Test": ["NONE"]})
    if kind != "CMD":
        raise InvalidArgument(f"Unknown type {kind!r} in HEALTHCHECK (try CMD)")
    if not rest:
        raise InvalidArgument("Missing command after HEALTHCHECK CMD")
    found = json_list(rest)
    check: dict[str, Any] = {"Test": ["CMD", *found] if found is not None else ["CMD-SHELL", rest]}
    for flag, key in _HEALTH_TIMES.items():
        text = flags.one(flag)
        if text:
            check[key] = _nanoseconds(flag, text)
    retries = flags.one("retries")
    if retries:
        if not (retries.isascii() and retries.isdigit() and 0 <= int(retries) < 2**31):
            raise InvalidArgument(f"--retries must be at least 0 (not {retries!r})")
        check["Retries"] = int(retries)
    return Health(check)


_HEALTH_TIMES = {
    "interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod", "start-interval": "StartInterval",
}  # fmt: skip


def _nanoseconds(flag: str, text: str) -> int:
    pieces = _DURATION.findall(text)
    if not pieces or "".join(number + unit for number, unit in pieces) != text:
        raise InvalidArgument(f"HEALTHCHECK --{flag}: {text!r} is no duration such as 30s or 1m30s")
    value = int(sum(float(number) * _UNITS[unit] for number, unit in pieces))
    if value and value < 10**6:
        raise InvalidArgument(f"Interval {flag!r} cannot be less than 1ms")
    return value


_READERS: dict[str, Callable[[Node, _Flags, str], Instruction]] = {
    "ADD": _copy,
    "ARG": _arg,
    "CMD": _command,
    "COPY": _copy,
    "ENTRYPOINT": _command,
    "ENV": _env,
    "EXPOSE": _expose,
    "FROM": _from,
    "HEALTHCHECK": _health,
    "LABEL": _label,
    "MAINTAINER": _exactly_one,
    "ONBUILD": _onbuild,
    "RUN": _run,
    "SHELL": _shell,
    "STOPSIGNAL": _exactly_one,
    "USER": _exactly_one,
    "VOLUME": _volume,
    "WORKDIR": _exactly_one,
}
