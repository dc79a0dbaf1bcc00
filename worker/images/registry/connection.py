"""One endpoint of a registry over HTTP: sends requests as the person logged in, follows redirects, tries again.

It decides what leaves us: credentials go to the endpoint's own origin and to nobody it redirects to. What is asked is
worker.images.registry.repository's.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from covey.credentials import Credentials
from worker.images.registry import challenge, errors, retry
from worker.images.registry.auth import Authorizer, Scopes
from worker.images.registry.endpoints import Endpoint, Timing, is_loopback, origin
from worker.images.registry.errors import RegistryError, Unreachable, Unsound

T = TypeVar("T")
Body = Callable[[], Any]
REDIRECTS = 10
ANSWER_LIMIT = 1 << 20
NO_SCOPES: Scopes = frozenset()
_REDIRECT = frozenset({301, 302, 303, 307, 308})
_SAFE = frozenset({"GET", "HEAD"})
_FAULTS = (aiohttp.ClientError, OSError, TimeoutError)


class Connection:
    """``request`` sends once (and once more after a challenge); ``retried`` repeats what may go better."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        credentials: Credentials,
        timing: Timing,
        tls: ssl.SSLContext | None = None,
        *,
        offline: bool = False,
    ) -> None:
        self._session, self._timing, self._tls = session, timing, tls
        self.endpoint = endpoint
        self._auth = Authorizer(endpoint, credentials, self._ask, time.monotonic, offline=offline)
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=timing.connect, sock_connect=timing.connect, sock_read=timing.read
        )
        self._reached = False

    @property
    def identity_token(self) -> str:
        """What the token server gave in place of the password, "" for nothing."""
        return self._auth.identity_token

    @property
    def attempts(self) -> int:
        """How often one thing is tried."""
        return self._timing.attempts

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        scopes: Scopes = NO_SCOPES,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        ok: Collection[int] = (200,),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, its body unread. ``url``: a path of the endpoint, or what the registry called a place of its.

        Raises Refused for a status that is not ``ok``, Unreachable, NoCredentials, Unsound.
        """
        target = self.endpoint.base + url if url.startswith("/") else url
        fields = {"Accept-Encoding": "identity", **(headers or {})}
        answer = await self._admitted(method, target, scopes, fields, body)
        try:
            if answer.status not in ok:
                raise await self._refusal(answer)
            try:
                yield answer
            except _FAULTS as fault:
                raise errors.unreachable(method, str(answer.url), fault) from fault
        finally:
            answer.release() if answer.content.at_eof() else answer.close()

    async def retried(self, work: Callable[[], Awaitable[T]]) -> T:
        """What ``work`` gives, tried again with growing pauses while that may help."""
        attempt = 1
        while True:
            try:
                return await work()
            except RegistryError as error:
                if not self.worthwhile(error, attempt):
                    raise
                await self.pause(attempt, error)
            attempt += 1

    def worthwhile(self, error: RegistryError, attempt: int) -> bool:
        """Whether there is to be another attempt: not when nobody has ever answered, for then nobody is there."""
        unknown = isinstance(error, Unreachable) and not self._reached
        return error.again and attempt < self._timing.attempts and not unknown

    async def pause(self, attempt: int, error: RegistryError) -> None:
        """The wait before the next attempt."""
        await asyncio.sleep(retry.delay(attempt, self._timing, random.random(), error.wait))

    async def _admitted(
        self, method: str, url: str, scopes: Scopes, fields: Mapping[str, str], body: Body | None
    ) -> aiohttp.ClientResponse:
        """The answer; a 401 of the endpoint's own is answered with what it asks for, once: a token may just have run out."""
        for left in (1, 0):
            own = self._is_own(url)
            header = await self._auth.header(scopes) if own else None
            answer = await self._send(method, url, header, fields, body)
            if answer.status != 401 or not self._is_own(str(answer.url)) or not (left or self._auth.is_basic):
                return answer
            found = challenge.parse(answer.headers.getall("WWW-Authenticate", []))
            if not found:
                return answer
            answer.close()
            try:
                await self._auth.challenged(found, scopes, header)
            except errors.NoCredentials as error:
                raise errors.NoCredentials(f'{method.capitalize()} "{url}": {error.message}') from None
        raise errors.NoCredentials(f"{self.endpoint.base} asks for one kind of login after another: no more than one is tried")

    async def _send(
        self, method: str, url: str, header: str | None, fields: Mapping[str, str], body: Body | None
    ) -> aiohttp.ClientResponse:
        for _ in range(REDIRECTS):
            mine = {"Authorization": header} if header is not None and self._is_own(url) else {}
            answer = await self._once(method, url, {**fields, **mine}, body)
            if answer.status not in _REDIRECT or method not in _SAFE:
                return answer
            url = self._redirected(url, answer)
            answer.close()
        raise Unsound(f"{self.endpoint.base} redirects more than {REDIRECTS} times, lastly to {_bare(url)}")

    async def _once(self, method: str, url: str, fields: Mapping[str, str], body: Body | None) -> aiohttp.ClientResponse:
        try:
            answer = await self._session.request(
                method,
                URL(url, encoded=True),
                headers=fields,
                data=body() if body is not None else None,
                allow_redirects=False,
                timeout=self._timeout,
                proxy=_proxy(url),
                ssl=self._tls if self._tls is not None and self._is_own(url) else True,
            )
        except _FAULTS as fault:
            raise errors.unreachable(method, _bare(url), fault) from fault
        except ValueError as fault:
            raise Unsound(f"{self.endpoint.base} names the address {_bare(url)!r:.200}, which cannot be: {fault}") from None
        self._reached = self._reached or self._is_own(url)
        return answer

    def _redirected(self, url: str, answer: aiohttp.ClientResponse) -> str:
        target = urljoin(url, answer.headers.get("Location", ""))
        parts = urlsplit(target)
        if parts.scheme not in ("http", "https") or not parts.hostname or "Location" not in answer.headers:
            raise Unsound(f"{_bare(url)} redirects to {_bare(target)!r:.200}, which is no http address")
        if url.startswith("https:") and parts.scheme == "http" and self.endpoint.verified and not is_loopback(parts.hostname):
            raise Unsound(f"{_bare(url)} redirects from https to plain http, to {_bare(target)}: refused")
        return target

    def _is_own(self, url: str) -> bool:
        return origin(urlsplit(url)) == self.endpoint.origin

    async def _refusal(self, answer: aiohttp.ClientResponse) -> errors.Refused:
        body = b""
        try:
            if answer.method != "HEAD":
                body = await answer.content.read(errors.BODY_LIMIT)
        except _FAULTS:
            pass
        wait = retry.retry_after(answer.headers.get("Retry-After"), time.time())
        challenges = challenge.parse(answer.headers.getall("WWW-Authenticate", []))
        return errors.refusal(answer.status, body, wait, _bare(str(answer.url)), challenges)

    async def _ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
        """What the token server answers."""

        async def once() -> bytes:
            answer = await self._once(method, url, headers, (lambda: body) if body is not None else None)
            try:
                if answer.status != 200:
                    raise await self._refusal(answer)
                data = await read_all(answer, ANSWER_LIMIT, _bare(url))
            except _FAULTS as fault:
                raise errors.unreachable(method, _bare(url), fault) from fault
            finally:
                answer.close()
            return data

        return await self.retried(once)


