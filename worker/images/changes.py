"""Applies Dockerfile instructions to a container configuration, as ``docker import -c`` and ``commit -c`` do.

Pure: a config dict in, a changed one out. The build room uses the same table.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from covey.errors import InvalidArgument

Config = dict[str, Any]
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_SIGNAL = re.compile(r"(?:\d{1,2}|(?:SIG)?[A-Z][A-Z0-9+-]*)", re.IGNORECASE)


def apply(config: Mapping[str, Any], changes: Sequence[str]) -> Config:
    """``config`` after ``changes``, each one instruction or several lines of them. InvalidArgument names the bad one."""
    changed: Config = json.loads(json.dumps(config))
    for line in (line.strip() for change in changes for line in change.splitlines()):
        if not line or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        instruction = _INSTRUCTIONS.get(word.upper())
        if instruction is None:
            raise InvalidArgument(f"{word} is not a valid change command; known are {', '.join(sorted(_INSTRUCTIONS))}")
        if not rest.strip():
            raise InvalidArgument(f"{word.upper()} requires at least one argument")
        instruction(changed, rest.strip())
    return changed


def _json_list(text: str) -> list[str] | None:
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


def _command(text: str) -> list[str]:
    exec_form = _json_list(text)
    return exec_form if exec_form is not None else ["/bin/sh", "-c", text]


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InvalidArgument(f"cannot read {text!r}: {error}") from None


def _pairs(instruction: str, text: str) -> list[tuple[str, str]]:
    """``a=1 b="two words"``, or the old form ``a everything else``."""
    head, _, rest = text.partition(" ")
    if "=" not in head:
        if not rest.strip():
            raise InvalidArgument(f"{instruction} must have two arguments, or be key=value: {text!r}")
        return [(head, rest.strip())]
    pairs = []
    for word in _words(text):
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidArgument(f"Syntax error - can't find = in {word!r}. Must be of the form: name=value")
        pairs.append((key, value))
    return pairs


def _cmd(config: Config, text: str) -> None:
    config["Cmd"] = _command(text)


def _entrypoint(config: Config, text: str) -> None:
    config["Entrypoint"] = _command(text)


def _env(config: Config, text: str) -> None:
    values = dict(item.partition("=")[::2] for item in config.get("Env") or [])
    values.update(_pairs("ENV", text))
    config["Env"] = [f"{key}={value}" for key, value in values.items()]


def _label(config: Config, text: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs("LABEL", text))}


def _user(config: Config, text: str) -> None:
    config["User"] = text


def _workdir(config: Config, text: str) -> None:
    config["WorkingDir"] = posixpath.normpath(posixpath.join(config.get("WorkingDir") or "/", text))


def _expose(config: Config, text: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in text.split():
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not match or not 0 < first <= last <= 65535:
            raise InvalidArgument(f"EXPOSE: invalid port {word!r}, expected <port>[-<port>][/tcp|udp|sctp]")
        protocol = (match[3] or "tcp").lower()
        ports.update({f"{port}/{protocol}": {} for port in range(first, last + 1)})
    config["ExposedPorts"] = ports


def _volume(config: Config, text: str) -> None:
    paths = _json_list(text)
    if paths is None:
        paths = text.split()
    if not all(paths):
        raise InvalidArgument("VOLUME specified can not be an empty string")
    config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in paths}}


def _onbuild(config: Config, text: str) -> None:
    config["OnBuild"] = [*(config.get("OnBuild") or []), text]


def _stopsignal(config: Config, text: str) -> None:
    if not _SIGNAL.fullmatch(text):
        raise InvalidArgument(f"STOPSIGNAL: {text!r} is no signal")
    config["StopSignal"] = text


def _shell(config: Config, text: str) -> None:
    words = _json_list(text)
    if not words:
        raise InvalidArgument('SHELL requires the arguments to be in JSON form: ["executable", "argument"]')
    config["Shell"] = words


_DURATIONS = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod"}
_UNITS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def _nanoseconds(text: str) -> int:
    pieces = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)", text)
    if not pieces or "".join(number + unit for number, unit in pieces) != text:
        raise InvalidArgument(f"HEALTHCHECK: {text!r} is no duration")
    return int(sum(float(number) * _UNITS[unit] for number, unit in pieces))


def _healthcheck(config: Config, text: str) -> None:
    check: dict[str, Any] = {}
    while text.startswith("--"):
        option, _, text = text.partition(" ")
        name, _, value = option[2:].partition("=")
        text = text.strip()
        if name == "retries" and value.isdigit():
            check["Retries"] = int(value)
        elif name in _DURATIONS:
            check[_DURATIONS[name]] = _nanoseconds(value)
        else:
            raise InvalidArgument(f"HEALTHCHECK: unknown option {option!r}")
    kind, _, command = text.partition(" ")
    if kind.upper() == "NONE":
        check["Test"] = ["NONE"]
    elif kind.upper() == "CMD" and command.strip():
        words = _json_list(command.strip())
        check["Test"] = ["CMD", *words] if words is not None else ["CMD-SHELL", command.strip()]
    else:
        raise InvalidArgument(f"HEALTHCHECK: expected CMD or NONE, not {text!r}")
    config["Healthcheck"] = check


_INSTRUCTIONS: dict[str, Callable[[Config, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "SHELL": _shell,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
