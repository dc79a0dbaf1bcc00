"""What a client asks of a build: the query of ``POST /build``. Pure.

Decides which parameters are honoured and which are refused, in words that say what to do.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from covey.engine_api.call import truth
from covey.errors import InvalidArgument
from worker.images import image, reference
from worker.images.reference import Reference

BUILDKIT = (
    "BuildKit is not part of Covey, its classic builder is: set DOCKER_BUILDKIT=0 "
    "(with docker compose: COMPOSE_DOCKER_CLI_BUILD=0 too), or use `cluster build`"
)
SECRETS_HEADER = "X-Covey-Build-Secrets"
_NUMBERS = {
    "memory": "Memory", "memswap": "MemorySwap", "cpushares": "CpuShares", "cpuperiod": "CpuPeriod", "cpuquota": "CpuQuota",
    "shmsize": "ShmSize",
}  # fmt: skip
_TEXTS = {"cpusetcpus": "CpusetCpus", "cpusetmems": "CpusetMems", "cgroupparent": "CgroupParent"}


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """``limits``: fields of HostConfig for the containers of RUN. ``timeout``: seconds for the whole build, 0 none."""

    dockerfile: str = "Dockerfile"
    names: tuple[Reference, ...] = ()
    remote: str = ""
    quiet: bool = False
    use_cache: bool = True
    pull: bool = False
    remove: bool = True
    force_remove: bool = False
    arguments: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    network: str = "default"
    platform: str = ""
    target: str = ""
    cache_from: tuple[str, ...] = ()
    limits: Mapping[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    credentials: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 0.0


def read(one: Callable[[str], str], many: Callable[[str], list[str]], headers: Mapping[str, str]) -> BuildOptions:
    """The options in a query (``one`` value of a name, ``many`` of a repeated one) and headers. InvalidArgument."""
    if one("version") == "2" or one("session"):
        raise InvalidArgument(f"this client asks for BuildKit (version {one('version') or '2'}): {BUILDKIT}")
    if truth(one("squash")):
        raise InvalidArgument("squash is refused: this release keeps a layer a step; use a stage and COPY --from instead")
    if one("outputs") not in ("", "null", "[]"):
        raise InvalidArgument(f"outputs is refused, results go to the image store; {BUILDKIT}")
    names = []
    for text in many("t"):
        named = reference.parse_tagged(text)
        if named.digest:
            raise InvalidArgument(f"invalid tag {text!r}: a build cannot be named by a digest")
        names.append(named)
    return BuildOptions(
        dockerfile=one("dockerfile") or "Dockerfile",
        names=tuple(dict.fromkeys(names)),
        remote=one("remote"),
        quiet=truth(one("q")),
        use_cache=not truth(one("nocache")),
        pull=truth(one("pull")),
        remove=truth(one("rm") or "1"),
        force_remove=truth(one("forcerm")),
        arguments=_texts_by_name("buildargs", one("buildargs")),
        labels=_texts_by_name("labels", one("labels")),
        network=one("networkmode") or "default",
        platform=_platform(one("platform")),
        target=one("target"),
        cache_from=tuple(_list("cachefrom", one("cachefrom"))),
        limits=_limits(one, many),
        secrets=_secrets(headers.get(SECRETS_HEADER, "")),
        credentials=_header_object("X-Registry-Config", headers.get("X-Registry-Config", "")),
        timeout=float(_whole("timeout", one("timeout") or "0")),
    )


def _limits(one: Callable[[str], str], many: Callable[[str], list[str]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, key in _NUMBERS.items():
        if one(name) not in ("", "0"):
            found[key] = _whole(name, one(name))
    for name, key in _TEXTS.items():
        if one(name):
            found[key] = one(name)
    hosts = [host for text in many("extrahosts") for host in text.split(",") if host]
    if hosts:
        found["ExtraHosts"] = hosts
    ulimits = _json("ulimits", one("ulimits"))
    if ulimits:
        if not isinstance(ulimits, list) or not all(isinstance(each, dict) for each in ulimits):
            raise InvalidArgument("invalid ulimits: give a list of objects with Name, Soft and Hard")
        found["Ulimits"] = ulimits
    if many("securityopt"):
        found["SecurityOpt"] = many("securityopt")
    if one("isolation") not in ("", "default"):
        raise InvalidArgument(f"invalid isolation {one('isolation')!r} on Linux: only 'default' is there")
    return found


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidArgument(f"invalid value {text!r} for query parameter {name}: give a whole number") from None


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        raise InvalidArgument(f"invalid {name}: it is not JSON") from None


def _texts_by_name(name: str, text: str) -> dict[str, str]:
    """An object of strings; a null value is one the client has not set."""
    found = _json(name, text)
    if not isinstance(found, dict | None) or not all(isinstance(value, str | None) for value in (found or {}).values()):
        raise InvalidArgument(f"invalid {name}: give an object of strings")
    return {key: value for key, value in (found or {}).items() if value is not None}


def _list(name: str, text: str) -> list[str]:
    found = _json(name, text) or []
    if not isinstance(found, list) or not all(isinstance(value, str) for value in found):
        raise InvalidArgument(f"invalid {name}: give a list of image names")
    return found


def _platform(text: str) -> str:
    """``os/arch[/variant]``; an architecture alone is completed."""
    if not text:
        return ""
    parts = text.lower().split("/")
    if len(parts) == 1:
        parts = ["linux", parts[0]] if parts[0] != "linux" else ["linux", image.host_architecture()]
    if len(parts) > 3 or not all(parts) or parts[0] != "linux":
        raise InvalidArgument(f"invalid platform {text!r}: give linux/ARCHITECTURE[/VARIANT]")
    return "/".join(parts)


def _header_object(name: str, text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        padded = text + "=" * (-len(text) % 4)
        found = json.loads(base64.b64decode(padded.replace("-", "+").replace("_", "/"), validate=True) or b"{}")
    except (binascii.Error, ValueError, RecursionError):
        raise InvalidArgument(f"invalid header {name}: it is not base64 of JSON") from None
    if found is not None and not isinstance(found, dict):
        raise InvalidArgument(f"invalid header {name}: give an object")
    return found or {}


def _secrets(text: str) -> dict[str, bytes]:
    found = {}
    for name, value in _header_object(SECRETS_HEADER, text).items():
        try:
            found[name] = base64.b64decode(str(value), validate=True)
        except binascii.Error:
            raise InvalidArgument(f"invalid header {SECRETS_HEADER}: the value of {name} is not base64") from None
    return found
