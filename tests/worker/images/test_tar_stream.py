"""The tar reader reads what other writers write, and refuses what is damaged or too much."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.errors import InvalidArgument
from worker.images import compression
from worker.images.tar_stream import BadArchive, Entry, Limits, TarReader

LONG = "d/" * 70 + "n" * 120


def read_all(data: bytes, limits: Limits | None = None) -> list[tuple[Entry, bytes]]:
    reader = TarReader(io.BytesIO(data), limits)
    found = []
    for entry in reader:
        content = b""
        while piece := reader.read(1000):
            content += piece
        found.append((entry, content))
    return found


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format(layer: Callable[..., bytes], format: int) -> None:
    name = "p" * 90 + "/" + "n" * 90 if format == tarfile.USTAR_FORMAT else LONG + "é"
    link = "t" * 90 if format == tarfile.USTAR_FORMAT else "t" * 300
    data = layer(
        (name, {"mode": 0o4755, "uid": 12, "gid": 34}, b"x" * 1500),
        ("link", {"type": tarfile.SYMTYPE, "linkname": link}, b""),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "other"}, b""),
        ("dir", {"type": tarfile.DIRTYPE, "mode": 0o1777}, b""),
        ("dev", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""),
        ("disk", {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 300}, b""),
        ("pipe", {"type": tarfile.FIFOTYPE}, b""),
        ("last", {}, b"end"),
        format=format,
    )
    found = {entry.name.rstrip("/"): (entry, content) for entry, content in read_all(data)}
    entry, content = found[name]
    assert (entry.mode, entry.uid, entry.gid, entry.size, content) == (0o4755, 12, 34, 1500, b"x" * 1500)
    assert found["link"][0].link == link
    assert {n: found[n][0].kind for n in ("link", "hard", "dir", "dev", "disk", "pipe", "last")} == {
        "link": "symlink", "hard": "hardlink", "dir": "directory", "dev": "char", "disk": "block", "pipe": "fifo",
        "last": "file",
    }  # fmt: skip
    assert (found["disk"][0].major, found["disk"][0].minor) == (8, 300)
    assert found["last"][1] == b"end"


def test_pax_values(layer: Callable[..., bytes]) -> None:
    headers = {"SCHILY.xattr.user.note": "a=b\nc", "mtime": "1234.000000005", "uid": "3000000000"}
    (entry, _), *_ = read_all(layer(("f", {"pax_headers": headers}, b"")))
    assert entry.xattrs == {"user.note": b"a=b\nc"}
    assert (entry.mtime_ns, entry.uid) == (1234 * 10**9 + 5, 3_000_000_000)


@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed")
@pytest.mark.parametrize("form", ["gnu", "posix:0.0", "posix:0.1", "posix:1.0"])
def test_sparse_files_of_gnu_tar(tmp_path: Path, form: str) -> None:
    with open(tmp_path / "holes", "wb") as file:
        for position in range(0, 6 << 20, 1 << 20):
            file.seek(position)
            file.write(b"data" * 1024)
        file.truncate(7 << 20)
    (tmp_path / "plain").write_text("after")
    format, _, version = form.partition(":")
    options = [f"--format={format}", *([f"--sparse-version={version}"] if version else [])]
    command = ["tar", "-cS", *options, "-C", str(tmp_path), "holes", "plain"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    if len(data) > 1 << 20:
        pytest.skip("this file system keeps no holes")
    (entry, stored), (after, text) = read_all(data)
    assert entry.name == "holes"
    assert entry.size == 7 << 20
    assert entry.sparse is not None
    rebuilt = bytearray(entry.size)
    at = 0
    for offset, length in entry.sparse:
        rebuilt[offset : offset + length] = stored[at : at + length]
        at += length
    assert bytes(rebuilt) == (tmp_path / "holes").read_bytes()
    assert (after.name, text) == ("plain", b"after")


@pytest.mark.parametrize("field", [slice(108, 116), slice(124, 136)])
def test_negative_numbers_in_base_256(layer: Callable[..., bytes], field: slice) -> None:
    header = bytearray(layer("f", format=tarfile.USTAR_FORMAT))
    header[field] = b"\xff" * (field.stop - field.start)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    with pytest.raises(BadArchive, match="negative"):
        read_all(bytes(header))


@pytest.mark.parametrize("records", [b"9 path=a\nno length", b"9 path=a\n x", b"9 path=a\n0 a=b\n", b"9 path=a\n99 a=b\n"])
def test_damaged_extended_headers_end(records: bytes) -> None:
    """A record whose length is missing must not be read for ever."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    with pytest.raises(BadArchive, match="extended header"):
        read_all(info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512 + 1024))


@pytest.mark.parametrize("cut", [100, 512, 700, 1400])
def test_cut_short(layer: Callable[..., bytes], cut: int) -> None:
    data = layer(("f", {}, b"x" * 2000))
    with pytest.raises(BadArchive):
        read_all(data[:cut] if cut != 512 else data[:513])


def test_damage_is_seen(layer: Callable[..., bytes]) -> None:
    data = bytearray(layer("f"))
    data[5] ^= 1
    with pytest.raises(BadArchive, match="checksum"):
        read_all(bytes(data))


def test_limits(layer: Callable[..., bytes]) -> None:
    with pytest.raises(BadArchive, match="entries"):
        read_all(layer("a", "b", "c"), Limits(entries=2))
    with pytest.raises(BadArchive, match="larger"):
        read_all(layer(("f", {}, b"x" * 50_000)), Limits(total_bytes=20_000))
    with pytest.raises(BadArchive, match="extended header"):
        read_all(layer((LONG * 5, {}, b"")), Limits(header_bytes=512))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_noise_never_escapes_as_another_error(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("x" * 120)
        info.pax_headers = {"mtime": "1.5", "SCHILY.xattr.user.a": "b"}
        archive.addfile(info)
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 2047))] = data.draw(st.integers(0, 255))
    # Correct the checksums, so that the noise reaches the parser behind them.
    for block in (0, 1024):
        raw[block + 148 : block + 156] = b" " * 8
        raw[block + 148 : block + 156] = b"%06o\0 " % sum(raw[block : block + 512])
    try:
        read_all(bytes(raw), Limits(total_bytes=1 << 20))
    except InvalidArgument:
        pass


def _compressed(kind: str, data: bytes) -> bytes:
    import bz2
    import gzip
    import lzma

    import zstandard

    table: dict[str, Callable[[bytes], bytes]] = {
        "plain": bytes,
        "gzip": gzip.compress,
        "bzip2": bz2.compress,
        "xz": lzma.compress,
        "zstd": zstandard.compress,
    }
    return table[kind](data)


@pytest.mark.parametrize("kind", ["plain", "gzip", "bzip2", "xz", "zstd"])
def test_compressions(kind: str) -> None:
    data = os.urandom(300_000) + bytes(500_000)
    packed = _compressed(kind, data)
    stream = compression.plain(io.BytesIO(packed))
    assert compression.read_up_to(stream, len(data) + 1) == data
    twice = compression.plain(io.BytesIO(packed + packed))
    assert len(compression.read_up_to(twice, 3 * len(data))) == 2 * len(data)


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_cut_compression(kind: str) -> None:
    packed = _compressed(kind, os.urandom(100_000))
    with pytest.raises(compression.BadCompression):
        compression.read_up_to(compression.plain(io.BytesIO(packed[:-5000])), 200_000)
