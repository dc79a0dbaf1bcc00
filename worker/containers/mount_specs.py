"""Which mounts a container asks for: Binds, Mounts, Tmpfs, VolumesFrom and the image's volumes as one list. Pure.

It parses and refuses in Docker's words; whether a source exists and which volume it becomes is settled elsewhere.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Mapping
from typing import Any

from covey.errors import InvalidArgument
from worker.containers.record import Mount

PROPAGATIONS = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_IGNORED = frozenset({"z", "Z", "consistent", "cached", "delegated"})


def _clean(path: str) -> str:
    cleaned = os.path.normpath(path)
    return "/" + cleaned.lstrip("/") if cleaned.startswith("//") else cleaned


def _destination(path: str, text: str) -> str:
    if not path.startswith("/"):
        raise InvalidArgument(
            f"invalid volume specification: '{text}': invalid mount path: '{path}' mount path must be absolute"
        )
    cleaned = _clean(path)
    if cleaned == "/":
        raise InvalidArgument(f"invalid volume specification: '{text}': invalid specification: destination can't be '/'")
    return cleaned


def parse_bind(text: str) -> Mount:
    """``source:destination[:mode]`` of HostConfig.Binds; a source without a leading slash is a volume's name."""
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise InvalidArgument(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        return Mount(type="volume", destination=_destination(parts[0], text), anonymous=True, copy=True, driver="local")
    source, target = parts[0], parts[1]
    mount = Mount(type="bind", destination=_destination(target, text), source=source)
    if not source.startswith("/"):
        if not _VOLUME.fullmatch(source):
            raise InvalidArgument(
                f"invalid volume specification: '{text}': \"{source}\" includes invalid characters for a local volume name, "
                'only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
            )
        mount = Mount(type="volume", destination=mount.destination, name=source, driver="local", copy=True)
    else:
        mount.source, mount.propagation = _clean(source), "rprivate"
    if len(parts) == 3:
        _apply_mode(mount, parts[2], text)
    return mount


def _apply_mode(mount: Mount, mode: str, text: str) -> None:
    mount.mode = mode
    seen_access = False
    for word in mode.split(","):
        if word in ("ro", "rw") and not seen_access:
            mount.read_write, seen_access = word == "rw", True
        elif word == "nocopy" and mount.type == "volume":
            mount.copy = False
        elif word in PROPAGATIONS and mount.type == "bind":
            mount.propagation = word
        elif word not in _IGNORED:
            raise InvalidArgument(f"invalid volume specification: '{text}': invalid mode: {mode}")


def _invalid(kind: str, words: str) -> InvalidArgument:
    return InvalidArgument(f'invalid mount config for type "{kind}": {words}')


def parse_mount(given: Mapping[str, Any]) -> Mount:
    """One object of HostConfig.Mounts."""
    kind = str(given.get("Type") or "")
    target, source = str(given.get("Target") or ""), str(given.get("Source") or "")
    if kind not in ("bind", "volume", "tmpfs"):
        raise InvalidArgument(f'mount type unknown: "{kind}" is not one of bind, volume, tmpfs')
    if not target:
        raise _invalid(kind, "field Target must not be empty")
    if not target.startswith("/"):
        raise _invalid(kind, f"invalid mount path: '{target}' mount path must be absolute")
    if _clean(target) == "/":
        raise _invalid(kind, "invalid specification: destination can't be '/'")
    mount = Mount(type=kind, destination=_clean(target), read_write=not given.get("ReadOnly"))
    for option, owner in (("BindOptions", "bind"), ("VolumeOptions", "volume"), ("TmpfsOptions", "tmpfs")):
        if given.get(option) and owner != kind:
            raise _invalid(kind, f"field {option} must not be specified")
    _KINDS[kind](mount, source, given)
    return mount


def _bind(mount: Mount, source: str, given: Mapping[str, Any]) -> None:
    options = given.get("BindOptions") or {}
    if not source:
        raise _invalid("bind", "field Source must not be empty")
    if not source.startswith("/"):
        raise _invalid("bind", f"invalid mount path: '{source}' mount path must be absolute")
    propagation = str(options.get("Propagation") or "rprivate")
    if propagation not in PROPAGATIONS:
        raise _invalid("bind", f"invalid propagation mode: {propagation}")
    mount.source, mount.propagation = _clean(source), propagation
    mount.options = ["bind"] if options.get("NonRecursive") else []
    # A missing source is made only when the client says so (unlike -v, which always makes it).
    mount.must_exist = not options.get("CreateMountpoint")


def _volume(mount: Mount, source: str, given: Mapping[str, Any]) -> None:
    options = given.get("VolumeOptions") or {}
    if source and not _VOLUME.fullmatch(source):
        raise _invalid("volume", f'"{source}" includes invalid characters for a local volume name')
    if not source and not mount.read_write:
        raise _invalid("volume", "must not set ReadOnly mode when using anonymous volumes")
    mount.name, mount.anonymous = source, not source
    mount.driver = str((options.get("DriverConfig") or {}).get("Name") or "local")
    mount.copy = not options.get("NoCopy")
    if options.get("Subpath"):
        raise _invalid("volume", f"Subpath {options['Subpath']!r} is not supported by this release: mount the whole volume")
    mount.mode = "z"


def _tmpfs(mount: Mount, source: str, given: Mapping[str, Any]) -> None:
    options = given.get("TmpfsOptions") or {}
    if source:
        raise _invalid("tmpfs", "field Source must not be specified")
    size, mode = int(options.get("SizeBytes") or 0), int(options.get("Mode") or 0)
    if size < 0:
        raise _invalid("tmpfs", f"SizeBytes {size} must not be negative")
    mount.options = ["nosuid", "nodev", "noexec"]
    if size:
        mount.options.append(f"size={size}")
    if mode:
        mount.options.append(f"mode={mode:o}")
    for option in options.get("Options") or []:
        mount.options.append("=".join(str(part) for part in option))


_KINDS = {"bind": _bind, "volume": _volume, "tmpfs": _tmpfs}


def parse_tmpfs(destination: str, options: str) -> Mount:
    """One entry of HostConfig.Tmpfs; without options it is rw,nosuid,nodev,noexec as Docker's."""
    if not destination.startswith("/"):
        raise InvalidArgument(f"invalid tmpfs path {destination!r}: mount path must be absolute")
    given = [word for word in options.split(",") if word]
    words = [word for word in ("nosuid", "nodev", "noexec") if not {word, word.removeprefix("no")} & set(given)]
    words += [word for word in given if word not in ("rw", "ro", "defaults")]
    return Mount(type="tmpfs", destination=_clean(destination), read_write="ro" not in given, options=words)


def _from_others(host_config: Mapping[str, Any], others: Mapping[str, Iterable[Mount]]) -> list[Mount]:
    found: list[Mount] = []
    for text in host_config.get("VolumesFrom") or []:
        name, _, mode = text.partition(":")
        if mode and not set(mode.split(",")) <= {"ro", "rw", *_IGNORED}:
            raise InvalidArgument(f"invalid volumes-from specification: '{text}': invalid mode: {mode}")
        for mount in others[name]:
            if mount.type == "tmpfs":
                continue
            same = Mount(
                type=mount.type,
                destination=mount.destination,
                source=mount.source if mount.type == "bind" else "",
                name=mount.name,
                driver=mount.driver,
                propagation=mount.propagation,
                read_write=mount.read_write and "ro" not in mode.split(","),
            )
            found.append(same)
    return found


def requested(config: Mapping[str, Any], host_config: Mapping[str, Any], others: Mapping[str, Iterable[Mount]]) -> list[Mount]:
    """Every mount asked for, parents before children. ``others``: mounts of the containers in VolumesFrom, by name.

    Later kinds give way: Binds and Mounts over VolumesFrom over the image's volumes. InvalidArgument for a destination
    named twice.
    """
    explicit = [parse_bind(text) for text in host_config.get("Binds") or []]
    explicit += [parse_mount(mount) for mount in host_config.get("Mounts") or []]
    explicit += [parse_tmpfs(path, options or "") for path, options in (host_config.get("Tmpfs") or {}).items()]
    chosen: dict[str, Mount] = {}
    for mount in explicit:
        if mount.destination in chosen:
            raise InvalidArgument(f"Duplicate mount point: {mount.destination}")
        chosen[mount.destination] = mount
    for mount in _from_others(host_config, others):
        chosen.setdefault(mount.destination, mount)
    for path in config.get("Volumes") or {}:
        mount = parse_bind(path)
        chosen.setdefault(mount.destination, mount)
    return sorted(chosen.values(), key=lambda one: (one.destination.count("/"), one.destination))
