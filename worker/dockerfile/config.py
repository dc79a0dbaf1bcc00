"""What the instructions that only change an image's config do to it, and how history tells it. Pure.

One table for builds, ``commit --change`` and ``import --change``. The comments are those of Docker's classic builder,
which its history shows (moby builder/dockerfile/dispatchers.go; facts).
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from covey.errors import InvalidArgument
from worker.dockerfile import expansion, instructions, parser
from worker.dockerfile.instructions import Arg, Command, Env, Health, Instruction, Label, Listing, Setting

Config = dict[str, Any]
DEFAULT_SHELL = ("/bin/sh", "-c")
CHANGES = frozenset(
    (
        *("CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL"),
        *("ONBUILD", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
    )
)
"""Instructions that ``--change`` takes."""
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_SIGNAL = re.compile(r"(?:\d{1,2}|(?:SIG)?[A-Z][A-Z0-9+-]*)", re.IGNORECASE)


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """The config's variables by name."""
    return dict(entry.partition("=")[::2] for entry in config.get("Env") or [])


def shell(config: Mapping[str, Any]) -> list[str]:
    """What runs a line."""
    return list(config.get("Shell") or DEFAULT_SHELL)


def changed(config: Mapping[str, Any], changes: Sequence[str]) -> Config:
    """``config`` after ``changes``, each one instruction or several lines of them. InvalidArgument names the bad one."""
    now: Config = json.loads(json.dumps(config))
    for change in changes:
        if not any(line.strip() and not line.lstrip().startswith("#") for line in change.splitlines()):
            continue
        for node in parser.parse(change).nodes:
            if node.word not in CHANGES:
                raise InvalidArgument(f"{node.word} is not a valid change command; known are {', '.join(sorted(CHANGES))}")
            if not node.rest:
                raise InvalidArgument(f"{node.word} requires at least one argument")
            command = instructions.read(node).command
            apply(now, expansion.expanded(command, environment(now)))
    return now


def apply(config: Config, command: Instruction) -> str:
    """Changes ``config`` as ``command`` says; the comment for the history. InvalidArgument for a value that cannot be."""
    match command:
        case Env(pairs):
            values = environment(config)
            values.update(pairs)
            config["Env"] = [f"{name}={value}" for name, value in values.items()]
            return "ENV " + " ".join(f"{name}={value}" for name, value in pairs)
        case Label(pairs):
            config["Labels"] = {**(config.get("Labels") or {}), **dict(pairs)}
            return "LABEL " + " ".join(f"{name}={value}" for name, value in pairs)
        case Arg(defaults):
            return "ARG " + " ".join(name if value is None else f"{name}={value}" for name, value in defaults)
        case Command("CMD" | "ENTRYPOINT" as word, given):
            argv = [*shell(config), *given] if command.shell and given else list(given)
            config["Cmd" if word == "CMD" else "Entrypoint"] = argv
            return f"{word} {go_list(argv)}"
        case Health(check):
            config["Healthcheck"] = dict(check)
            return f"HEALTHCHECK {_go_health(check)}"
        case Setting(word, value):
            return _SETTINGS[word](config, value)
        case Listing(word, values):
            return _LISTINGS[word](config, values)
    raise InvalidArgument(f"{type(command).__name__} changes more than the config")


def go_list(values: Sequence[str]) -> str:
    """A list of strings as Go's %q prints it."""
    return "[" + " ".join(json.dumps(value, ensure_ascii=False) for value in values) + "]"


def _go_duration(nanoseconds: int) -> str:
    """As Go's time.Duration prints itself, for whole units down to milliseconds."""
    if not nanoseconds:
        return "0s"
    if nanoseconds < 10**9:
        return f"{nanoseconds / 10**6:g}ms"
    seconds = nanoseconds / 10**9
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest:g}s"


def _go_health(check: Mapping[str, Any]) -> str:
    times = " ".join(f'"{_go_duration(check.get(key, 0))}"' for key in ("Interval", "Timeout", "StartPeriod"))
    retries = check.get("Retries", 0)
    character = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r"}.get(retries)
    if character is None:
        character = f"\\x{retries:02x}" if retries < 32 else chr(retries)
    return f"&{{{go_list(check['Test'])} {times} '{character}'}}"


def _user(config: Config, value: str) -> str:
    config["User"] = value
    return f"USER {value}"


def _workdir(config: Config, value: str) -> str:
    if not value:
        raise InvalidArgument("cannot normalize nothing: WORKDIR is empty")
    config["WorkingDir"] = "/" + posixpath.normpath(posixpath.join(config.get("WorkingDir") or "/", value)).lstrip("/")
    return f"WORKDIR {config['WorkingDir']}"


def _stopsignal(config: Config, value: str) -> str:
    if not _SIGNAL.fullmatch(value):
        raise InvalidArgument(f"STOPSIGNAL: {value!r} is no signal")
    config["StopSignal"] = value
    return f"STOPSIGNAL {value}"


def _onbuild(config: Config, value: str) -> str:
    config["OnBuild"] = [*(config.get("OnBuild") or []), value]
    return f"ONBUILD {value}"


def _maintainer(config: Config, value: str) -> str:
    return f"MAINTAINER {value}"


def _expose(config: Config, values: Sequence[str]) -> str:
    ports = dict(config.get("ExposedPorts") or {})
    for value in values:
        match = _PORT.fullmatch(value)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not match or not 0 < first <= last <= 65535:
            raise InvalidArgument(f"EXPOSE: invalid port {value!r}, expected <port>[-<port>][/tcp|udp|sctp]")
        protocol = (match[3] or "tcp").lower()
        ports.update({f"{port}/{protocol}": {} for port in range(first, last + 1)})
    config["ExposedPorts"] = ports
    return "EXPOSE " + " ".join(values)


def _volume(config: Config, values: Sequence[str]) -> str:
    config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in values}}
    return f"VOLUME [{' '.join(values)}]"


def _shell(config: Config, values: Sequence[str]) -> str:
    config["Shell"] = list(values)
    return f"SHELL [{' '.join(values)}]"


_SETTINGS: dict[str, Callable[[Config, str], str]] = {
    "MAINTAINER": _maintainer,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "WORKDIR": _workdir,
}
_LISTINGS: dict[str, Callable[[Config, Sequence[str]], str]] = {"EXPOSE": _expose, "SHELL": _shell, "VOLUME": _volume}
