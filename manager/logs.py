"""Logs of many containers as one stream: read from each node by dial-back, merged, framed as Docker frames them.

Nothing is stored. Without follow the lines come in order of time; with it, as they arrive, and containers that appear later
join in. It must not know how nodes are reached: the caller brings a client for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote_plus

from covey.engine_api import http1
from covey.engine_api.aio import Client
from covey.engine_api.framing import SYSTEM_ERROR, Decoder, FramingError, encode
from covey.errors import CoveyError

log = logging.getLogger(__name__)

BACKLOG = 256
REACHED = Callable[[str], Client]


@dataclass(frozen=True, slots=True)
class LogQuery:
    """What of the logs is asked for. ``tail`` as Docker's ("all" or a number), ``since`` and ``until`` as sent."""

    stdout: bool
    stderr: bool
    follow: bool = False
    timestamps: bool = False
    details: bool = False
    tail: str = "all"
    since: str = ""
    until: str = ""

    def for_node(self) -> dict[str, str]:
        """The query of ``/containers/{id}/logs``: always with timestamps, as lines of several nodes are put in order."""
        flags = {"stdout": self.stdout, "stderr": self.stderr, "follow": self.follow, "timestamps": True}
        query = {name: "1" if value else "0" for name, value in flags.items()}
        more = {"tail": self.tail, "since": self.since, "until": self.until}
        return query | {name: value for name, value in more.items() if value}


class Source(NamedTuple):
    """One container's log. ``details`` are told with each line on request; ``tty``: the container's stream is not framed."""

    node_id: str
    container_id: str
    task_id: str
    details: Mapping[str, str]
    tty: bool = False


class Entry(NamedTuple):
    """One line: its stamp as printed (RFC 3339, so that text order is time order), its stream, and the rest."""

    stamp: bytes
    stream: int
    text: bytes


class Missing(NamedTuple):
    """A source that could not be read, and why."""

    source: Source
    why: str


def render(entry: Entry, source: Source, query: LogQuery, raw: bool) -> bytes:
    """The bytes of one line as the client gets it; ``raw``: without frames, as with a TTY."""
    parts = [entry.stamp] if query.timestamps else []
    if query.details:
        told = sorted(source.details.items())
        parts.append(",".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in told).encode())
    line = b" ".join([*parts, entry.text])
    return line if raw else encode(entry.stream, line)


async def read(source: Source, client: Client, query: LogQuery) -> AsyncIterator[Entry]:
    """The entries of one source. Raises CoveyError, http1.ProtocolError or FramingError when it cannot be read on."""
    decoder, held = Decoder(), b""
    async with client.stream("container_logs", {"id": source.container_id}, query.for_node()) as response:
        async for piece in response:
            if not source.tty:
                for frame in decoder.feed(piece):
                    yield _entry(frame.stream, frame.payload)
                continue
            *lines, held = (held + piece).split(b"\n")
            for line in lines:
                yield _entry(1, line + b"\n")
    if held:
        yield _entry(1, held)


def _entry(stream: int, payload: bytes) -> Entry:
    stamp, _, text = payload.partition(b" ")
    return Entry(stamp, stream, text)


async def merged(sources: Iterable[Source], reach: REACHED, query: LogQuery, raw: bool) -> AsyncIterator[bytes]:
    """Every line of ``sources`` in order of time; in the end, what could not be read."""
    missing: list[Missing] = []
    heads: list[tuple[bytes, int, Entry, Source, AsyncIterator[Entry]]] = []
    streams = [(source, _guarded(source, reach, query, missing)) for source in sources]
    async with contextlib.AsyncExitStack() as stack:
        for _, stream in streams:
            stack.push_async_callback(stream.aclose)  # type: ignore[attr-defined]
        firsts = await asyncio.gather(*(anext(stream, None) for _, stream in streams))
        for number, (first, (source, stream)) in enumerate(zip(firsts, streams)):
            if first is not None:
                heads.append((first.stamp, number, first, source, stream))
        heapq.heapify(heads)
        while heads:
            _, number, entry, source, stream = heads[0]
            yield render(entry, source, query, raw)
            following = await anext(stream, None)
            if following is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (following.stamp, number, following, source, stream))
    if missing and not raw:
        yield _complaint(missing)


async def _guarded(source: Source, reach: REACHED, query: LogQuery, missing: list[Missing]) -> AsyncIterator[Entry]:
    """``read``, whose fault ends this source only."""
    try:
        async for entry in read(source, reach(source.node_id), query):
            yield entry
    except (CoveyError, http1.ProtocolError, FramingError, OSError) as error:
        log.info("log of task %s on node %s: %s", source.task_id, source.node_id, error)
        missing.append(Missing(source, str(error)))


def _complaint(missing: Iterable[Missing]) -> bytes:
    reasons = "\n".join(f"task {one.source.task_id} on node {one.source.node_id}: {one.why}" for one in missing)
    text = f"warning: incomplete log stream. some logs could not be retrieved for the following reasons: {reasons}"
    return encode(SYSTEM_ERROR, text.encode())


async def followed(sources: AsyncIterator[Source], reach: REACHED, query: LogQuery, raw: bool) -> AsyncIterator[bytes]:
    """Lines as they arrive; ``sources`` brings containers as they appear. Ends when there are no more and all have ended."""
    lines: asyncio.Queue[bytes | None] = asyncio.Queue(BACKLOG)

    async def pump(source: Source) -> None:
        missing: list[Missing] = []
        async for entry in _guarded(source, reach, query, missing):
            await lines.put(render(entry, source, query, raw))

    async def read_all() -> None:
        async with asyncio.TaskGroup() as group:
            async for source in sources:
                group.create_task(pump(source), name=f"log of {source.task_id}")
        await lines.put(None)

    reading = asyncio.create_task(read_all(), name="logs")
    try:
        while (line := await lines.get()) is not None:
            yield line
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
