"""What is asked of registries besides images: who may log in, what a name means there, what can be found.

It decides how answers are read. Status codes and the API's shapes are worker.routes'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from covey.credentials import Credentials
from covey.errors import InvalidArgument, NotFound, Unauthorized
from worker.images import manifests
from worker.images.manifests import Descriptor, Index
from worker.images.platforms import Platform
from worker.images.reference import DEFAULT_DOMAIN, LEGACY_DOMAIN, Reference
from worker.images.registry import endpoints
from worker.images.registry.access import Registries
from worker.images.registry.connection import ANSWER_LIMIT, read_all
from worker.images.registry.endpoints import HUB
from worker.images.registry.errors import NoCredentials, Refused, RegistryError, Unreachable
from worker.images.registry.repository import Repository

PATIENCE = 5.0
"""A service that is created waits for the answer, and goes on without it: a registry out of reach must not hold it up."""

SEARCH_DEFAULT = 25
SEARCH_MOST = 100
SEARCH_FILTERS = ("is-automated", "is-official", "stars")


@dataclass(frozen=True, slots=True)
class Described:
    """What a name means at its registry: a manifest or an index, and the platforms it serves."""

    media_type: str
    digest: str
    size: int
    platforms: tuple[Platform, ...]


async def describe(registries: Registries, named: Reference, who: Credentials) -> Described:
    """Asks the registry what ``named``, a tag or digest, is now. Unreachable when it has not answered soon."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await _describe(registries, named, who)
    except TimeoutError:
        raise Unreachable(f"registry {named.domain} did not say within {PATIENCE:g} s what {named.familiar} is") from None


async def _describe(registries: Registries, named: Reference, who: Credentials) -> Described:

    async def at(repository: Repository) -> Described:
        found = await repository.manifest(named.digest or named.tag or "")
        document = manifests.parse(found.data, found.media_type)
        if isinstance(document, Index):
            there = tuple(one.platform for one in document.manifests if one.platform is not None and not one.is_attestation)
        else:
            there = (await _platform(repository, document.config),)
        return Described(document.media_type, found.digest, len(found.data), there)

    return await registries.first(named, who, at)


async def _platform(repository: Repository, config: Descriptor) -> Platform:
    if config.size > manifests.SIZE_LIMIT:
        raise manifests.BadManifest(f"config {config.digest} is larger than {manifests.SIZE_LIMIT} bytes")
    held = _Held(config)
    await repository.blob(config, held)
    document = manifests.load(bytes(held.data), f"config {config.digest}")
    parts = [document.get(name) or "" for name in ("os", "architecture", "variant")]
    if not all(isinstance(part, str) for part in parts):
        raise manifests.BadManifest(f"config {config.digest} has a malformed platform")
    return Platform(*parts)


class _Held:
    """A Sink in memory, for a config."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self.data = bytearray()

    @property
    def offset(self) -> int:
        return len(self.data)

    async def write(self, data: bytes) -> None:
        if len(self.data) + len(data) > self._descriptor.size:
            raise manifests.BadManifest(f"config {self._descriptor.digest} is longer than announced")
        self.data += data


async def log_in(registries: Registries, given: Credentials) -> str:
    """Whether the registry takes ``given``; the identity token it gives in the password's place, "" for none.

    Unauthorized when it does not, in the registry's words.
    """
    domain = domain_of(given.server)
    tried = endpoints.candidates(domain, registries.options, pushing=True)
    for place, endpoint in enumerate(tried, 1):
        connection = registries.connection(endpoint, given, offline=True)
        try:
            async with connection.request("GET", "/v2/"):
                return connection.identity_token
        except NoCredentials as error:
            raise Unauthorized(error.message) from None
        except Refused as error:
            if error.http_status in (401, 403):
                raise Unauthorized(f'Get "{endpoint.base}/v2/": {error.message}') from None
            raise
        except RegistryError:
            if place == len(tried):
                raise
    raise AssertionError("there is always an endpoint")


def domain_of(server: str) -> str:
    """The domain of references whose registry credentials are kept for as ``server``. InvalidArgument for nonsense."""
    if not server:
        return DEFAULT_DOMAIN
    url = urlsplit(server if "://" in server else f"//{server}")
    host = url.netloc
    if not host or "@" in host:
        raise InvalidArgument(f"invalid serveraddress {server!r:.100}: give host[:port]")
    return DEFAULT_DOMAIN if host in (DEFAULT_DOMAIN, LEGACY_DOMAIN, HUB) else host


async def search(
    registries: Registries, term: str, limit: int, filters: Mapping[str, Sequence[str]], who: Credentials
) -> list[dict[str, Any]]:
    """Repositories that ``[registry/]word`` finds, by the search of the first registries; most have none, and say so."""
    if not term:
        raise InvalidArgument("give a term to search for")
    if not 1 <= limit <= SEARCH_MOST:
        raise InvalidArgument(f"limit {limit} is outside the range of [1, {SEARCH_MOST}]")
    wanted = _search_filter(filters)
    domain, word = _split(term)
    # Docker Hub answers searches under its old name.
    host = LEGACY_DOMAIN if domain == DEFAULT_DOMAIN else domain
    tried = endpoints.candidates(host, registries.options, pushing=True)
    if domain == DEFAULT_DOMAIN:
        tried = [endpoints.Endpoint(f"https://{LEGACY_DOMAIN}")]
    known = await registries.known_credentials(domain, who)
    for place, endpoint in enumerate(tried, 1):
        url = f"/v1/search?{urlencode({'q': word, 'n': limit})}"
        try:
            async with registries.connection(endpoint, known).request("GET", url) as answer:
                data = await read_all(answer, ANSWER_LIMIT, f"search at {endpoint.base}")
        except Refused as error:
            if error.http_status == 404:
                raise NotFound(
                    f"registry {domain} offers no search: name a repository of it, or look at the registry's own page"
                ) from None
            raise
        except RegistryError as error:
            if place == len(tried):
                if domain == DEFAULT_DOMAIN:
                    raise RegistryError(f"Docker Hub cannot be searched from here: {error.message}") from None
                raise
            continue
        return _results(manifests.load(data, f"search at {endpoint.base}"), wanted)[:limit]
    raise AssertionError("there is always an endpoint")


def _split(term: str) -> tuple[str, str]:
    first, slash, rest = term.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return (DEFAULT_DOMAIN if first in (DEFAULT_DOMAIN, LEGACY_DOMAIN) else first), rest
    return DEFAULT_DOMAIN, term


def _search_filter(filters: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    wanted: dict[str, Any] = {}
    for name in ("is-automated", "is-official"):
        for value in filters.get(name, ()):
            if value.lower() not in ("true", "false", "1", "0"):
                raise InvalidArgument(f"invalid filter '{name}={value}': not true or false")
            wanted[name.replace("-", "_")] = value.lower() in ("true", "1")
    for value in filters.get("stars", ()):
        if not value.isdigit():
            raise InvalidArgument(f"invalid filter 'stars={value}': not a number")
        wanted["stars"] = max(wanted.get("stars", 0), int(value[:9]))
    return wanted


def _results(document: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = document.get("results")
    found = []
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            continue
        one = {
            "name": row["name"],
            "description": str(row.get("description") or ""),
            "star_count": row["star_count"] if isinstance(row.get("star_count"), int) else 0,
            "is_official": row.get("is_official") is True,
            "is_automated": row.get("is_automated") is True,
        }
        flags = ("is_official", "is_automated")
        if all(one[flag] == wanted[flag] for flag in flags if flag in wanted) and one["star_count"] >= wanted.get("stars", 0):
            found.append(one)
    return found
