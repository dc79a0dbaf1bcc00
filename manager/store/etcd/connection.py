"""Channels to etcd's endpoints: which one is used now, when to change, how long to wait.

It decides failover and repetition of single calls; it knows no keys and no watches. An endpoint is used until it fails,
then the next one is tried at once; none is ever banned, so the only punishment of a bad one is its turn's timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from covey.clock import Clock, SystemClock, rfc3339
from covey.errors import InvalidArgument
from manager.store.etcd.errors import Fate, fate_of, refusal
from manager.store.etcd.stubs import RpcError, grpc, pb, services
from manager.store.interface import OutcomeUnknown, StoreUnavailable

DEFAULT_PORT = 2379
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class Access:
    """How to be let in: PEM bytes for TLS (``ca`` alone checks the server), name and password for etcd's own users."""

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    user: str = ""
    password: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: to connect to one endpoint, for one attempt, for a call with all its attempts, of a watch's silence."""

    connect: float = 2.0
    attempt: float = 3.0
    total: float = 10.0
    stall: float = 6.0


OPEN = Access()
DEFAULT_TIMING = Timing()


class Target(NamedTuple):
    """Where an endpoint is and whether it speaks TLS."""

    address: str
    secure: bool


class LoginRefused(StoreUnavailable):
    """etcd does not know the user or the password; trying again does not help."""


class Endpoint:
    """One address and, while the connection is open, its channel and stubs."""

    def __init__(self, target: Target, access: Access) -> None:
        options, tls = channel_options(target), credentials(target, access)
        channel = grpc.aio.secure_channel(target.address, tls, options=options) if tls else None
        self.channel = channel or grpc.aio.insecure_channel(target.address, options=options)
        self.address = target.address
        self.failures = 0
        self.version = ""
        self.token: tuple[tuple[str, str], ...] = ()
        self.kv = services.KVStub(self.channel)
        self.lease = services.LeaseStub(self.channel)
        self.watch = services.WatchStub(self.channel)
        self.maintenance = services.MaintenanceStub(self.channel)
        self.auth = services.AuthStub(self.channel)


