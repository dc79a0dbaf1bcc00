"""API versions: which this release speaks, which it refuses and in what words.

The words are Docker's, because clients match on them. It must not know requests or routes.
"""

from __future__ import annotations

from covey.errors import InvalidArgument

API_VERSION = "1.52"
MINIMUM_API_VERSION = "1.24"


def parse(version: str) -> tuple[int, ...]:
    """``1.41`` → (1, 41). Raises InvalidArgument for anything but numbers and dots."""
    parts = version.split(".")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise InvalidArgument(f"invalid API version {version!r}: use a number like {API_VERSION}")
    return tuple(int(part) for part in parts)


def at_least(version: str, minimum: str) -> bool:
    """Whether ``version`` is ``minimum`` or later; 1.9 is before 1.24."""
    return parse(version) >= parse(minimum)


def check(version: str | None) -> str:
    """The version a request is answered in: the client's, or ours when it named none. Raises InvalidArgument (400)."""
    if version is None:
        return API_VERSION
    if not at_least(version, MINIMUM_API_VERSION):
        raise InvalidArgument(
            f"client version {version} is too old. Minimum supported API version is {MINIMUM_API_VERSION}, "
            "please upgrade your client to a newer version"
        )
    if not at_least(API_VERSION, version):
        raise InvalidArgument(f"client version {version} is too new. Maximum supported API version is {API_VERSION}")
    return version


def negotiate(server: str) -> str:
    """The version a client of ours uses with a server that speaks ``server``: the lower of both."""
    return server if at_least(API_VERSION, server) else API_VERSION
