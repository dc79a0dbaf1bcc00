"""The json-file log: lines, long lines, ends, rotation, a full disk."""

from __future__ import annotations

import json
import re

from worker.shim.jsonlog import JsonLog
from worker.shim.logfile import ENTRY_LIMIT


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(path):
    return [entry["log"] for entry in entries(path)]


def test_lines_wait_for_their_newline(tmp_path):
    log = JsonLog(str(tmp_path / "log"))
    log.write(1, b"one\ntw")
    log.write(2, b"err\n")
    assert [(e["log"], e["stream"]) for e in entries(tmp_path / "log")] == [("one\n", "stdout"), ("err\n", "stderr")]
    log.write(1, b"o\n")
    log.write(1, b"rest")
    log.end(1)
    assert texts(tmp_path / "log")[2:] == ["two\n", "rest"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", e["time"]) for e in entries(tmp_path / "log"))


def test_long_lines_are_split_as_docker_does(tmp_path):
    log = JsonLog(str(tmp_path / "log"))
    log.write(1, b"x" * (2 * ENTRY_LIMIT + 5) + b"\n")
    assert [len(text) for text in texts(tmp_path / "log")] == [ENTRY_LIMIT, ENTRY_LIMIT, 6]
    assert texts(tmp_path / "log")[2].endswith("\n")


def test_a_character_is_not_cut_in_two(tmp_path):
    log = JsonLog(str(tmp_path / "log"))
    text = "a" + "€" * ENTRY_LIMIT
    log.write(1, text.encode() + b"\n")
    assert "".join(texts(tmp_path / "log")) == text + "\n"
    assert len(texts(tmp_path / "log")) > 3


def test_bytes_that_are_no_text(tmp_path):
    log = JsonLog(str(tmp_path / "log"))
    log.write(1, b'\xff"\\\x00\x1b[31m\n')
    assert texts(tmp_path / "log") == ['\ufffd"\\\x00\x1b[31m\n']


def test_rotation_keeps_max_file_files(tmp_path):
    path = tmp_path / "log"
    log = JsonLog(str(path), max_size=500, max_file=3)
    for number in range(50):
        log.write(1, f"{number}\n".encode())
    files = [tmp_path / "log.2", tmp_path / "log.1", path]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.stat().st_size <= 500 for file in files)
    kept = [int(text) for file in files for text in texts(file)]
    assert kept == list(range(50 - len(kept), 50))


def test_one_file_only_begins_anew(tmp_path):
    log = JsonLog(str(tmp_path / "log"), max_size=300, max_file=1)
    for number in range(20):
        log.write(1, f"{number}\n".encode())
    assert list(tmp_path.iterdir()) == [tmp_path / "log"]
    assert texts(tmp_path / "log")[-1] == "19\n"


def test_a_second_run_appends(tmp_path):
    for text in (b"first\n", b"second\n"):
        log = JsonLog(str(tmp_path / "log"), max_size=10_000, max_file=2)
        log.write(1, text)
        log.close()
    assert texts(tmp_path / "log") == ["first\n", "second\n"]


def test_a_full_disk_is_counted_and_stops_nothing():
    log = JsonLog("/dev/full")
    log.write(1, b"lost\n")
    assert log.lost_bytes == len(b'{"log":"lost\\n","stream":"stdout","time":"2026-01-01T00:00:00.000000000Z"}\n')


def test_end_without_anything_writes_nothing(tmp_path):
    log = JsonLog(str(tmp_path / "log"))
    log.end(1)
    assert not (tmp_path / "log").exists()
