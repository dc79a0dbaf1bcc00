"""Who we are to one endpoint: answers its challenges, and decides where credentials may go.

They go to the endpoint itself, and to a token server it names: only if the endpoint is reached over https or on this
machine, and the token server is too. Tokens are kept while they last. How requests are sent is the connection's.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from covey.credentials import Credentials
from worker.images.registry.challenge import Challenge
from worker.images.registry.endpoints import Endpoint, is_loopback
from worker.images.registry.errors import NoCredentials, Unsound

CLIENT_ID = "covey"
SHORTEST_LIFE = 60.0
MARGIN = 10.0

Scopes = frozenset[str]
Ask = Callable[[str, str, Mapping[str, str], bytes | None], Awaitable[bytes]]
"""``(method, url, headers, body)`` → the body of a good answer; raises RegistryError otherwise, follows no redirect."""


def scope(path: str, *actions: str) -> str:
    """What a token is to allow in one repository."""
    return f"repository:{path}:{','.join(actions)}"


@dataclass(frozen=True, slots=True)
class _Token:
    value: str
    until: float


class Authorizer:
    """``header`` before a request; ``challenged`` after a 401, then ``header`` again."""

    def __init__(
        self, endpoint: Endpoint, credentials: Credentials, ask: Ask, now: Callable[[], float], *, offline: bool = False
    ) -> None:
        self._endpoint, self._credentials, self._ask, self._now = endpoint, credentials, ask, now
        self._offline = offline
        self._basic = False
        self._bearer: Challenge | None = None
        self._tokens: dict[Scopes, _Token] = {}
        self._lock = asyncio.Lock()
        self.identity_token = ""
        """What the token server gave for the password to be kept in its place, if that was asked for (``offline``)."""

    @property
    def is_basic(self) -> bool:
        """Whether the endpoint is given user name and password themselves: then its second no is final."""
        return self._basic

    async def header(self, scopes: Scopes) -> str | None:
        """The ``Authorization`` field for a request to the endpoint, None for none."""
        if self._credentials.registry_token and self._may_send():
            return f"Bearer {self._credentials.registry_token}"
        if self._basic:
            return self._basic_header()
        if self._bearer is not None:
            return f"Bearer {await self._token(self._bearer, scopes)}"
        return None

    async def challenged(self, challenges: Iterable[Challenge], scopes: Scopes, used: str | None) -> None:
        """The endpoint answered 401 to a request with the field ``used``. NoCredentials when nothing better can be sent."""
        offered = {one.scheme: one for one in reversed(list(challenges))}
        if self._credentials.registry_token and used is not None:
            raise NoCredentials("unauthorized: the registry does not take the registry token it was given")
        bearer = offered.get("bearer")
        if bearer is not None and bearer.parameters.get("realm"):
            known = self._tokens.get(scopes)
            if known is not None and used == f"Bearer {known.value}":
                del self._tokens[scopes]
            self._bearer, self._basic = bearer, False
        elif "basic" in offered:
            if not self._credentials.username:
                raise NoCredentials("no basic auth credentials")
            if used is not None:
                raise NoCredentials("unauthorized: the registry does not take this user name and password")
            if not self._may_send():
                raise NoCredentials(f"credentials are not sent to {self._endpoint.base}: it is reached over plain http")
            self._basic = True
        else:
            raise NoCredentials("unauthorized: the registry wants a login of a kind that is not known here")

    def _may_send(self) -> bool:
        """Over plain http only on this machine, or where the daemon was told that this registry may be insecure."""
        return self._endpoint.is_https or self._endpoint.loopback or not self._endpoint.verified

    def _basic_header(self) -> str:
        pair = f"{self._credentials.username}:{self._credentials.password}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"

    async def _token(self, challenge: Challenge, scopes: Scopes) -> str:
        async with self._lock:
            known = self._tokens.get(scopes)
            if known is None or known.until <= self._now():
                known = self._tokens[scopes] = await self._fetch(challenge, scopes)
        return known.value

    async def _fetch(self, challenge: Challenge, scopes: Scopes) -> _Token:
        realm = challenge.parameters["realm"]
        self._check_realm(realm)
        service = challenge.parameters.get("service", "")
        wanted = sorted(scopes) or challenge.parameters.get("scope", "").split()
        if self._credentials.identity_token:
            answer = await self._refresh(realm, service, wanted)
        else:
            fields = [("scope", one) for one in wanted]
            fields += [("service", service)] if service else []
            headers: dict[str, str] = {}
            if self._credentials.username:
                fields += [("account", self._credentials.username), ("client_id", CLIENT_ID)]
                fields += [("offline_token", "true")] if self._offline else []
                headers["Authorization"] = self._basic_header()
            answer = await self._ask("GET", f"{realm}{'&' if '?' in realm else '?'}{urlencode(fields)}", headers, None)
        return self._read(answer, realm)

    async def _refresh(self, realm: str, service: str, wanted: list[str]) -> bytes:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": self._credentials.identity_token,
            "service": service,
            "client_id": CLIENT_ID,
            "scope": " ".join(wanted),
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return await self._ask("POST", realm, headers, urlencode(form).encode())

    def _check_realm(self, realm: str) -> None:
        """Refuses a token server that credentials, or we at all, may not go to."""
        url = urlsplit(realm)
        if url.scheme not in ("http", "https") or not url.hostname or url.username or "@" in url.netloc:
            raise Unsound(f"{self._endpoint.base} names the token server {realm!r:.200}, which is no http address")
        if not self._credentials:
            return
        same_host = url.hostname == urlsplit(self._endpoint.base).hostname
        told_insecure = same_host and not self._endpoint.verified
        if not self._may_send() or not (url.scheme == "https" or is_loopback(url.hostname) or told_insecure):
            raise NoCredentials(
                f"credentials for {self._endpoint.host} are not sent to the token server {url.scheme}://{url.netloc}: "
                "they would go over plain http; have the registry name an https address"
            )

    def _read(self, answer: bytes, realm: str) -> _Token:
        try:
            document: Any = json.loads(answer)
        except (ValueError, RecursionError):
            document = None
        found = document if isinstance(document, dict) else {}
        value = found.get("token") or found.get("access_token")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise Unsound(f"token server {realm} answered without a token")
        life = found.get("expires_in")
        seconds = float(life) if isinstance(life, (int, float)) and life > 0 else SHORTEST_LIFE
        if isinstance(found.get("refresh_token"), str):
            self.identity_token = found["refresh_token"]
        # A token server whose clock is behind gives tokens that are over at once; each lives a little at least.
        return _Token(value, self._now() + max(seconds - MARGIN, 1.0))
