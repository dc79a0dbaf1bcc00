"""PURE: what the administrator of a node does not let containers ask for, as a table: option → what in a request it refuses.

The default permits all that Docker permits. Whoever may use the Engine API is root on the node only as far as this
table lets them: take all of it away and what remains is a container that Docker's defaults hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covey.errors import Forbidden, InvalidArgument
from worker.containers import defaults, limits
from worker.containers.record import Mount

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """``option``: the daemon's flag is ``--no-<option>``. ``finds``: the fields of a request that it refuses.

    It is given the HostConfig and the mounts that came of it, those of other containers (VolumesFrom) included.
    """

    option: str
    about: str
    finds: Callable[[Settings, Sequence[Mount]], Iterable[str]]


def _privileged(settings: Settings, _: Sequence[Mount]) -> Iterable[str]:
    if settings.get("Privileged"):
        yield "HostConfig.Privileged"


def _host_namespaces(settings: Settings, _: Sequence[Mount]) -> Iterable[str]:
    for field in ("PidMode", "IpcMode", "UTSMode", "CgroupnsMode", "NetworkMode", "UsernsMode"):
        if settings.get(field) == "host":
            yield f"HostConfig.{field} host"


def _devices(settings: Settings, _: Sequence[Mount]) -> Iterable[str]:
    for field in ("Devices", "DeviceCgroupRules", "DeviceRequests"):
        if settings.get(field):
            yield f"HostConfig.{field}"


def _capabilities(settings: Settings, _: Sequence[Mount]) -> Iterable[str]:
    for name in settings.get("CapAdd") or []:
        if limits.capability(str(name), "CapAdd") not in defaults.CAPABILITIES:
            yield f"HostConfig.CapAdd {name}"


#: Key of a security option → the values that take nothing away; every value of another key does.
_HARMLESS: Mapping[str, tuple[str, ...]] = {
    "no-new-privileges": ("", "true", "false"),
    "seccomp": ("builtin", "default"),
    "writable-cgroups": ("false",),
}


def _unconfined(settings: Settings, _: Sequence[Mount]) -> Iterable[str]:
    for option in settings.get("SecurityOpt") or []:
        key, _, value = option.replace(":", "=", 1).partition("=")
        if value not in _HARMLESS.get(key, ()):
            # A profile of one's own may allow everything: its text is not judged.
            yield f"HostConfig.SecurityOpt {key}={value if len(value) < 40 else 'a profile of its own'}"
    for field, fixed in (("MaskedPaths", defaults.MASKED_PATHS), ("ReadonlyPaths", defaults.READONLY_PATHS)):
        given = settings.get(field)
        if given is not None and not settings.get("Privileged") and not set(fixed) <= set(given):
            yield f"HostConfig.{field}"


def _binds(settings: Settings, mounts: Sequence[Mount]) -> Iterable[str]:
    for mount in mounts:
        if mount.type == "bind":
            yield f"the mount of {mount.source}"
    for given in settings.get("Mounts") or []:
        if ((given.get("VolumeOptions") or {}).get("DriverConfig") or {}).get("Options"):
            yield f"HostConfig.Mounts {given.get('Target')}: DriverConfig.Options"


RULES: tuple[Rule, ...] = (
    Rule("privileged", "privileged containers and execs", _privileged),
    Rule("host-namespaces", "sharing the host's namespaces", _host_namespaces),
    Rule("devices", "devices of the host", _devices),
    Rule("capabilities", "capabilities beyond Docker's fourteen", _capabilities),
    Rule("unconfined", "security options that lift seccomp, masks or labels", _unconfined),
    Rule("binds", "paths of the host, and volumes with options", _binds),
)
OPTIONS = tuple(rule.option for rule in RULES)


@dataclass(frozen=True)
class Policy:
    """``refused``: names of ``OPTIONS`` that this node's daemon was started with a ``--no-`` for."""

    refused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in self.refused:
            if option not in OPTIONS:
                raise InvalidArgument(f"--no-{option}: there is no such policy; known are {', '.join(OPTIONS)}")

    def check(self, settings: Settings, mounts: Sequence[Mount] = ()) -> None:
        """Raise Forbidden for the first field of a HostConfig, or mount, that is refused."""
        for rule in RULES:
            if rule.option in self.refused:
                for words in rule.finds(settings, mounts):
                    raise _refusal(rule, words)

    def check_exec(self, request: Settings) -> None:
        if "privileged" in self.refused and request.get("Privileged"):
            raise _refusal(RULES[0], "ExecConfig.Privileged")

    def check_volume(self, options: Mapping[str, str]) -> None:
        if "binds" in self.refused and options:
            raise _refusal(RULES[OPTIONS.index("binds")], f"DriverOpts {', '.join(sorted(options))}")


def asked(mounts: Sequence[Mount], owner: str, own: str) -> list[Mount]:
    """The mounts somebody asked for: not those below ``own`` by which an agent gives its task ``owner`` secrets and configs."""
    return [one for one in mounts if not (owner and one.source.startswith(f"{own}/"))]


def _refusal(rule: Rule, words: str) -> Forbidden:
    return Forbidden(
        f"{words} is refused by this node's policy: its daemon was started with --no-{rule.option} ({rule.about}); "
        "leave it out, or use a node that allows it"
    )
