"""Parses and normalises image references the way Docker does.

Decides what ``busybox``, ``user/app:1.2`` or ``registry:5000/x@sha256:…`` name. Pure: knows no store and no registry.
Grammar and words: distribution/reference (facts only).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from covey.errors import InvalidArgument

DEFAULT_DOMAIN = "docker.io"
LEGACY_DOMAIN = "index.docker.io"
OFFICIAL_PREFIX = "library/"
DEFAULT_TAG = "latest"
NAME_LENGTH_LIMIT = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])"
_DOMAIN = re.compile(rf"{_HOST}(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")
_DIGEST_HEX = {"sha256": 64, "sha384": 96, "sha512": 128}


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference: ``domain`` and ``path`` always set, ``tag`` and ``digest`` as far as they were given."""

    domain: str
    path: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """The full repository name, ``docker.io/library/busybox``."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository name as a person writes it, ``busybox``; it means the same when it is read."""
        if self.domain != DEFAULT_DOMAIN or _split_domain(self.path) != (DEFAULT_DOMAIN, self.path):
            return self.name
        rest = self.path.removeprefix(OFFICIAL_PREFIX)
        return self.path if "/" in rest else rest

    @property
    def familiar(self) -> str:
        """The whole reference as a person writes it, ``busybox:1.36``."""
        return self.familiar_name + self._suffix()

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def tagged(self) -> Reference:
        """This reference with ``latest`` where it has neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        """The same repository under ``tag``; InvalidArgument when that is no tag."""
        if not _TAG.fullmatch(tag):
            raise InvalidArgument(f"invalid tag format: {tag!r} is not a valid tag")
        return replace(self, tag=tag, digest=None)


def parse(text: str) -> Reference:
    """The reference ``text`` names. InvalidArgument "invalid reference format…" in Docker's words when it is none."""
    if _HEX64.fullmatch(text):
        raise InvalidArgument(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    rest, digest = _split_digest(text)
    name, tag = _split_tag(rest, text)
    domain, path = _split_domain(name)
    if path.lower() != path:
        raise InvalidArgument(f"invalid reference format: repository name ({path}) must be lowercase")
    if not _DOMAIN.fullmatch(domain) or not _PATH.fullmatch(path):
        raise _invalid(text)
    if len(domain) + 1 + len(path) > NAME_LENGTH_LIMIT:
        raise InvalidArgument(f"repository name must not be more than {NAME_LENGTH_LIMIT} characters")
    return Reference(domain, path, tag, digest)


def parse_tagged(text: str) -> Reference:
    """Like ``parse``, with ``latest`` where neither tag nor digest is given."""
    return parse(text).tagged()


def from_parts(repository: str, tag: str) -> Reference:
    """The reference of the API's ``repo`` and ``tag`` parameters; an empty ``tag`` leaves what ``repo`` says.

    ``tag`` may hold a digest. A ``repo`` with a digest cannot be tagged: InvalidArgument, as Docker.
    """
    named = parse(repository)
    if not tag:
        return named.tagged()
    if ":" in tag:
        return parse(f"{named.name}@{tag}")
    return named.with_tag(tag)


def id_prefix(text: str) -> str | None:
    """The hexadecimal prefix when ``text`` may be an image id (``sha256:`` and/or 1–64 hex digits), else None."""
    match = _ID.fullmatch(text)
    return match.group(1) if match else None


def check_digest(digest: str) -> str:
    """``digest`` itself when it is well formed; InvalidArgument in Docker's words otherwise."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidArgument(f"invalid checksum digest format: {digest!r}")
    algorithm, _, value = digest.partition(":")
    if algorithm not in _DIGEST_HEX:
        raise InvalidArgument(f"unsupported digest algorithm: {digest!r}")
    if len(value) != _DIGEST_HEX[algorithm]:
        raise InvalidArgument(f"invalid checksum digest length: {digest!r}")
    if value != value.lower():
        raise InvalidArgument(f"invalid checksum digest format: {digest!r}")
    return digest


def _invalid(text: str) -> InvalidArgument:
    return InvalidArgument(f"invalid reference format: {text!r} is not [registry/]name[:tag][@digest]")


def _split_digest(text: str) -> tuple[str, str | None]:
    rest, at, digest = text.partition("@")
    if not at:
        return text, None
    if not _DIGEST.fullmatch(digest):
        raise _invalid(text)
    return rest, check_digest(digest)


def _split_tag(rest: str, text: str) -> tuple[str, str | None]:
    head, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        return rest, None
    if not _TAG.fullmatch(tag):
        raise _invalid(text)
    return head, tag


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, path = name.partition("/")
    is_domain = slash and ("." in first or ":" in first or first == "localhost" or first.lower() != first)
    domain, path = (first, path) if is_domain else (DEFAULT_DOMAIN, name)
    if domain == LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = OFFICIAL_PREFIX + path
    return domain, path
