"""Published ports as compose writes them → the Engine API's PortConfigs. Pure."""

from __future__ import annotations

import re
from typing import Any

from cli.stack.keys import mapping, sequence
from covey.errors import InvalidArgument

_SHORT = re.compile(
    r"^(?:(?P<ip>\[[0-9A-Fa-f:.%]+\]|\d{1,3}(?:\.\d{1,3}){3}):)?(?:(?P<published>\d*(?:-\d+)?):)?(?P<target>\d+(?:-\d+)?)(?:/(?P<protocol>\w+))?$"
)
_LONG = {"target", "published", "protocol", "mode", "host_ip", "name", "app_protocol"}


def ports(value: Any, path: str) -> list[dict[str, Any]]:
    """Every port of a service; ranges are written out."""
    out: list[dict[str, Any]] = []
    for index, entry in enumerate(sequence(value, path)):
        place = f"{path}.{index}"
        out += _long(entry, place) if isinstance(entry, dict) else _short(str(entry), place)
    return out


def _range(text: str, path: str) -> list[int]:
    low, _, high = text.partition("-")
    first, last = int(low), int(high or low)
    if not (0 < first <= 65535 and first <= last <= 65535):
        raise InvalidArgument(f"{path}: {text!r} is not a port or a range of ports from 1 to 65535")
    return list(range(first, last + 1))


def _short(text: str, path: str) -> list[dict[str, Any]]:
    match = _SHORT.match(text.strip())
    if match is None:
        raise InvalidArgument(f"{path}: {text!r} is not of the form [[host_ip:]published:]target[/protocol]")
    targets = _range(match["target"], path)
    published = _range(match["published"], path) if match["published"] else [0] * len(targets)
    if len(published) != len(targets):
        raise InvalidArgument(f"{path}: {text!r}: the ranges of published and target ports differ in length")
    protocol = _protocol(match["protocol"], path)
    host_ip = (match["ip"] or "").strip("[]")
    return [_port(target, there, protocol, "ingress", host_ip, "") for target, there in zip(targets, published)]


def _long(entry: Any, path: str) -> list[dict[str, Any]]:
    given = mapping(entry, path)
    if unknown := sorted(set(given) - _LONG):
        raise InvalidArgument(f"unknown key {path}.{unknown[0]}; known here are {', '.join(sorted(_LONG))}")
    if given.get("target") is None:
        raise InvalidArgument(f"{path}.target is missing: the port the container listens on")
    target = _range(str(given["target"]), f"{path}.target")[0]
    published = _range(str(given["published"]), f"{path}.published")[0] if given.get("published") else 0
    mode = str(given.get("mode") or "ingress")
    if mode not in ("ingress", "host"):
        raise InvalidArgument(f"{path}.mode: {mode!r} is neither ingress nor host")
    protocol = _protocol(given.get("protocol"), f"{path}.protocol")
    return [_port(target, published, protocol, mode, str(given.get("host_ip") or ""), str(given.get("name") or ""))]


def _protocol(value: Any, path: str) -> str:
    protocol = str(value or "tcp").lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise InvalidArgument(f"{path}: {value!r} is none of tcp, udp, sctp")
    return protocol


def _port(target: int, published: int, protocol: str, mode: str, host_ip: str, name: str) -> dict[str, Any]:
    port: dict[str, Any] = {"Protocol": protocol, "TargetPort": target, "PublishMode": mode}
    if published:
        port["PublishedPort"] = published
    if host_ip:
        port["HostIP"] = host_ip
    if name:
        port["Name"] = name
    return port
