"""What a user names by a web address: a root file system to import, a file that a build adds.

It decides how an address is asked and what its refusals are called. What the bytes mean is for whoever asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from covey.errors import InvalidArgument

LIMIT = 16 << 30
PIECE = 256 * 1024
_CONNECT_SECONDS = 30
_SILENT_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Page:
    """``chunks`` raise InvalidArgument when the line breaks."""

    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


@asynccontextmanager
async def fetched(address: str) -> AsyncIterator[Page]:
    """The page at an http or https address, whose bytes come as they are. InvalidArgument when there is none."""
    import aiohttp

    if urlsplit(address).scheme not in ("http", "https"):
        raise InvalidArgument(f"{address}: only http and https addresses are fetched")
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)

    async def chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for chunk in answer.content.iter_chunked(PIECE):
                size += len(chunk)
                if size > LIMIT:
                    raise InvalidArgument(f"{address} is larger than {LIMIT} bytes")
                yield chunk
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise InvalidArgument(f"cannot fetch {address}: {error}") from error

    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        try:
            answer = await session.get(address)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise InvalidArgument(f"cannot fetch {address}: {error}") from error
        async with answer:
            if answer.status >= 400:
                raise InvalidArgument(f"failed to GET {address} with status {answer.status} {answer.reason}")
            yield Page(answer.headers, chunks(answer))
