"""Unpacked layers, shared by every image and container: ``<root>/<chain id>/diff`` and ``layer.json`` beside it.

Decides that a layer is unpacked once, whole, or is not there: it grows in a scratch directory and appears by rename.
The files of a layer are not fsynced one by one. Instead ``layer.json`` names the boot it was unpacked in; after a
reboot a layer that was not settled (``settle`` syncs the disk) is dropped and unpacked again from its blob, which is
durable. Knows nothing of images.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey.errors import Internal
from worker.images import compression, disk, unpack
from worker.images.compression import Readable
from worker.images.content import BadDigest
from worker.images.tar_stream import Limits
from worker.kernel import trees

VERSION = 1


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
        self._drop_unsettled()

    def diff_dir(self, chain: str) -> Path:
        """Where the layer's files lie; usable as an overlay lower."""
        return self._dir(chain) / "diff"

    def has(self, chain: str) -> bool:
        return (self._dir(chain) / "layer.json").is_file()

    def size(self, chain: str) -> int | None:
        """Bytes of the layer's regular files, None when it is not unpacked."""
        record = self._record(self._dir(chain))
        return int(record["size"]) if record else None

    def ensure(self, diff_ids: Sequence[str], stream: Readable) -> Unpacked:
        """The layer on top of ``diff_ids`` (lowest first, itself last), unpacked from ``stream`` if it is missing.

        Its parents must be there. BadDigest when the content is not what its diff id says.
        """
        chain = chain_ids(diff_ids)[-1]
        with self._alone(chain):
            size = self.size(chain)
            if size is not None:
                return Unpacked(diff_ids[-1], chain, size)
            return self._unpack(stream, diff_ids[:-1], diff_ids[-1])

    def unpack_base(self, stream: Readable) -> Unpacked:
        """Unpack a lowest layer whose diff id is not known yet (import)."""
        return self._unpack(stream, [], None)

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

    def _unpack(self, stream: Readable, parents: Sequence[str], expected: str | None) -> Unpacked:
        scratch = self._scratch / secrets.token_hex(8)
        hashed = _Hashed(compression.plain(stream))
        with disk.naming_full_disk(self.root):
            try:
                (scratch / "diff").mkdir(parents=True)
                applied = self._apply(hashed, scratch / "diff", chain_ids(parents)[::-1])
                diff_id = hashed.digest()
                if expected is not None and diff_id != expected:
                    raise BadDigest(f"layer has diff id {diff_id}, not {expected} as its image says: fetch it again")
                chain = chain_id(chain_ids(parents)[-1] if parents else None, diff_id)
                record = {"version": VERSION, "diff_id": diff_id, "chain_id": chain, "size": applied.size}
                self._write_record(scratch, {**record, "boot": self._boot, "durable": False})
                self._place(scratch, chain)
            except BaseException:
                trees.remove_path(scratch)
                raise
        return Unpacked(diff_id, chain, applied.size)

    def _apply(self, stream: Readable, diff: Path, lower_chains: Sequence[str]) -> unpack.Applied:
        with contextlib.ExitStack() as stack:

            def opened(path: Path) -> int:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                return fd

            root_fd = opened(diff)
            lowers = [opened(self.diff_dir(chain)) for chain in lower_chains]
            # In an overlay the top layer's root directory is the one seen: start from the one below.
            unpack.begin_root(root_fd, lowers[0] if lowers else None)
            return unpack.apply_layer(stream, root_fd, lowers, self._limits)

    def _place(self, scratch: Path, chain: str) -> None:
        try:
            os.rename(scratch, self._dir(chain))
        except OSError:
            if not self.has(chain):
                raise
            trees.remove_path(scratch)
        trees.sync_directory(self.root)

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
            record: dict[str, Any] = json.loads((layer / "layer.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        if record.get("version") != VERSION:
            raise Internal(f"layer {layer} was written by another release (version {record.get('version')})")
        return record

    @staticmethod
    def _write_record(layer: Path, record: dict[str, Any]) -> None:
        trees.write_atomically(layer / "layer.json", json.dumps(record).encode())

    def _drop_unsettled(self) -> None:
        for name in self._names():
            record = self._record(self.root / name)
            if record is None or not (record["durable"] or record["boot"] == self._boot):
                trees.remove_path(self.root / name)


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
