"""Where a registry is reached: which addresses are tried for a domain, in which order, and how far each is trusted.

Pure. The rules are Docker's: docker.io lives at registry-1.docker.io; mirrors stand for docker.io only and only when
pulling; a registry that may be insecure (loopback always) is tried over https first, unverified, and then over http.
Knows no connection and no credentials.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from covey.errors import InvalidArgument
from worker.images.reference import DEFAULT_DOMAIN, LEGACY_DOMAIN

HUB = "registry-1.docker.io"
LOOPBACK = ("127.0.0.0/8", "::1/128")
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. ``read``: the longest silence in an answer; ``backoff``: before the second attempt, doubled each time."""

    connect: float = 15.0
    read: float = 60.0
    attempts: int = 5
    backoff: float = 1.0
    longest_wait: float = 60.0


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """``insecure``: hosts, host:ports or networks as ``--insecure-registry`` takes them; ``mirrors``: URLs; ``certificates``:
    directories that hold ``<host:port>/*.crt`` (authorities) and ``*.cert`` with ``*.key``; ``config``: a Docker
    ``config.json`` for pulls that bring no credentials. ``downloads`` and ``uploads`` run at once for one image.
    """

    insecure: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    certificates: tuple[Path, ...] = (Path("/etc/docker/certs.d"), Path("/etc/covey/certs.d"))
    config: Path | None = None
    downloads: int = 3
    uploads: int = 5
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``base``: ``https://host[:port]``, without a slash. ``verified``: its certificate must be good."""

    base: str
    verified: bool = True
    mirror: bool = False
    loopback: bool = False

    @property
    def origin(self) -> str:
        return origin(urlsplit(self.base))

    @property
    def host(self) -> str:
        """``host:port`` as the certificates' directories are called."""
        return urlsplit(self.base).netloc

    @property
    def is_https(self) -> bool:
        return self.base.startswith("https://")


def origin(url: SplitResult) -> str:
    """Scheme, host and port: what credentials may not leave."""
    return f"{url.scheme}://{(url.hostname or '').lower()}:{url.port or _PORTS.get(url.scheme, 0)}"


def is_loopback(host: str | None) -> bool:
    """Whether a host name, without a port, is this machine by what it is called."""
    if not host:
        return False
    if host.lower() == "localhost":
        return True
    return _in_networks(host.strip("[]"), LOOPBACK)


def candidates(domain: str, options: RegistryOptions, *, pushing: bool = False) -> list[Endpoint]:
    """The endpoints to try for ``domain``, the domain of a reference, one after another."""
    found: list[Endpoint] = []
    if domain == DEFAULT_DOMAIN and not pushing:
        for mirror in options.mirrors:
            found += _mirror(mirror, options.insecure)
    host = HUB if domain in (DEFAULT_DOMAIN, LEGACY_DOMAIN) else domain
    return found + _of(host, options.insecure)


def check(options: RegistryOptions) -> RegistryOptions:
    """``options`` themselves. InvalidArgument, in the words of the daemon's flags, when they cannot be."""
    for mirror in options.mirrors:
        url = urlsplit(mirror)
        if (
            "@" in url.netloc
            or url.scheme not in _PORTS
            or not url.hostname
            or url.path.strip("/")
            or url.query
            or url.fragment
        ):
            raise InvalidArgument(f"--registry-mirror {mirror!r}: give http://host[:port] or https://host[:port]")
    for one in options.insecure:
        if "://" in one or not one.strip():
            raise InvalidArgument(f"--insecure-registry {one!r}: give host[:port] or a network as 192.0.2.0/24")
    for name, count in (("downloads", options.downloads), ("uploads", options.uploads)):
        if count < 1:
            raise InvalidArgument(f"--max-concurrent-{name} {count}: give 1 or more")
    return options


def _mirror(url: str, insecure: Collection[str]) -> list[Endpoint]:
    parts = urlsplit(url)
    loopback = is_loopback(parts.hostname)
    unverified = loopback or _may_be_insecure(parts.netloc, insecure)
    return [Endpoint(url.rstrip("/"), verified=not unverified, mirror=True, loopback=loopback)]


def _of(host: str, insecure: Collection[str]) -> list[Endpoint]:
    loopback = is_loopback(urlsplit(f"//{host}").hostname)
    if not loopback and not _may_be_insecure(host, insecure):
        return [Endpoint(f"https://{host}")]
    return [Endpoint(f"{scheme}://{host}", verified=False, loopback=loopback) for scheme in ("https", "http")]


def _may_be_insecure(netloc: str, insecure: Collection[str]) -> bool:
    host = urlsplit(f"//{netloc}").hostname or ""
    return netloc in insecure or host in insecure or _in_networks(host, insecure)


def _in_networks(host: str, networks: Collection[str] | Sequence[str]) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for text in networks:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            continue
        if address.version == network.version and address in network:
            return True
    return False
