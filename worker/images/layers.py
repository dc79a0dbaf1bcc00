"""Unpacked layers, shared by every image and container: ``<root>/<chain id>/`` with ``diff``, ``tree.jsonl``, ``layer.json``.

Decides that a layer is unpacked once, whole, or is not there: it grows in a scratch directory and appears by rename.
Layers of one image grow at the same time; each appears after those below it, whose directories' attributes it takes over.
The files of a layer are not fsynced one by one. Instead ``layer.json`` names the boot it was unpacked in; after a
reboot a layer that was not settled (``settle`` syncs the disk) is dropped and unpacked again from its blob, which is
durable. ``tree.jsonl`` says what was unpacked (worker.images.tree_record), and ``layer.json`` its digest. Knows nothing of
images.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey.errors import Internal
from worker.images import compression, disk, sealed, tree_record, unpack
from worker.images.compression import Readable
from worker.images.content import BadDigest
from worker.images.layer_tree import inherit
from worker.images.tar_stream import BadArchive, Limits
from worker.kernel import trees

VERSION = 2
_UNSEALED = 1
"""What release 0.1 wrote: without a checksum and a record of the tree."""
RECORD, TREE, DIFF = "layer.json", "tree.jsonl", "diff"
AT_ONCE = 4
"""So many layers of an image are unpacked at the same time: most of it is the kernel's work, beside Python's."""

_log = logging.getLogger(__name__)


def chain_id(parent: str | None, diff_id: str) -> str:
    """The identity of a layer on top of its parents (OCI image-spec config.md, "Layer ChainID")."""
    if parent is None:
        return diff_id
    return "sha256:" + hashlib.sha256(f"{parent} {diff_id}".encode()).hexdigest()


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain id of each layer, lowest first."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(chain_id(chains[-1] if chains else None, diff_id))
    return chains


@dataclass(frozen=True, slots=True)
class Unpacked:
    """``size``: bytes of its regular files."""

    diff_id: str
    chain_id: str
    size: int


@dataclass(frozen=True, slots=True)
class Retired:
    """A layer moved aside: its unpacked ``size`` and where it waits to be deleted."""

    chain_id: str
    size: int
    aside: Path


class LayerStore:
    """Thread-safe; two threads that want the same layer unpack it once."""

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._scratch = trees.emptied(root / "tmp")
        self._limits = limits or Limits()
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self.unpacked = 0
        """Layers unpacked since the store was opened."""
        self._drop_unsettled()

    def diff_dir(self, chain: str) -> Path:
        """Where the layer's files lie; usable as an overlay lower."""
        return self._dir(chain) / DIFF

    def has(self, chain: str) -> bool:
        return (self._dir(chain) / RECORD).is_file()

    def size(self, chain: str) -> int | None:
        """Bytes of the layer's regular files, None when it is not unpacked."""
        record = self._record(self._dir(chain))
        return int(record["size"]) if record else None

    def ensure(self, diff_ids: Sequence[str], stream: Readable) -> Unpacked:
        """The layer on top of ``diff_ids`` (lowest first, itself last), unpacked from ``stream`` if it is missing.

        Its parents must be there. BadDigest when the content is not what its diff id says.
        """
        with self._wanted(diff_ids, stream) as growing:
            return growing.place() if isinstance(growing, _Growing) else growing

    def ensure_all(
        self, diff_ids: Sequence[str], open_blob: Callable[[int], contextlib.AbstractContextManager[Readable]]
    ) -> None:
        """All layers of an image, lowest first; ``open_blob(n)`` is called for those that are missing.

        They grow at the same time, and appear in order.
        """
        missing = [number for number, chain in enumerate(chain_ids(diff_ids)) if not self.has(chain)]
        if not missing:
            return
        stopped = threading.Event()

        def grown(stack: contextlib.ExitStack, number: int) -> Unpacked | _Growing:
            with open_blob(number) as blob:
                return stack.enter_context(self._wanted(diff_ids[: number + 1], _Stoppable(blob, stopped)))

        with contextlib.ExitStack() as all_held:
            held = [all_held.enter_context(contextlib.ExitStack()) for _ in missing]
            with ThreadPoolExecutor(min(AT_ONCE, len(missing)), "unpack") as pool:
                try:
                    futures = [pool.submit(grown, stack, number) for stack, number in zip(held, missing)]
                    for future, stack in zip(futures, held):
                        growing = future.result()
                        if isinstance(growing, _Growing):
                            growing.place()
                        # Others may wait for this layer while they hold the next.
                        stack.close()
                finally:
                    stopped.set()
                    pool.shutdown(cancel_futures=True)

    def replace(self, diff_ids: Sequence[str], stream: Readable) -> Unpacked:
        """As ``ensure``, in the place of what is there: it was damaged, and nothing is mounted over it."""
        with self._alone(chain_ids(diff_ids)[-1]), self._growing(stream, diff_ids[:-1], diff_ids[-1]) as growing:
            return growing.place(replace=True)

    def unpack_base(self, stream: Readable) -> Unpacked:
        """Unpack a lowest layer whose diff id is not known yet (import)."""
        with self._growing(stream, [], None) as growing:
            return growing.place()

    def retire(self, needed: Collection[str], is_leased: Callable[[str], bool]) -> list[Retired]:
        """Move aside every layer neither ``needed`` nor leased, for ``discard``. Quick."""
        retired = []
        for name in self._names():
            chain = f"sha256:{name}"
            if chain not in needed and not is_leased(chain):
                aside = self._scratch / secrets.token_hex(8)
                size = self.size(chain) or 0
                os.rename(self.root / name, aside)
                retired.append(Retired(chain, size, aside))
        return retired

    @staticmethod
    def discard(retired: Sequence[Retired]) -> None:
        """Delete what ``retire`` moved aside; takes as long as the trees are large."""
        for each in retired:
            trees.remove_path(each.aside)

    def settle(self) -> int:
        """Sync the disk and mark every layer of this boot durable; how many were not. Slow: call it when idle."""
        fresh = [name for name in self._names() if not (self._record(self.root / name) or {"durable": True})["durable"]]
        if fresh:
            os.sync()
        for name in fresh:
            record = self._record(self.root / name)
            if record:
                self._write_record(self.root / name, {**record, "durable": True})
        return len(fresh)

    @contextlib.contextmanager
    def _wanted(self, diff_ids: Sequence[str], stream: Readable) -> Iterator[Unpacked | _Growing]:
        """The layer as it is there, or growing and not yet placed. While the context lasts nobody else makes it."""
        chain = chain_ids(diff_ids)[-1]
        with self._alone(chain):
            size = self.size(chain)
            if size is not None:
                yield Unpacked(diff_ids[-1], chain, size)
                return
            with self._growing(stream, diff_ids[:-1], diff_ids[-1]) as growing:
                yield growing

    @contextlib.contextmanager
    def _growing(self, stream: Readable, parents: Sequence[str], expected: str | None) -> Iterator[_Growing]:
        scratch = self._scratch / secrets.token_hex(8)
        hashed = _Hashed(compression.plain(stream))
        with disk.naming_full_disk(self.root):
            try:
                diff = scratch / DIFF
                diff.mkdir(parents=True)
                with _opened(diff) as root_fd:
                    os.fchmod(root_fd, 0o755)
                    applied = unpack.apply_layer(hashed, root_fd, limits=self._limits)
                diff_id = hashed.digest()
                if expected is not None and diff_id != expected:
                    raise BadDigest(f"layer has diff id {diff_id}, not {expected} as its image says: fetch it again")
                yield _Growing(self, scratch, chain_ids(parents), diff_id, applied)
            finally:
                trees.remove_path(scratch)

    def finish(self, scratch: Path, record: dict[str, Any], *, replace: bool) -> None:
        """Let the layer in ``scratch`` appear, in the place of one that is damaged if there is one."""
        self._write_record(scratch, {"version": VERSION, **record, "boot": self._boot, "durable": False})
        chain = record["chain_id"]
        place = self._dir(chain)
        # A damaged one may be mounted: what was moved aside is removed when the store is opened next.
        aside = trees.set_aside(place, self._scratch) if replace or self.size(chain) is None else None
        try:
            os.rename(scratch, place)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not self.has(chain):
                raise
        trees.sync_directory(self.root)
        self.unpacked += 1
        if aside and replace:
            trees.remove_path(aside)

    @contextlib.contextmanager
    def _alone(self, chain: str) -> Iterator[None]:
        with self._lock:
            mine = self._busy.setdefault(chain, threading.Lock())
        with mine:
            yield

    def _dir(self, chain: str) -> Path:
        return self.root / chain.removeprefix("sha256:")

    def _names(self) -> list[str]:
        return [entry.name for entry in os.scandir(self.root) if entry.name != self._scratch.name]

    def _record(self, layer: Path) -> dict[str, Any] | None:
        try:
            record = read_record(layer / RECORD)
        except (FileNotFoundError, ValueError):
            return None
        if record["version"] not in (VERSION, _UNSEALED):
            raise Internal(f"layer {layer} was written by another release (version {record['version']})")
        return record

    @staticmethod
    def _write_record(layer: Path, record: dict[str, Any]) -> None:
        trees.write_atomically(layer / RECORD, sealed.seal(record))

    def _drop_unsettled(self) -> None:
        for name in self._names():
            layer = self.root / name
            trees.clear_unfinished(layer / RECORD)
            record = self._record(layer)
            if record is None and (layer / RECORD).exists():
                _log.error("layer %s: its %s is damaged; it is unpacked again", layer, RECORD)
                # Containers that run may stand on it: what they have open stays theirs until the next start.
                trees.set_aside(layer, self._scratch)
            elif record is None or not (record["durable"] or record["boot"] == self._boot):
                trees.remove_path(layer)


