"""Content-addressed blobs on disk, ``<root>/blobs/sha256/<hex>`` as in an OCI image layout.

Decides that a blob is what its digest says, or is not there. A blob appears by rename after fsync, so a crash leaves
either the whole blob or a temporary file that the next start removes. Knows nothing of images: who still needs a blob
is told to ``collect``; blobs written under an open lease are never collected.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from covey.errors import InvalidArgument, NotFound
from worker.images import disk, reference
from worker.images.compression import CHUNK, Readable
from worker.kernel import trees


@dataclass(frozen=True, slots=True)
class Blob:
    """``digest`` ("sha256:…") and ``size`` in bytes."""

    digest: str
    size: int


class BadDigest(InvalidArgument):
    """The bytes are not what their digest says."""


class Lease:
    """Keeps the blobs ingested or pinned under it from being collected until it closes."""

    def __init__(self, pins: Counter[str], lock: threading.Lock) -> None:
        self._pins, self._lock = pins, lock
        self._mine: list[str] = []

    def pin(self, digest: str) -> None:
        """Keep ``digest`` (of a blob, or a layer's chain id). Pin first, then look whether it is there."""
        with self._lock:
            self._pins[digest] += 1
            self._mine.append(digest)

    def close(self) -> None:
        with self._lock:
            self._pins.subtract(self._mine)
            self._mine.clear()


class ContentStore:
    """Thread-safe; long reads and writes hold no lock."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs" / "sha256"
        self._blobs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._scratch = trees.emptied(root / "ingest")
        self._pins: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lease(self) -> Iterator[Lease]:
        """A lease for one load, import or pull."""
        lease = Lease(self._pins, self._lock)
        try:
            yield lease
        finally:
            lease.close()

    def is_leased(self, digest: str) -> bool:
        """Whether an open lease pins ``digest`` (of a blob, or the chain id of a layer)."""
        with self._lock:
            return self._pins[digest] > 0

    def path(self, digest: str) -> Path:
        """Where the blob lies; InvalidArgument for anything but a sha256 digest (nothing else becomes a path)."""
        if not reference.check_digest(digest).startswith("sha256:"):
            raise InvalidArgument(f"unsupported digest algorithm: {digest!r}; blobs are kept under sha256")
        return self._blobs / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """Bytes of the blob; NotFound when it is not there."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise self._missing(digest) from None

    def open(self, digest: str) -> BinaryIO:
        """The blob for reading; NotFound when it is not there."""
        try:
            return open(self.path(digest), "rb")
        except FileNotFoundError:
            raise self._missing(digest) from None

    def read(self, digest: str, limit: int = 32 << 20) -> bytes:
        """A small blob (config, manifest), verified. BadDigest when the disk changed it, InvalidArgument over ``limit``."""
        with self.open(digest) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise InvalidArgument(f"blob {digest} is larger than the {limit} bytes a manifest or config may have")
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise BadDigest(f"blob {digest} is damaged on disk ({self.path(digest)}); load or pull its image again")
        return data

    def put(self, data: bytes, lease: Lease) -> Blob:
        """Store ``data``."""
        return self.ingest(_Once(data), lease)

    def ingest(self, stream: Readable, lease: Lease, expected: str | None = None, limit: int | None = None) -> Blob:
        """Store ``stream`` to its end and pin it under ``lease``.

        BadDigest when ``expected`` is given and the bytes differ, InvalidArgument beyond ``limit`` bytes,
        disk.DiskFull when there is no room; in each case nothing is left behind.
        """
        if expected is not None:
            self.path(expected)
        temporary = self._scratch / secrets.token_hex(8)
        with disk.naming_full_disk(self._blobs):
            try:
                digest, size = self._copy(stream, temporary, limit)
                if expected is not None and digest != expected:
                    raise BadDigest(f"content has digest {digest}, not {expected} as announced: fetch it again")
                lease.pin(digest)
                os.rename(temporary, self.path(digest))
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            trees.sync_directory(self._blobs)
        return Blob(digest, size)

    def collect(self, needed: Collection[str]) -> int:
        """Remove every blob that is neither ``needed`` nor leased; the bytes freed.

        The caller holds the lock under which images are recorded, so nothing becomes needed meanwhile.
        """
        freed = 0
        for entry in os.scandir(self._blobs):
            digest = f"sha256:{entry.name}"
            with self._lock:
                if digest in needed or self._pins[digest] > 0:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    freed += entry.stat(follow_symlinks=False).st_size
                    os.unlink(entry.path)
        return freed

    @staticmethod
    def _copy(stream: Readable, to: Path, limit: int | None) -> tuple[str, int]:
        hasher, size = hashlib.sha256(), 0
        with open(to, "xb", buffering=0) as file:
            while data := stream.read(CHUNK):
                size += len(data)
                if limit is not None and size > limit:
                    raise InvalidArgument(f"content is larger than the {limit} bytes it may have")
                hasher.update(data)
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())
        return "sha256:" + hasher.hexdigest(), size

    @staticmethod
    def _missing(digest: str) -> NotFound:
        return NotFound(f"No such blob: {digest}; load or pull its image again")


class _Once:
    """Bytes as a stream that is read once."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, n: int = -1, /) -> bytes:
        if n < 0:
            n = len(self._data)
        taken, self._data = self._data[:n], self._data[n:]
        return taken
