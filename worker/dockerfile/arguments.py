"""Which build arguments an instruction sees, and which of them a layer depends on. Pure.

Rules of Docker's: an argument is seen from its ARG on, in its stage; what the client gives wins over the default; one
declared before the first FROM is seen by FROM, and by a stage that declares it again; the proxies are seen by RUN alone,
undeclared, and no cached step depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

PROXIES = tuple(
    spelled for name in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY") for spelled in (name, name.lower())
)


def platform_arguments(target: str, build: str) -> dict[str, str]:
    """TARGETPLATFORM and its kin for platforms such as ``linux/arm64/v8``."""
    found: dict[str, str] = {}
    for prefix, platform in (("TARGET", target), ("BUILD", build)):
        parts = [*platform.split("/"), "", ""]
        found |= {
            f"{prefix}PLATFORM": platform,
            f"{prefix}OS": parts[0],
            f"{prefix}ARCH": parts[1],
            f"{prefix}VARIANT": parts[2],
        }
    return found


class Arguments:
    """Of one build: ``given`` by the client, ``platform`` the automatic ones."""

    def __init__(self, given: Mapping[str, str], platform: Mapping[str, str]) -> None:
        self.given = dict(given)
        self._platform = dict(platform)
        self._global: dict[str, str | None] = {}
        self._declared: set[str] = set()

    def before_from(self) -> dict[str, str]:
        """What FROM, and an ARG before it, see."""
        return {**self._platform, **{name: value for name, value in self._global.items() if value is not None}}

    def declare_global(self, name: str, default: str | None) -> None:
        self._declared.add(name)
        self._global[name] = self.given.get(name, default)

    def stage(self) -> StageArguments:
        return StageArguments(self)

    def value(self, name: str, default: str | None) -> str | None:
        """Of an argument declared in a stage."""
        self._declared.add(name)
        if name in self.given:
            return self.given[name]
        if default is not None:
            return default
        return self._global.get(name) or self._platform.get(name)

    def unused(self) -> list[str]:
        """Names the client gave and nobody declared."""
        return sorted(set(self.given) - self._declared - set(PROXIES))


class StageArguments:
    """Those declared so far in one stage."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._values: dict[str, str] = {}

    def declare(self, name: str, default: str | None) -> None:
        value = self._arguments.value(name, default)
        if value is None:
            self._values.pop(name, None)
        else:
            self._values[name] = value

    def visible(self, environment: Iterable[str]) -> dict[str, str]:
        """Declared ones; a variable of the image wins over an argument of its name."""
        hidden = set(environment)
        return {name: value for name, value in self._values.items() if name not in hidden}

    def of_run(self, environment: Iterable[str]) -> dict[str, str]:
        """What a RUN has in its environment beside the image's: declared ones, and the proxies."""
        hidden = set(environment)
        given = self._arguments.given
        proxies = {name: given[name] for name in PROXIES if name in given and name not in hidden}
        return {**proxies, **self.visible(hidden)}


def recorded(arguments: Mapping[str, str], argv: Sequence[str]) -> list[str]:
    """The command as history tells it, and a cached step is looked up by: ``|2 a=1 b=2 /bin/sh -c …``."""
    if not arguments:
        return list(argv)
    return [f"|{len(arguments)}", *(f"{name}={value}" for name, value in sorted(arguments.items())), *argv]
