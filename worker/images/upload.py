"""Sends one blob to a repository: small ones whole, large ones in chunks, and goes on where a line was cut.

Decides how it is cut and what a failure costs; the calls are worker.images.registry.repository's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from worker.images.content import Blob, ContentStore
from worker.images.registry.errors import Refused, RegistryError
from worker.images.registry.repository import Repository
from worker.images.registry.repository import Upload as Session
from worker.images.threads import Threads

CHUNK = 16 << 20
"""Larger blobs go in pieces of this: what a cut line costs at most."""

PIECE = 256 * 1024


class Upload:
    """``told`` is called with how many bytes have been sent."""

    def __init__(
        self,
        repository: Repository,
        content: ContentStore,
        threads: Threads,
        blob: Blob,
        told: Callable[[int], None],
        chunk: int = CHUNK,
    ) -> None:
        self._repository, self._content, self._threads, self._blob = repository, content, threads, blob
        self._told, self._chunk = told, chunk

    async def send(self) -> None:
        """The blob is at the registry when this returns. Raises what the registry or the line said last."""
        session: Session | None = None
        attempt = 1
        while True:
            try:
                if session is None:
                    session = await self._repository.begin_upload()
                while self._blob.size - session.offset > self._chunk:
                    session = await self._append(session)
                    attempt = 1
                return await self._finish(session)
            except RegistryError as error:
                forgotten = isinstance(error, Refused) and error.http_status in (404, 416) and session is not None
                connection = self._repository.connection
                if not forgotten and not connection.worthwhile(error, attempt):
                    raise
                if attempt >= connection.attempts:
                    raise
                await connection.pause(attempt, error)
            attempt += 1
            session = await self._resumed(session)

    async def _append(self, session: Session) -> Session:
        start, size = session.offset, self._chunk
        return await self._repository.append(session, size, lambda: self._bytes(start, size))

    async def _finish(self, session: Session) -> None:
        start, size = session.offset, self._blob.size - session.offset
        try:
            await self._repository.finish(session, self._blob.digest, size, lambda: self._bytes(start, size))
        except RegistryError:
            # The answer may have been lost on the way, and the upload with it.
            if await self._there():
                return
            raise

    async def _there(self) -> bool:
        try:
            return await self._repository.has_blob(self._blob.digest) is not None
        except RegistryError:
            return False

    async def _resumed(self, session: Session | None) -> Session | None:
        """The upload as the registry has it; None to begin anew."""
        if session is None:
            return None
        try:
            found = await self._repository.upload_status(session)
        except RegistryError:
            return None
        return found if found is not None and found.offset <= self._blob.size else None

    async def _bytes(self, start: int, size: int) -> AsyncIterator[bytes]:
        file = await self._threads.run(self._content.open, self._blob.digest)
        try:
            await self._threads.run(file.seek, start)
            at = start
            while at < start + size:
                piece = await self._threads.run(file.read, min(PIECE, start + size - at))
                if not piece:
                    raise FileNotFoundError(f"blob {self._blob.digest} ends early on disk")
                at += len(piece)
                self._told(at)
                yield piece
        finally:
            file.close()