class Connection:
    """All endpoints of one etcd cluster. Use with ``async with``."""

    def __init__(
        self,
        addresses: Sequence[str],
        access: Access = OPEN,
        timing: Timing = DEFAULT_TIMING,
        clock: Clock | None = None,
    ) -> None:
        if not addresses:
            raise InvalidArgument("no etcd endpoint given: name at least one, like 127.0.0.1:2379")
        self.targets = tuple(parse_target(address, access) for address in addresses)
        self.access = access
        self.timing = timing
        self.clock = clock or SystemClock()
        self.calls: dict[str, int] = {}
        self.repeats = 0
        self.unknown_outcomes = 0
        self.down_since: float | None = None
        self.endpoints: list[Endpoint] = []
        self._current = 0

    async def __aenter__(self) -> Self:
        self.endpoints = [Endpoint(target, self.access) for target in self.targets]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for endpoint in self.endpoints:
            await endpoint.channel.close()

    @property
    def current(self) -> Endpoint:
        return self.endpoints[self._current]

    def fail(self, endpoint: Endpoint) -> None:
        """``endpoint`` let a call down: use the next one, unless somebody moved on already."""
        endpoint.failures += 1
        if self.down_since is None:
            self.down_since = self.clock.now()
        if endpoint is self.current:
            self._current = (self._current + 1) % len(self.endpoints)

    async def call(self, stub: str, method: str, request: Any, *, repeatable: bool = True, revision: int = 0) -> Any:
        """One unary call, on whichever endpoint answers.

        Repeats what was surely not done, and of ``repeatable`` calls what perhaps was. Raises the seam's errors;
        ``revision`` is named in them.
        """
        self.calls[method] = self.calls.get(method, 0) + 1
        until = self.clock.monotonic() + self.timing.total
        pause, tries = FIRST_PAUSE, 0
        while True:
            endpoint = self.current
            try:
                await self.connect(endpoint)
                bound = getattr(getattr(endpoint, stub), method)
                answer = await bound(request, timeout=self.timing.attempt, metadata=endpoint.token)
            except LoginRefused:
                raise
            except RpcError as error:
                last = self._judge(endpoint, error, method, repeatable, revision)
            except StoreUnavailable as error:
                self.fail(endpoint)
                last = error.message
            else:
                self.down_since = None
                return answer
            tries += 1
            self.repeats += 1
            if self.clock.monotonic() >= until:
                raise self._unavailable(endpoint, method, last)
            if tries % len(self.endpoints) == 0:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    async def connect(self, endpoint: Endpoint) -> None:
        """Return once the channel is up, so that a call that fails later did leave. Raises StoreUnavailable."""
        state = endpoint.channel.get_state(try_to_connect=True)
        if state is not grpc.ChannelConnectivity.READY:
            try:
                async with asyncio.timeout(self.timing.connect):
                    await self._wait_connected(endpoint, state)
            except TimeoutError:
                raise StoreUnavailable(f"no connection in {self.timing.connect:g} s") from None
        if self.access.user and not endpoint.token:
            await self._log_in(endpoint)

    async def _wait_connected(self, endpoint: Endpoint, state: Any) -> None:
        """With other endpoints to turn to, the first refusal is enough; the only one is given its time."""
        while state is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and len(self.endpoints) > 1:
                raise StoreUnavailable("connection refused or lost")
            await endpoint.channel.wait_for_state_change(state)
            state = endpoint.channel.get_state(try_to_connect=True)

    async def _log_in(self, endpoint: Endpoint) -> None:
        who = pb.AuthenticateRequest(name=self.access.user, password=self.access.password)
        try:
            answer = await endpoint.auth.Authenticate(who, timeout=self.timing.attempt)
        except RpcError as error:
            if fate_of(error) is Fate.REFUSED:
                raise LoginRefused(
                    f"etcd at {endpoint.address} refused user {self.access.user} ({error.details()}): "
                    "check the store's user and password"
                ) from None
            raise StoreUnavailable(f"no login: {error.details()}") from None
        endpoint.token = (("token", answer.token),)

    def _judge(self, endpoint: Endpoint, error: Any, method: str, repeatable: bool, revision: int) -> str:
        """Say why the attempt failed if another may follow; raise if not."""
        fate, text = fate_of(error), f"{error.code().name}: {error.details()}"
        if fate is Fate.REFUSED:
            raise refusal(error, method, revision) from None
        if fate is Fate.TOKEN:
            if not self.access.user:
                raise refusal(error, method, revision) from None
            endpoint.token = ()
            return text
        self.fail(endpoint)
        if fate is Fate.UNKNOWN and not repeatable:
            self.unknown_outcomes += 1
            raise OutcomeUnknown(
                f"etcd at {endpoint.address} broke off during {method} ({text}): it may have been applied; read, then decide"
            ) from None
        return text

    def _unavailable(self, endpoint: Endpoint, method: str, last: str) -> StoreUnavailable:
        since = rfc3339(self.down_since if self.down_since is not None else self.clock.now())
        others = f" (and {len(self.targets) - 1} more)" if len(self.targets) > 1 else ""
        return StoreUnavailable(
            f"etcd at {endpoint.address}{others} does not answer {method} since {since} ({last}): "
            "check that it runs and is reachable"
        )


def parse_target(text: str, access: Access = OPEN) -> Target:
    """Read ``host:port`` (TLS when a CA is given), ``http://host:port``, ``https://host:port`` or ``unix:/path``."""
    if text.startswith("unix:"):
        return Target("unix:" + text.removeprefix("unix:").removeprefix("//"), False)
    scheme, mark, address = text.rpartition("://")
    if mark and scheme not in ("http", "https"):
        raise InvalidArgument(f"etcd endpoint {text}: unknown scheme {scheme}, use http, https or unix")
    if scheme == "https" and access.ca is None:
        raise InvalidArgument(f"etcd endpoint {text} needs the CA that signed its certificate: give its file")
    address = address.rstrip("/")
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, str(DEFAULT_PORT)
    if not host or "/" in host or not port.isdigit():
        raise InvalidArgument(f"etcd endpoint {text!r} is not host:port, http(s)://host:port or unix:/path")
    return Target(f"{host}:{port}", access.ca is not None and scheme != "http")


def channel_options(target: Target) -> list[tuple[str, Any]]:
    """gRPC arguments. etcd closes a connection that pings more often than 5 s, or pings without an open call."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", 6000),
        ("grpc.keepalive_timeout_ms", 3000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
    ]
    return [*options, ("grpc.default_authority", "localhost")] if target.address.startswith("unix:") else options


def credentials(target: Target, access: Access) -> Any:
    """Channel credentials of gRPC, or None for plain text."""
    return grpc.ssl_channel_credentials(access.ca, access.key, access.certificate) if target.secure else None
