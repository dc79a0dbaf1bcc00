"""Published ports as options write them, for containers and for services. Pure.

Short: ``[address:][published:]target[/protocol]``, with ranges; long, for services: ``published=8080,target=80,mode=host``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from cli.stack.ports import ports
from cli.words import fields
from covey.errors import InvalidArgument

_SHORT = re.compile(
    r"^(?:(?P<ip>\[[0-9A-Fa-f:.%]+\]|\d{1,3}(?:\.\d{1,3}){3}):)?(?:(?P<published>\d*(?:-\d+)?):)?"
    r"(?P<target>\d+(?:-\d+)?)(?:/(?P<protocol>tcp|udp|sctp))?$",
    re.IGNORECASE,
)


def _span(text: str, whole: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    first, last = int(low), int(high or low)
    if not 0 < first <= last <= 65535:
        raise InvalidArgument(f"--publish {whole!r}: {text!r} is not a port or a range of ports from 1 to 65535")
    return first, last


def container_ports(
    given: Iterable[str] | None, exposed: Iterable[str] | None = None
) -> tuple[dict[str, Any], dict[str, list[dict[str, str]]]]:
    """(ExposedPorts, PortBindings). A range of published ports for one target is for the daemon to choose from."""
    opened: dict[str, Any] = {}
    bindings: dict[str, list[dict[str, str]]] = {}
    for text in exposed or ():
        port, _, protocol = text.partition("/")
        if not re.fullmatch(r"\d+(?:-\d+)?", port) or protocol not in ("", "tcp", "udp", "sctp"):
            raise InvalidArgument(f"--expose {text!r} is not of the form port[-port][/protocol]")
        first, last = _span(port, text)
        opened.update({f"{number}/{protocol or 'tcp'}": {} for number in range(first, last + 1)})
    for text in given or ():
        for key, binding in _bindings(text):
            opened[key] = {}
            bindings.setdefault(key, []).append(binding)
    return opened, bindings


def _bindings(text: str) -> list[tuple[str, dict[str, str]]]:
    match = _SHORT.match(text)
    if match is None:
        raise InvalidArgument(f"--publish {text!r} is not of the form [address:][host port:]port[/protocol]")
    first, last = _span(match["target"], text)
    protocol = (match["protocol"] or "tcp").lower()
    address = (match["ip"] or "").strip("[]")
    if not match["published"]:
        return [(f"{port}/{protocol}", {"HostIp": address, "HostPort": ""}) for port in range(first, last + 1)]
    low, high = _span(match["published"], text)
    if first == last:
        return [(f"{first}/{protocol}", {"HostIp": address, "HostPort": f"{low}-{high}" if high > low else str(low)})]
    if high - low != last - first:
        raise InvalidArgument(f"--publish {text!r}: the ranges of published and target ports differ in length")
    return [(f"{port}/{protocol}", {"HostIp": address, "HostPort": str(low + port - first)}) for port in range(first, last + 1)]


_KEYS = ("target", "published", "protocol", "mode")


def service_ports(given: Iterable[str] | None, option: str = "--publish") -> list[dict[str, Any]]:
    """PortConfigs of a service."""
    out: list[dict[str, Any]] = []
    for text in given or ():
        if "=" not in text:
            out += ports([text], option)
            continue
        entry: dict[str, Any] = {}
        for key, value in fields(text, option):
            if key not in (*_KEYS, "host_ip") or value is None:
                raise InvalidArgument(f"{option} {text!r}: {key!r} is none of {', '.join(f'{name}=' for name in _KEYS)}")
            entry[key] = value
        if not str(entry.get("target", "")).isdigit() or not str(entry.get("published", "0")).isdigit():
            raise InvalidArgument(f"{option} {text!r}: target and published are port numbers")
        out += ports([{**entry, "published": int(entry.get("published", 0))}], option)
    return out
