"""The way to registries: one HTTP session, the endpoints of a reference's domain, and who we are there.

It decides which endpoint of several serves; what is fetched from it is worker.images.pull's business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import aiohttp

from covey import credentials
from covey.credentials import ANONYMOUS, Credentials
from covey.errors import CoveyError
from worker.images.reference import Reference
from worker.images.registry import endpoints
from worker.images.registry.connection import Connection, tls_context
from worker.images.registry.endpoints import Endpoint, RegistryOptions
from worker.images.registry.errors import Unreachable
from worker.images.registry.repository import Repository

log = logging.getLogger(__name__)
T = TypeVar("T")
READ_BUFFER = 256 * 1024


class Registries:
    """``async with Registries(options)``. The session is made when it is first needed."""

    def __init__(self, options: RegistryOptions | None = None) -> None:
        self.options = endpoints.check(options or RegistryOptions())
        self._session: aiohttp.ClientSession | None = None
        self._plain: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def known_credentials(self, domain: str, given: Credentials | None) -> Credentials:
        """``given``, or what the daemon's own configuration has for the registry now: a helper may have something fresh."""
        if given or self.options.config is None:
            return given or ANONYMOUS
        return await asyncio.to_thread(credentials.lookup, self.options.config, domain)

    async def first(
        self,
        named: Reference,
        given: Credentials | None,
        work: Callable[[Repository], Awaitable[T]],
        *,
        pushing: bool = False,
        also_from: Sequence[str] = (),
    ) -> T:
        """What ``work`` gives at the first endpoint that serves ``named``; the last endpoint's error when none does.

        A mirror that has it not, is down or damaged, is passed over; a registry's own word counts.
        """
        known = await self.known_credentials(named.domain, given)
        tried = self._ordered(endpoints.candidates(named.domain, self.options, pushing=pushing))
        for place, endpoint in enumerate(tried, 1):
            # A mirror is another party: logins for the registry are not for it.
            connection = self.connection(endpoint, ANONYMOUS if endpoint.mirror else known)
            try:
                done = await work(Repository(connection, named.path, pushing=pushing, also_from=also_from))
            except CoveyError as error:
                if isinstance(error, Unreachable):
                    self._plain.discard(endpoint.host)
                if place == len(tried) or not (endpoint.mirror or _speaks_no_https(endpoint, error)):
                    raise
                log.info("%s: %s; the next endpoint is tried", endpoint.base, error.message)
                continue
            if not endpoint.verified and not endpoint.is_https:
                self._plain.add(endpoint.host)
            return done
        raise AssertionError("there is always an endpoint")

    def connection(self, endpoint: Endpoint, who: Credentials, *, offline: bool = False) -> Connection:
        """A connection to one endpoint as ``who``."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "covey"},
                read_bufsize=READ_BUFFER,
                trust_env=False,
            )
        tls = tls_context(endpoint, self.options.certificates)
        return Connection(self._session, endpoint, who, self.options.timing, tls, offline=offline)

    def _ordered(self, tried: list[Endpoint]) -> list[Endpoint]:
        """Plain http first where https has failed before and http has served: it saves a handshake a pull."""
        return sorted(tried, key=lambda one: not one.mirror and one.is_https and one.host in self._plain)


def _speaks_no_https(endpoint: Endpoint, error: CoveyError) -> bool:
    return not endpoint.verified and endpoint.is_https and isinstance(error, Unreachable) and error.https_failed
