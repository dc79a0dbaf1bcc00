"""One watch on etcd: a stream that breaks and goes on after the last whole revision it gave.

It decides when a stream is broken or silent and what its messages mean; it owns no asyncio.Task: it runs while somebody
waits for the next batch. All prefixes share one watcher on their common prefix, because only within a watcher does etcd
keep the order of revisions.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from manager.store.etcd.connection import FIRST_PAUSE, LONGEST_PAUSE, Connection, Endpoint
from manager.store.etcd.encode import progress_request, range_request, watch_event, watch_request
from manager.store.etcd.errors import Fate, fate_of, refusal
from manager.store.etcd.stubs import RpcError, grpc, pb
from manager.store.interface import Compacted, StoreUnavailable, WatchBatch, WatchEvent

ORDERED_PROGRESS = {(3, 4): 25, (3, 5): 8}
"""Release → first patch in which the answer to a progress request comes after the events before it (etcd pull 15237 and
its backports). Of older servers only the watcher's own periodic notification can be believed."""

UNASKED = -1
"""The watch id of an answer to a progress request."""


class _Broken(Exception):
    """The stream ended; open another."""


class EtcdWatch:
    """See interface.Watch."""

    def __init__(self, connection: Connection, prefixes: tuple[str, ...], from_revision: int, running: list[EtcdWatch]) -> None:
        self._running = running
        self._connection = connection
        self._prefixes = prefixes
        self._next = from_revision
        self._call: Any = None
        self._endpoint: Endpoint | None = None
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._parts: list[WatchEvent] = []
        self._heard: float | None = None
        self._asked: float | None = None
        self._stalled = False
        self._timer: asyncio.TimerHandle | None = None
        self._cluster = 0
        self._pause = FIRST_PAUSE
        self.reconnects = 0
        self.stalls = 0

    async def __aenter__(self) -> Self:
        self._running.append(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.remove(self)
        self._close()

    def __aiter__(self) -> Self:
        return self

    def ask_progress(self) -> None:
        self._requests.put_nowait(progress_request())

    def statistics(self) -> dict[str, Any]:
        """``revision``: what was given out last."""
        return {
            "prefixes": list(self._prefixes),
            "revision": self._next - 1,
            "open": self._call is not None,
            "reconnects": self.reconnects,
            "stalls": self.stalls,
        }

    async def __anext__(self) -> WatchBatch:
        while True:
            try:
                if self._call is None:
                    await self._open()
                batch = await self._digest(await self._read())
            except (_Broken, StoreUnavailable, RpcError) as error:
                await self._mend(error)
                continue
            if batch is not None:
                self._pause = FIRST_PAUSE
                self._next = batch.revision + 1
                return batch

    async def _open(self) -> None:
        endpoint = self._connection.current
        self._endpoint = endpoint
        await self._connection.connect(endpoint)
        if not endpoint.version:
            answer = await endpoint.maintenance.Status(
                pb.StatusRequest(), timeout=self._connection.timing.attempt, metadata=endpoint.token
            )
            endpoint.version = answer.version
        self._requests = asyncio.Queue()
        self._requests.put_nowait(watch_request(self._prefixes, self._next))
        self._parts = []
        self._stalled = False
        self._heard = self._asked = None
        self._call = endpoint.watch.Watch(_drain(self._requests), metadata=endpoint.token)
        self._listen()

    async def _read(self) -> Any:
        call = self._call
        self._heard = asyncio.get_running_loop().time()
        self._asked = None
        try:
            response = await call.read()
        except asyncio.CancelledError:
            if not self._stalled:
                raise
            raise _Broken(f"silent for {self._connection.timing.stall:g} s") from None
        if response is grpc.aio.EOF:
            raise _Broken(f"ended by etcd: {await call.code()} {await call.details()}")
        self._heard = None
        return response

    def _listen(self) -> None:
        """Ask a quiet stream for a sign of life, and cut it when none comes: a dead peer sends no error.

        It counts only while somebody reads, and never cuts unasked: a consumer or a loop may have been late itself.
        """
        loop = asyncio.get_running_loop()
        period = self._connection.timing.stall / 3
        self._timer = loop.call_later(period, self._listen)
        if self._heard is None or loop.time() - self._heard < period:
            return
        if self._asked is None:
            self._asked = loop.time()
            self.ask_progress()
        elif loop.time() - self._asked >= 1.5 * period:
            self.stalls += 1
            self._stalled = True
            self._call.cancel()

    async def _digest(self, response: Any) -> WatchBatch | None:
        """The batch in a message, if there is one. Raises _Broken or Compacted."""
        if response.canceled:
            if response.compact_revision:
                raise Compacted(response.compact_revision)
            self._forget_login()
            raise _Broken(f"cancelled by etcd: {response.cancel_reason or 'no reason given'}")
        if response.created:
            await self._check_history(response.header)
            return None
        self._parts.extend(map(watch_event, response.events))
        if response.fragment:
            return None
        if not self._parts:
            return self._progress(response)
        parts, self._parts = self._parts, []
        wanted = tuple(
            event for event in parts if event.item.mod_revision >= self._next and event.item.key.startswith(self._prefixes)
        )
        revision = parts[-1].item.mod_revision
        return WatchBatch(revision, wanted) if revision >= self._next else None

    def _progress(self, response: Any) -> WatchBatch | None:
        revision = int(response.header.revision)
        if revision < self._next:
            return None
        if response.watch_id == UNASKED and not progress_is_ordered(self._endpoint.version if self._endpoint else ""):
            return None
        return WatchBatch(revision, ())

    async def _check_history(self, header: Any) -> None:
        """A store that is behind what we saw may be a slow member, or not the store it was."""
        if self._cluster and header.cluster_id != self._cluster:
            raise Compacted(self._next - 1, f"etcd at {self._where()} is another cluster than before: list again")
        self._cluster = header.cluster_id
        if header.revision >= self._next - 1:
            return
        answer = await self._connection.call("kv", "Range", range_request("/", 1, "", 0, True))
        if answer.header.revision < self._next - 1:
            raise Compacted(
                self._next - 1,
                f"etcd at {self._where()} is at revision {answer.header.revision}, before {self._next - 1} which this "
                "watch has seen: was it restored from a copy? List again",
            )

    async def _mend(self, error: Exception) -> None:
        """Drop the stream and wait a little; the endpoint that failed loses its turn."""
        self._close()
        if isinstance(error, RpcError):
            fate = fate_of(error)
            if fate is Fate.REFUSED:
                raise refusal(error, "Watch", self._next) from None
            if fate is Fate.TOKEN:
                self._forget_login()
        if self._endpoint is not None:
            self._connection.fail(self._endpoint)
        self.reconnects += 1
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _forget_login(self) -> None:
        """etcd answers "permission denied" to a watch whose login has run out: log in again."""
        if self._endpoint is not None:
            self._endpoint.token = ()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._call is not None:
            self._call.cancel()
            self._call = None
            self._requests.put_nowait(None)

    def _where(self) -> str:
        return self._endpoint.address if self._endpoint is not None else "?"


async def _drain(requests: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    """Feed the stream; None ends it, for gRPC does not end the reader of a stream that etcd broke."""
    while (request := await requests.get()) is not None:
        yield request


def progress_is_ordered(version: str) -> bool:
    """Whether a server of ``version`` answers a progress request only after the events before it."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        return False
    major, minor, patch = map(int, match.groups())
    first = ORDERED_PROGRESS.get((major, minor))
    return (major, minor) > max(ORDERED_PROGRESS) if first is None else patch >= first
