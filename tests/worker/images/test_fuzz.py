"""Fuzzing of the applier, archives and references: whatever comes in, nothing is written outside, and errors are ours.

Archives are generated, and real ones are bent: bytes changed, blocks dropped, doubled and swapped, checksums set right so
that the noise reaches the parser behind them. Around every root lies a canary tree, looked at after each run. Bounded by
COVEY_FUZZ_SECONDS (4 a target; --long: 120); the seed is printed, COVEY_FUZZ_SEED repeats a run.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import stat
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard

from covey.errors import CoveyError
from covey.testing import images as made
from worker.images import reference, tree_record, unpack
from worker.images.store import ImageStore
from worker.images.tar_stream import Limits

pytestmark = pytest.mark.suite

SECONDS = float(os.environ.get("COVEY_FUZZ_SECONDS", "4"))
LONG_SECONDS = float(os.environ.get("COVEY_FUZZ_SECONDS", "120"))
LIMITS = Limits(total_bytes=4 << 20, entries=2000, sparse_pieces=200, header_bytes=1 << 16, apparent_bytes=1 << 32)
NAMES = ("a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq", ".wh..wh.x", ".wh...", "usr", "é", "n" * 200, "bad\udcff")
KINDS = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
         tarfile.GNUTYPE_SPARSE, b"x", b"g", b"L", b"K", b"V", b"Z")  # fmt: skip
Bytes = Callable[[random.Random], bytes]


class Canary:
    """Files, a directory, a link and a device around a root; any touch of them or beside them shows."""

    def __init__(self, outer: Path) -> None:
        self.outer = outer
        self.root = outer / "in" / "root"
        self.root.mkdir(parents=True)
        for path in (outer / "canary", outer / "in" / "canary", outer / "in" / "d" / "canary"):
            path.parent.mkdir(exist_ok=True)
            path.write_text("alive")
        (outer / "in" / "link").symlink_to("canary")
        self._before = self._census()

    def _census(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in (self.outer, *self.outer.rglob("*")):
            if path == self.root or self.root in path.parents:
                continue
            one = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(one.st_mode) else b""
            found[str(path)] = (one.st_mode, one.st_uid, one.st_nlink, one.st_mtime_ns, one.st_ctime_ns, content)
        return found

    def check(self, what: str) -> None:
        assert self._census() == self._before, f"something outside was touched: {what}"

    def emptied(self) -> None:
        """An empty root again; the canary is as it was."""
        for name in os.listdir(self.root):
            path = self.root / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _path(rng: random.Random) -> str:
    path = "/".join(rng.choice(NAMES) for _ in range(rng.randint(1, 4)))
    return rng.choice(("", "", "/", "./", "../", "//")) + path


def _header(rng: random.Random) -> bytes:
    info = tarfile.TarInfo(_path(rng))
    info.type = rng.choice(KINDS) if rng.random() < 0.7 else tarfile.REGTYPE
    info.linkname = rng.choice((_path(rng), "/etc/passwd", "../../canary", "/proc/self/cwd", ""))
    info.mode, info.mtime = rng.choice((0o644, 0o777, 0o7777, 0)), rng.choice((0, 1, 2**33, 2**62))
    info.uid, info.gid = (os.getuid(), os.getgid()) if rng.random() < 0.8 else (rng.randrange(2**31), 0)
    info.devmajor, info.devminor = rng.choice(((0, 0), (1, 3), (254, 0), (4000, 70000)))
    data = rng.randbytes(rng.choice((0, 0, 1, 100, 513, 3000)))
    if info.type in (b"x", b"g"):
        records = (("path", _path(rng)), ("linkpath", _path(rng)), ("size", str(rng.randrange(5000))), ("mtime", "-1.5"),
                   ("SCHILY.xattr.user.a", "b"), ("SCHILY.xattr.trusted.overlay.redirect", "/"), ("GNU.sparse.map", "0,4,9,1"),
                   ("GNU.sparse.size", "99"), ("GNU.sparse.major", "1"), ("uid", "x"))  # fmt: skip
        data = b"".join(_record(*rng.choice(records)) for _ in range(rng.randint(1, 4)))
    elif info.type in (b"L", b"K"):
        data = os.fsencode(_path(rng)) + b"\0"
    info.size = len(data) if rng.random() < 0.9 else rng.randrange(1 << 34)
    try:
        head = info.tobuf(rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)), "utf-8", "surrogateescape")
    except ValueError:
        return b""
    return head + data + bytes(-len(data) % 512)


def _record(key: str, value: str) -> bytes:
    body = b" " + key.encode() + b"=" + os.fsencode(value) + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def generated(rng: random.Random) -> bytes:
    """A stream of entries, most of them well formed."""
    return b"".join(_header(rng) for _ in range(rng.randint(1, 14))) + bytes(1024)


def real(rng: random.Random) -> bytes:
    """What tar writers write: the files of a small system."""
    members: list[tuple[str, int, bytes | str | None]] = [
        ("usr", 0o755, None), ("usr/lib", 0o755, None), ("usr/lib/x", 0o755, rng.randbytes(2000)), ("lib", 0o777, "usr/lib"),
        ("etc/passwd", 0o644, b"root:x:0:0"), ("d" * 90 + "/" + "f" * 90, 0o600, b"long"), ("lib/y", 0o644, b"via link"),
        ("usr/.wh.gone", 0o600, b""), ("etc/.wh..wh..opq", 0o600, b""),
    ]  # fmt: skip
    return made.tar(members)


def bent(make: Bytes) -> Bytes:
    """What ``make`` makes, with some of it changed."""

    def bend(rng: random.Random) -> bytes:
        blocks = bytearray(make(rng))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(max(1, len(blocks) // 512)) * 512
            block = blocks[at : at + 512]
            other = rng.randrange(max(1, len(blocks) // 512)) * 512
            match rng.randrange(6):
                case 0 | 1:
                    for _ in range(rng.randint(1, 8)):
                        block[rng.randrange(len(block))] = rng.choice((0, 0xFF, 0x80, 0x2F, 0x30, rng.randrange(256)))
                    blocks[at : at + 512] = _summed(block)
                case 2:
                    del blocks[at : at + 512]
                case 3:
                    blocks[other:other] = block
                case 4:
                    blocks[other : other + 512] = block
                case _:
                    del blocks[rng.randrange(len(blocks)) :]
            if len(blocks) < 1024:
                break
        return bytes(blocks)

    return bend


def _summed(block: bytearray) -> bytearray:
    if len(block) == 512:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return block


def packed(make: Bytes) -> Bytes:
    def pack(rng: random.Random) -> bytes:
        data = bytearray(rng.choice((gzip.compress, zstandard.compress))(make(rng)))
        for _ in range(rng.randint(0, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)

    return pack


LAYERS: dict[str, Bytes] = {
    "generated": generated,
    "generated and bent": bent(generated),
    "real and bent": bent(real),
}


@contextmanager
def canary() -> Iterator[Canary]:
    outer = Path(tempfile.mkdtemp(prefix="covey-test-fuzz-"))
    try:
        yield Canary(outer)
    finally:
        shutil.rmtree(outer)


def rounds(name: str, seconds: float) -> Iterator[random.Random]:
    """A generator of random numbers a round, until the time is up; how many there were, and the seed, is printed."""
    seed = int(os.environ.get("COVEY_FUZZ_SEED") or time.time_ns() % 2**32)
    end, count = time.monotonic() + seconds, 0
    print(f"fuzz {name}: COVEY_FUZZ_SEED={seed}")
    while time.monotonic() < end:
        count += 1
        yield random.Random(seed * 1_000_003 + count)
    print(f"fuzz {name}: {count} rounds")
    assert count > 5


def _layers(name: str, seconds: float) -> None:
    applied = 0
    with canary() as around, tempfile.TemporaryDirectory(prefix="covey-test-fuzz-") as aside:
        record = Path(aside, "record")
        for number, rng in enumerate(rounds(name, seconds), 1):
            data = LAYERS[name](rng)
            fd = os.open(around.root, os.O_RDONLY)
            try:
                found = unpack.apply_layer(io.BytesIO(data), fd, (fd,), LIMITS)
                record.unlink(missing_ok=True)
                digest = tree_record.write(record, fd, found.sums)
                lines = record.read_bytes()
                assert tree_record.checksum(lines) == digest
                assert list(tree_record.compare(lines.splitlines(), fd)) == []
                applied += 1
            except (CoveyError, PermissionError):
                pass
            finally:
                os.close(fd)
            around.emptied()
            around.check(f"round {number} of {name}")
    print(f"fuzz {name}: {applied} were applied")
    assert applied


def _archive(rng: random.Random) -> bytes:
    return made.docker_archive("fuzz:1", [real(rng), generated(rng)], {"Env": ["A=1"]})


ARCHIVES: dict[str, Bytes] = {"archives, bent": bent(_archive), "archives, packed and bent": packed(_archive)}


def _archives(name: str, seconds: float) -> None:
    with canary() as around:
        data = around.root / "data"
        store = ImageStore(data / "images", limits=LIMITS)
        store.load_archive(io.BytesIO(made.docker_archive("kept:1", [real(random.Random(1))])))
        before = store.list()
        for number, rng in enumerate(rounds(name, seconds), 1):
            try:
                for loaded in store.load_archive(io.BytesIO(ARCHIVES[name](rng))):
                    if loaded.image.id != before[0].id:
                        store.remove(loaded.image.id, force=True)
            except (CoveyError, PermissionError):
                pass
            assert store.list() == before
            assert [*(data / "images/ingest").iterdir(), *(data / "rootfs/layers/tmp").iterdir()] == []
            around.check(f"round {number} of {name}")
        assert list(store.fsck()) == []
        assert len(list((data / "images/blobs/sha256").iterdir())) == len(before[0].blobs)


def _references(seconds: float) -> None:
    pieces = ("a", "B", "docker.io", "localhost", ":5000", ":", "/", "//", "@", "@sha256:", "0" * 64, "f" * 64, "-", "_", "__",
              ".", "..", "é", "\0", " ", "x" * 130, "sha512:", ":latest", "[::1]", "library")  # fmt: skip
    for rng in rounds("references", seconds):
        for _ in range(200):
            text = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 7)))
            try:
                found = reference.parse(text)
            except CoveyError as error:
                words = error.message
            else:
                words = str(found)
                assert reference.parse(str(found)) == found
                # Docker's rule makes one exception: 64 hexadecimal digits alone are an id.
                assert len(found.familiar) == 64 or reference.parse(found.familiar) == found
                assert "\0" not in words
                assert ".." not in found.path.split("/")
            assert words


TARGETS: dict[str, Callable[[float], None]] = {
    **{name: partial(_layers, name) for name in LAYERS},
    **{name: partial(_archives, name) for name in ARCHIVES},
    "references": lambda seconds: _references(seconds / 2),
}


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes(name: str) -> None:
    TARGETS[name](SECONDS)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_for_long(name: str) -> None:
    TARGETS[name](LONG_SECONDS)
