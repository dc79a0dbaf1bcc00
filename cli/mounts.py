"""``--mount`` as the Engine API's Mount: ``type=volume,source=data,target=/data,readonly``. A table; pure.

Keys and their other names are those of Docker's option.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cli.stack.units import size, truth
from cli.words import fields
from covey.errors import InvalidArgument

_TYPES = ("bind", "volume", "tmpfs", "npipe", "cluster", "image")


def _mode(text: str, path: str) -> int:
    try:
        return int(text, 8)
    except ValueError:
        raise InvalidArgument(f"{path}: {text!r} is not a file mode such as 1777") from None


def _text(text: str, path: str) -> str:
    return text


#: Key → where it goes in the Mount, and how its value is read.
_KEYS: dict[str, tuple[tuple[str, ...], Callable[[str, str], Any]]] = {
    "type": (("Type",), _text),
    "source": (("Source",), _text),
    "src": (("Source",), _text),
    "target": (("Target",), _text),
    "destination": (("Target",), _text),
    "dst": (("Target",), _text),
    "readonly": (("ReadOnly",), truth),
    "ro": (("ReadOnly",), truth),
    "consistency": (("Consistency",), _text),
    "bind-propagation": (("BindOptions", "Propagation"), _text),
    "bind-nonrecursive": (("BindOptions", "NonRecursive"), truth),
    "bind-create-src": (("BindOptions", "CreateMountpoint"), truth),
    "volume-nocopy": (("VolumeOptions", "NoCopy"), truth),
    "volume-subpath": (("VolumeOptions", "Subpath"), _text),
    "volume-driver": (("VolumeOptions", "DriverConfig", "Name"), _text),
    "tmpfs-size": (("TmpfsOptions", "SizeBytes"), size),
    "tmpfs-mode": (("TmpfsOptions", "Mode"), _mode),
}
_FLAGS = {"readonly", "ro", "volume-nocopy", "bind-nonrecursive"}
_MAPS = {"volume-label": ("Labels",), "volume-opt": ("DriverConfig", "Options")}
_OPTIONS = {"BindOptions": "bind", "VolumeOptions": "volume", "TmpfsOptions": "tmpfs"}


def parse_mounts(given: Iterable[str] | None, option: str = "--mount") -> list[dict[str, Any]]:
    """All mounts of a command line. Raises InvalidArgument naming the one that is wrong."""
    found = [parse_mount(text, option) for text in given or ()]
    targets = [mount["Target"] for mount in found]
    if twice := next((target for target in targets if targets.count(target) > 1), None):
        raise InvalidArgument(f"{option}: duplicate mount point {twice}")
    return found


def parse_mount(text: str, option: str = "--mount") -> dict[str, Any]:
    """One mount."""
    path = f"{option} {text!r}"
    mount: dict[str, Any] = {"Type": "volume"}
    for key, value in fields(text, option):
        if key in _MAPS:
            name, _, setting = (value or "").partition("=")
            _put(mount, ("VolumeOptions", *_MAPS[key], name), setting)
            continue
        if key not in _KEYS:
            raise InvalidArgument(f"{path}: unknown key {key!r}; known are {', '.join([*_KEYS, *_MAPS])}")
        if value is None and key not in _FLAGS:
            raise InvalidArgument(f"{path}: {key} needs a value")
        place, read = _KEYS[key]
        _put(mount, place, read("true" if value is None else value, f"{path}: {key}"))
    _check(mount, path)
    return mount


def _put(mount: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    for step in place[:-1]:
        mount = mount.setdefault(step, {})
    mount[place[-1]] = value


def _check(mount: dict[str, Any], path: str) -> None:
    kind = mount["Type"]
    if kind not in _TYPES:
        raise InvalidArgument(f"{path}: type {kind!r} is none of bind, volume, tmpfs")
    if not mount.get("Target"):
        raise InvalidArgument(f"{path}: target is required: where it is in the container")
    if not mount["Target"].startswith("/"):
        raise InvalidArgument(f"{path}: target {mount['Target']!r} must be an absolute path")
    if kind == "bind" and not str(mount.get("Source", "")).startswith("/"):
        raise InvalidArgument(f"{path}: source of a bind must be an absolute path")
    if kind == "tmpfs" and mount.get("Source"):
        raise InvalidArgument(f"{path}: a tmpfs has no source")
    for options, belongs in _OPTIONS.items():
        if options in mount and kind != belongs:
            raise InvalidArgument(f"{path}: {belongs} options do not go with type={kind}")
