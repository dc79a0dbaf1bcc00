"""The local log: Docker's bytes, pieces of long lines, compressed files, a reader that follows through all of it."""

from __future__ import annotations

import asyncio
import gzip
import os
import struct
import time
from pathlib import Path

import pytest

from worker.containers import log_frames, logs
from worker.containers.log_lines import Entry, Query
from worker.shim.locallog import LocalLog
from worker.shim.logfile import ENTRY_LIMIT, LogFile

LOCAL = logs.FORMS["local"]
#: Written by dockerd 20.10.24 for: echo one; echo two >&2; printf "%020000d" 0; echo end; printf rest
DOCKERS = Path(__file__).parent / "golden" / "dockerd-20.10-local.log"


def read(path: Path, **query: int) -> list[Entry]:
    async def all_of_it() -> list[Entry]:
        return [entry async for entry in logs.read(path, Query(**query), lambda: True, LOCAL)]

    return asyncio.run(all_of_it())


def wait_compressed(log: LogFile) -> None:
    """A log that another could take over has no child at work on its files."""
    deadline = time.monotonic() + 10
    while log.handed() is None:
        assert time.monotonic() < deadline, "not compressed within 10 s"
        time.sleep(0.005)


def test_what_dockerd_wrote_is_read() -> None:
    entries = read(DOCKERS)
    texts = [(entry.stream, entry.text) for entry in entries]
    long = [text for stream, text in texts if stream == 1][1:]
    assert texts[0][1] == b"one\n" or texts[1][1] == b"one\n"
    assert [text for stream, text in texts if stream == 2] == [b"two\n"]
    assert b"".join(long) == b"0" * 20_000 + b"end\nrest"
    assert len(long[0]) == ENTRY_LIMIT
    assert all(entry.at > 1_700_000_000 for entry in entries)
    assert [entry.text for entry in read(DOCKERS, tail=1)] == [b"rest"]


def test_our_bytes_are_dockers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line, in the bytes that moby's LogEntry has for it (its fields in order, lengths around it)."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_456_789)
    log = LocalLog(str(tmp_path / "log"), attrs={"k": "v"})
    log.write(2, b"hi\n")
    body = b"\x0a\x06stderr" + b"\x10\x95\x9a\x97\xec\xe3\x9f\xe7\xcb\x17" + b"\x1a\x02hi" + b"\x32\x06\x0a\x01k\x12\x01v"
    assert (tmp_path / "log").read_bytes() == struct.pack(">I", len(body)) + body + struct.pack(">I", len(body))
    (entry,) = read(tmp_path / "log")
    assert (entry.stamp, entry.attrs) == ("2023-11-14T22:13:20.123456789Z", {"k": "v"})


def test_pieces_of_a_line_are_marked_and_make_it_whole(tmp_path: Path) -> None:
    log = LocalLog(str(tmp_path / "log"))
    log.write(1, b"x" * (2 * ENTRY_LIMIT) + b"\nnext\n")
    log.write(1, b"no end")
    log.end(1)
    texts = [entry.text for entry in read(tmp_path / "log")]
    assert texts == [b"x" * ENTRY_LIMIT, b"x" * ENTRY_LIMIT, b"\n", b"next\n", b"no end"]
    entries = read(tmp_path / "log")
    assert entries[0].at == entries[1].at == entries[2].at, "pieces carry the time of the first"


def test_empty_lines_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    log = LocalLog(str(tmp_path / "log"))
    log.write(1, b"\n\n\xff\x00\n")
    assert [entry.text for entry in read(tmp_path / "log")] == [b"\n", b"\n", b"\xff\x00\n"]


def test_rotated_files_are_compressed_and_read_back(tmp_path: Path) -> None:
    log = LocalLog(str(tmp_path / "log"), max_size=4000, max_file=3, compress=True)
    for number in range(400):
        log.write(1, f"{number}\n".encode())
    wait_compressed(log)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1.gz", "log.2.gz"]
    assert len(gzip.decompress((tmp_path / "log.1.gz").read_bytes())) <= 4000
    assert (tmp_path / "log.1.gz").stat().st_mode & 0o777 == 0o640
    kept = [int(entry.text) for entry in read(tmp_path / "log")]
    assert kept == list(range(400 - len(kept), 400))
    assert len(kept) > 200
    assert [int(entry.text) for entry in read(tmp_path / "log", tail=150)] == list(range(250, 400))


def test_a_damaged_file_ends_its_own_reading_only(tmp_path: Path) -> None:
    log = LocalLog(str(tmp_path / "log"), max_size=50, max_file=2)
    for text in (b"one\n", b"two\n", b"three\n"):
        log.write(1, text)
    old = (tmp_path / "log.1").read_bytes()
    (tmp_path / "log.1").write_bytes(old[:4] + b"\xff" * (len(old) - 4))
    assert [entry.text for entry in read(tmp_path / "log")][-1] == b"three\n"
    with pytest.raises(log_frames.Damaged):
        log_frames.split(struct.pack(">I", 1 << 30))


def test_a_half_written_last_entry_is_not_read_yet(tmp_path: Path) -> None:
    log = LocalLog(str(tmp_path / "log"))
    log.write(1, b"one\ntwo\n")
    whole = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(whole[:-5])
    assert [entry.text for entry in read(tmp_path / "log")] == [b"one\n"]
    assert [entry.text for entry in read(tmp_path / "log", tail=5)] == [b"one\n"]


@pytest.mark.suite
@pytest.mark.asyncio
async def test_a_follower_loses_nothing_while_files_are_renamed_and_compressed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LocalLog(str(path), max_size=20_000, max_file=4, compress=True)
    ended = False
    seen: list[int] = []

    async def follow() -> None:
        async for entry in logs.read(path, Query(follow=True), lambda: ended, LOCAL):
            seen.append(int(entry.text))

    following = asyncio.create_task(follow())
    number = 0
    for _ in range(8):
        for _ in range(600):
            log.write(1, f"{number}\n".encode())
            number += 1
        async with asyncio.timeout(10):
            while len(seen) < number - 500:
                await asyncio.sleep(0.01)
    ended = True
    await asyncio.wait_for(following, 10)
    assert seen == list(range(number))
    wait_compressed(log)
    assert os.path.exists(f"{path}.2.gz")


@pytest.mark.asyncio
async def test_a_follower_of_a_log_of_one_file_sees_it_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LocalLog(str(path), max_size=1000, max_file=1)
    ended = False
    seen: list[bytes] = []

    async def follow() -> None:
        async for entry in logs.read(path, Query(follow=True), lambda: ended, LOCAL):
            seen.append(entry.text)

    following = asyncio.create_task(follow())
    for text in (b"a" * 700 + b"\n", b"b" * 500 + b"\n"):
        log.write(1, text)
        async with asyncio.timeout(5):
            while text not in seen:
                await asyncio.sleep(0.01)
    ended = True
    await asyncio.wait_for(following, 5)
    assert len(seen) == 2