async def read_all(answer: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """The whole body. Unsound beyond ``limit`` bytes."""
    parts: list[bytes] = []
    size = 0
    async for chunk in answer.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise Unsound(f"{what} answered with more than the {limit} bytes it may")
        parts.append(chunk)
    return b"".join(parts)


def tls_context(endpoint: Endpoint, directories: Collection[Path]) -> ssl.SSLContext | None:
    """How the endpoint's certificate is checked: by the system's authorities and those of ``<directory>/<host:port>``."""
    if not endpoint.is_https:
        return None
    context = ssl.create_default_context()
    if not endpoint.verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for directory in directories:
        place = directory / endpoint.host
        try:
            for authority in sorted(place.glob("*.crt")):
                context.load_verify_locations(authority)
            for certificate in sorted(place.glob("*.cert")):
                context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        except (OSError, ssl.SSLError) as error:
            raise RegistryError(f"cannot use the certificates in {place}: {error}; correct or remove them") from None
    return context


def _bare(url: str) -> str:
    """``url`` without its query: signed addresses carry what lets anyone in."""
    return url.partition("?")[0]


def _proxy(url: str) -> str | None:
    """The proxy the environment names for ``url``. Not aiohttp's own look-up: that would send logins from .netrc, too."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies_environment().get(parts.scheme)
