"""Volumes, binds and tmpfs of a service as compose writes them → the Engine API's Mounts. Pure.

Paths that begin with ``.`` or ``~`` are relative to the compose file's directory and the caller's home on this machine; a
cluster's nodes need not have them, so they are refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli.stack.keys import mapping, sequence
from cli.stack.units import size, truth
from covey.errors import InvalidArgument

NAMESPACE = "com.docker.stack.namespace"

_OPTIONS = {"ro", "rw", "nocopy", "z", "Z", "cached", "delegated", "consistent"}
_PROPAGATION = {"private", "rprivate", "shared", "rshared", "slave", "rslave"}
_LONG = {"type", "source", "target", "read_only", "bind", "volume", "tmpfs", "consistency"}


def mounts(stack: str, service: Mapping[str, Any], path: str, declared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every mount of a service; ``declared`` are the file's top-level volumes."""
    out: list[dict[str, Any]] = []
    for index, entry in enumerate(sequence(service.get("volumes"), f"{path}.volumes")):
        place = f"{path}.volumes.{index}"
        long = _long(entry, place) if isinstance(entry, dict) else _short(str(entry), place)
        out.append(_mount(stack, long, place, declared))
    tmpfs = service.get("tmpfs")
    for target in [tmpfs] if isinstance(tmpfs, str) else sequence(tmpfs, f"{path}.tmpfs"):
        out.append(_tmpfs(str(target), f"{path}.tmpfs"))
    targets = [mount["Target"] for mount in out]
    if twice := next((target for target in targets if targets.count(target) > 1), None):
        raise InvalidArgument(f"{path}.volumes: duplicate mount point {twice}")
    return out


def _tmpfs(text: str, path: str) -> dict[str, Any]:
    target, _, options = text.partition(":")
    mount: dict[str, Any] = {"Type": "tmpfs", "Target": _absolute(target, path)}
    for option in filter(None, options.split(",")):
        key, _, value = option.partition("=")
        if key == "size":
            mount.setdefault("TmpfsOptions", {})["SizeBytes"] = size(value, path)
        elif key == "mode":
            mount.setdefault("TmpfsOptions", {})["Mode"] = int(value, 8)
        elif key not in ("rw", "noexec", "nosuid", "nodev"):
            raise InvalidArgument(f"{path}: unknown tmpfs option {option!r}; known are size and mode")
    return mount


def _short(text: str, path: str) -> dict[str, Any]:
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InvalidArgument(f"{path}: {text!r} is not of the form [source:]target[:options]")
    if len(parts) == 1:
        return {"type": "volume", "target": parts[0]}
    long: dict[str, Any] = {"type": _kind(parts[0]), "source": parts[0], "target": parts[1]}
    for option in parts[2].split(",") if len(parts) == 3 else ():
        if option == "ro":
            long["read_only"] = True
        elif option == "nocopy":
            long["volume"] = {"nocopy": True}
        elif option in _PROPAGATION:
            long["bind"] = {"propagation": option}
        elif option not in _OPTIONS:
            raise InvalidArgument(f"{path}: unknown volume option {option!r} in {text!r}")
    return long


def _kind(source: str) -> str:
    return "bind" if source.startswith(("/", ".", "~")) else "volume"


def _long(entry: Any, path: str) -> dict[str, Any]:
    given = dict(mapping(entry, path))
    if unknown := sorted(set(given) - _LONG):
        raise InvalidArgument(f"unknown key {path}.{unknown[0]}; known here are {', '.join(sorted(_LONG))}")
    if given.get("type") not in ("volume", "bind", "tmpfs"):
        raise InvalidArgument(f"{path}.type: {given.get('type')!r} is none of volume, bind, tmpfs")
    return given


def _absolute(target: str, path: str) -> str:
    if not target.startswith("/"):
        raise InvalidArgument(f"{path}: the target {target!r} must be an absolute path in the container")
    return target


def _mount(stack: str, long: Mapping[str, Any], path: str, declared: Mapping[str, Any]) -> dict[str, Any]:
    kind, source = str(long["type"]), str(long.get("source") or "")
    mount: dict[str, Any] = {"Type": kind, "Target": _absolute(str(long.get("target") or ""), path)}
    if truth(long.get("read_only", False), f"{path}.read_only"):
        mount["ReadOnly"] = True
    if kind == "tmpfs":
        options = mapping(long.get("tmpfs"), f"{path}.tmpfs")
        if options.get("size") is not None:
            mount["TmpfsOptions"] = {"SizeBytes": size(options["size"], f"{path}.tmpfs.size")}
    elif kind == "bind":
        if not source.startswith("/"):
            raise InvalidArgument(f"{path}: the bind source {source!r} must be an absolute path: it is looked up on each node")
        mount["Source"] = source
        bind = mapping(long.get("bind"), f"{path}.bind")
        options = {"Propagation": bind.get("propagation"), "CreateMountpoint": bind.get("create_host_path")}
        if chosen := {key: value for key, value in options.items() if value is not None}:
            mount["BindOptions"] = chosen
    else:
        _volume(stack, mount, source, long, path, declared)
    return mount


def _volume(
    stack: str, mount: dict[str, Any], source: str, long: Mapping[str, Any], path: str, declared: Mapping[str, Any]
) -> None:
    options: dict[str, Any] = {}
    if truth(mapping(long.get("volume"), f"{path}.volume").get("nocopy", False), f"{path}.volume.nocopy"):
        options["NoCopy"] = True
    if source:
        if source not in declared:
            raise InvalidArgument(f"{path}: the volume {source!r} is not declared under the top-level volumes")
        volume = mapping(declared[source], f"volumes.{source}")
        external = volume.get("external")
        named = volume.get("name") or (external.get("name") if isinstance(external, dict) else None)
        mount["Source"] = str(named or (source if external else f"{stack}_{source}"))
        if not external:
            labels = volume.get("labels") or {}
            pairs = dict(str(entry).partition("=")[::2] for entry in labels) if isinstance(labels, list) else labels
            options["Labels"] = {**{str(key): str(value) for key, value in pairs.items()}, NAMESPACE: stack}
            if volume.get("driver") or volume.get("driver_opts"):
                options["DriverConfig"] = {
                    "Name": str(volume.get("driver") or "local"),
                    "Options": {key: str(value) for key, value in (volume.get("driver_opts") or {}).items()},
                }
    if options:
        mount["VolumeOptions"] = options
