"""The agent's journal on disk: which tasks the node holds, and how far each has come.

An append-only file of frames (length, CRC-32, MessagePack), the first of which names the version. ``write`` returns when
the frame is on disk. A torn last frame, from a crash in the middle of a write, is cut off on open; a bad frame with good
ones behind it is damage and is said so. The file is rewritten, by way of a new one, when it is mostly history.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec

from worker.agent.vocabulary import Holdings, Record, WriteJournal

VERSION = 1
_HEAD = struct.Struct(">II")
_COMPACT_ABOVE = 256 * 1024


class JournalDamaged(Exception):
    """The journal cannot be read; the message names the file, the place and what to do."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One frame: the version (first frame only), and what WriteJournal said."""

    version: int = 0
    records: tuple[Record, ...] = ()
    forgotten: tuple[str, ...] = ()
    holdings: Holdings | None = None


def frame(entry: Entry) -> bytes:
    """The bytes of ``entry``."""
    body = msgspec.msgpack.encode(entry)
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def read_frames(data: bytes) -> tuple[list[Entry], int]:
    """The entries of a journal's bytes, and how many bytes of it are whole frames."""
    entries: list[Entry] = []
    place = 0
    while place + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, place)
        body = data[place + _HEAD.size : place + _HEAD.size + length]
        if len(body) < length:
            break
        if zlib.crc32(body) != checksum:
            if place + _HEAD.size + length == len(data):
                break
            raise JournalDamaged(f"bad checksum at byte {place}")
        entries.append(msgspec.msgpack.decode(body, type=Entry))
        place += _HEAD.size + length
    return entries, place


class Journal:
    """One open journal file. ``records`` and ``holdings`` are what it held when opened, kept up to date by ``write``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        self.holdings = Holdings()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._load()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; everything written is on disk already."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def write(self, instruction: WriteJournal) -> None:
        """Make ``instruction`` durable. OSError (a full disk) leaves the journal as it was."""
        entry = Entry(records=instruction.records, forgotten=instruction.forgotten, holdings=instruction.holdings)
        self._append(frame(entry))
        self._take(entry)
        if self._size > _COMPACT_ABOVE and self._size > 4 * self._live_size():
            self._compact()

    def statistics(self) -> dict[str, Any]:
        """Size in bytes and the number of records."""
        return {"bytes": self._size, "records": len(self.records)}

    def _load(self) -> None:
        data = self.path.read_bytes()
        try:
            entries, self._size = read_frames(data)
        except (JournalDamaged, msgspec.DecodeError, msgspec.ValidationError) as damage:
            raise JournalDamaged(
                f"the agent's journal {self.path} is damaged ({damage}); move it away and start the daemon: "
                "containers of tasks will be removed and their tasks placed anew"
            ) from damage
        if not entries:
            os.ftruncate(self._file, 0)
            self._size = 0
            self._append(frame(Entry(version=VERSION)))
            return
        if not 1 <= entries[0].version <= VERSION:
            found = entries[0].version
            raise JournalDamaged(f"the agent's journal {self.path} is of version {found}, this release reads {VERSION}")
        if self._size < len(data):
            os.ftruncate(self._file, self._size)
        for entry in entries:
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        for record in entry.records:
            self.records[record.id] = record
        for task_id in entry.forgotten:
            self.records.pop(task_id, None)
        if entry.holdings is not None:
            self.holdings = entry.holdings

    def _append(self, data: bytes) -> None:
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._size + written)
            os.fdatasync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def _live(self) -> bytes:
        whole = Entry(version=VERSION, records=tuple(self.records.values()), holdings=self.holdings)
        return frame(whole)

    def _live_size(self) -> int:
        return len(self._live())

    def _compact(self) -> None:
        data = self._live()
        fresh = self.path.with_suffix(".new")
        handle = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            written = 0
            while written < len(data):
                written += os.write(handle, data[written:])
            os.fsync(handle)
            os.rename(fresh, self.path)
        except OSError:
            os.close(handle)
            fresh.unlink(missing_ok=True)
            raise
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        os.close(self._file)
        self._file, self._size = handle, len(data)
