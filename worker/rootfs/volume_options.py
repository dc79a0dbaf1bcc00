"""What a local volume's driver options mean: the ``type``, ``o`` and ``device`` of mount(8).

Pure: options in, a MountPlan out. Mounting is worker.rootfs.volumes'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from covey.errors import InvalidArgument
from worker.kernel import mounts

_KNOWN = {"type", "o", "device"}
_IGNORED = {"defaults", "async", "auto", "noauto", "user", "nouser", "_netdev", "nofail"}


@dataclass(frozen=True, slots=True)
class MountPlan:
    """A bind of ``source`` (``bind``), or a new filesystem ``fstype`` on ``source`` with ``options``.

    ``attributes`` are MOUNT_ATTR_* flags to set.
    """

    bind: bool
    recursive: bool
    fstype: str
    source: str
    options: tuple[str, ...]
    attributes: int


def plan(name: str, options: Mapping[str, str]) -> MountPlan | None:
    """What is mounted on the volume's directory while it is used; None when nothing is. InvalidArgument else."""
    unknown = sorted(set(options) - _KNOWN)
    if unknown:
        raise InvalidArgument(f'create {name}: invalid option: "{unknown[0]}"; known are type, o, device')
    fstype, device = options.get("type", ""), options.get("device", "")
    if not options:
        return None
    if not device:
        raise InvalidArgument(f'create {name}: missing device in volume options; give "device"')
    if not fstype and not options.get("o"):
        raise InvalidArgument(f'create {name}: missing type in volume options; give "type", or "o=bind"')
    attributes, rest, bind, recursive = 0, [], False, False
    for word in filter(None, options.get("o", "").split(",")):
        if word in ("bind", "rbind"):
            bind, recursive = True, word == "rbind"
        elif word in mounts.ATTRIBUTES:
            set_, clear, _ = mounts.ATTRIBUTES[word]
            attributes = attributes & ~clear | set_
        elif word not in _IGNORED:
            rest.append(word)
    if bind:
        if not device.startswith("/"):
            raise InvalidArgument(f'create {name}: a bind needs an absolute path, not device "{device}"')
        if rest:
            raise InvalidArgument(f'create {name}: option "{rest[0]}" makes no sense for a bind')
        return MountPlan(True, recursive, "none", device, (), attributes)
    if fstype in ("", "none"):
        raise InvalidArgument(f'create {name}: type "{fstype}" needs "o=bind"')
    return MountPlan(False, False, fstype, device, tuple(rest), attributes)