def read_record(path: Path) -> dict[str, Any]:
    """What a ``layer.json`` says. ValueError when it is damaged, FileNotFoundError."""
    data = path.read_bytes()
    record = sealed.parse(data)
    if record.get("version") != _UNSEALED or sealed.is_sealed(record):
        record = sealed.unseal(data)
    if missing := {"version", "diff_id", "chain_id", "size", "boot", "durable"} - set(record):
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return record


class _Growing:
    """A layer unpacked in its scratch directory: what is left to do is what the layers below decide."""

    def __init__(self, store: LayerStore, scratch: Path, parents: Sequence[str], diff_id: str, applied: unpack.Applied) -> None:
        self._store, self._scratch, self._parents = store, scratch, parents
        self._diff_id, self._applied = diff_id, applied

    def place(self, *, replace: bool = False) -> Unpacked:
        """Take over what the parents, which must be there, have; write the records; appear."""
        chain = chain_id(self._parents[-1] if self._parents else None, self._diff_id)
        with contextlib.ExitStack() as stack:
            root_fd = stack.enter_context(_opened(self._scratch / DIFF))
            lowers = [stack.enter_context(_opened(self._store.diff_dir(each))) for each in reversed(self._parents)]
            inherit(root_fd, self._applied.implied, lowers)
            try:
                tree = tree_record.write(self._scratch / TREE, root_fd, self._applied.sums)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                raise BadArchive("archive has a directory deeper than a path can say") from None
        size = self._applied.size
        record = {"diff_id": self._diff_id, "chain_id": chain, "size": size, "tree": tree}
        self._store.finish(self._scratch, record, replace=replace)
        return Unpacked(self._diff_id, chain, size)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class _Stoppable:
    """A stream that ends with an error once ``stopped`` is set: another layer of the image has failed."""

    def __init__(self, stream: Readable, stopped: threading.Event) -> None:
        self._stream, self._stopped = stream, stopped

    def read(self, n: int = -1, /) -> bytes:
        if self._stopped.is_set():
            raise BadArchive("another layer of the image cannot be unpacked")
        return self._stream.read(n)


class _Hashed:
    """A stream that hashes what is read of it."""

    def __init__(self, stream: Readable) -> None:
        self._stream, self._hasher = stream, hashlib.sha256()

    def read(self, n: int = -1, /) -> bytes:
        data = self._stream.read(n)
        self._hasher.update(data)
        return data

    def digest(self) -> str:
        return "sha256:" + self._hasher.hexdigest()
