"""What is pushed and not yet part of an image: uploads that grow on disk, and whole blobs that wait for their manifest.

It decides how much of that there may be and for how long. Nothing of it outlives the daemon, or what no manifest comes for.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from covey.clock import Clock
from covey.errors import InvalidArgument, NotFound, Unavailable
from worker.images import disk
from worker.images.content import ContentStore, Lease
from worker.kernel import trees

UPLOADS = 64
BLOBS = 4096
#: An upload that nothing is added to, and a blob that no manifest names, are kept so long (seconds).
IDLE = 900.0


@dataclass(slots=True)
class Upload:
    """A blob that is being sent. ``busy``: somebody adds to it."""

    id: str
    path: Path
    size: int = 0
    touched: float = 0.0
    busy: bool = False


@dataclass(slots=True)
class _Kept:
    stack: contextlib.ExitStack
    until: float


class Pending:
    """``root`` is a directory of its own, emptied at the start. Use as a context."""

    def __init__(self, root: Path, content: ContentStore, clock: Clock) -> None:
        self._root = trees.emptied(root)
        self._content = content
        self._clock = clock
        self._uploads: dict[str, Upload] = {}
        self._blobs: OrderedDict[str, _Kept] = OrderedDict()

    def __enter__(self) -> Pending:
        return self

    def __exit__(self, *fault: object) -> None:
        for upload in list(self._uploads.values()):
            self.drop(upload)
        while self._blobs:
            self._blobs.popitem()[1].stack.close()

    def begin(self) -> Upload:
        """A new upload. Raises Unavailable when there are too many."""
        self._expire()
        if len(self._uploads) >= UPLOADS:
            raise Unavailable(f"{UPLOADS} uploads are under way already: try again later")
        name = secrets.token_hex(16)
        upload = Upload(name, self._root / name, touched=self._clock.monotonic())
        upload.path.touch(0o600)
        self._uploads[name] = upload
        return upload

    def find(self, upload_id: str) -> Upload:
        """Raises NotFound: it was finished, cancelled, or idle too long."""
        self._expire()
        try:
            upload = self._uploads[upload_id]
        except KeyError:
            raise NotFound(f"there is no upload {upload_id} (any more): begin again") from None
        upload.touched = self._clock.monotonic()
        return upload

    @contextlib.contextmanager
    def adding(self, upload: Upload) -> Iterator[None]:
        """Inside it nobody else may add. Raises InvalidArgument when somebody does already."""
        if upload.busy:
            raise InvalidArgument(f"upload {upload.id} is being added to by another request")
        upload.busy = True
        try:
            yield
        finally:
            upload.busy = False

    async def add(self, upload: Upload, data: bytes) -> None:
        """Bytes at the end of the upload. Raises disk.DiskFull."""
        await asyncio.to_thread(_append, upload.path, data)
        upload.size += len(data)
        upload.touched = self._clock.monotonic()

    def finish(self, upload: Upload, digest: str) -> None:
        """The upload is a blob of the content store, and kept for its manifest. Raises BadDigest; the upload is gone anyway."""
        try:
            stack = contextlib.ExitStack()
            with stack:
                lease: Lease = stack.enter_context(self._content.lease())
                with open(upload.path, "rb") as file:
                    self._content.ingest(file, lease, digest)
                self._keep(digest, stack.pop_all())
        finally:
            self.drop(upload)

    def keep(self, digest: str) -> bool:
        """Keep a blob that is there already for a manifest to come; False when it is not there."""
        stack = contextlib.ExitStack()
        with stack:
            stack.enter_context(self._content.lease()).pin(digest)
            if not self._content.has(digest):
                return False
            self._keep(digest, stack.pop_all())
        return True

    def drop(self, upload: Upload) -> None:
        """The upload is no more."""
        self._uploads.pop(upload.id, None)
        upload.path.unlink(missing_ok=True)

    def statistics(self) -> dict[str, int]:
        return {"uploads": len(self._uploads), "blobs": len(self._blobs)}

    def _keep(self, digest: str, stack: contextlib.ExitStack) -> None:
        if (former := self._blobs.pop(digest, None)) is not None:
            former.stack.close()
        self._blobs[digest] = _Kept(stack, self._clock.monotonic() + IDLE)
        while len(self._blobs) > BLOBS:
            self._blobs.popitem(last=False)[1].stack.close()

    def _expire(self) -> None:
        now = self._clock.monotonic()
        for upload in [each for each in self._uploads.values() if not each.busy and now - each.touched > IDLE]:
            self.drop(upload)
        while self._blobs and next(iter(self._blobs.values())).until < now:
            self._blobs.popitem(last=False)[1].stack.close()


def _append(path: Path, data: bytes) -> None:
    with disk.naming_full_disk(path.parent), open(path, "ab") as file:
        file.write(data)
