"""Archives, layers and disks that mean ill, or are broken: one clear error each, the store as before, nothing left behind."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import random
import stat
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from covey.errors import CoveyError, InvalidArgument
from covey.testing import images as made
from worker.images import compression, unpack
from worker.images.compression import BadCompression
from worker.images.disk import DiskFull
from worker.images.store import ImageStore
from worker.images.tar_stream import BadArchive, Limits
from worker.kernel import syscalls

Layer = Callable[..., bytes]
Apply = Callable[..., unpack.Applied]
SYM: dict[str, Any] = {"type": tarfile.SYMTYPE}
HARD: dict[str, Any] = {"type": tarfile.LNKTYPE}
DIR: dict[str, Any] = {"type": tarfile.DIRTYPE, "mode": 0o755}


class Store:
    """A store with one image, and whether it is as it was."""

    def __init__(self, data: Path, archive: bytes) -> None:
        self.data = data
        self.images = ImageStore(data / "images")
        self.load(archive)
        self.before = self.census()

    def load(self, archive: bytes) -> None:
        self.images.load_archive(io.BytesIO(archive))

    def census(self) -> tuple[set[str], list[Any]]:
        return {str(path) for path in self.data.rglob("*")}, self.images.list()

    def untouched(self) -> None:
        assert self.census() == self.before
        assert list(self.images.fsck()) == []


@pytest.fixture
def store(tmp_path: Path, layer: Layer) -> Store:
    return Store(tmp_path / "data", made.docker_archive("kept:1", [layer(("f", {}, b"kept" * 100))]))


def archive_of(*layers: bytes) -> bytes:
    return made.docker_archive("bad:1", layers)


def zeros(packed: Callable[[Iterator[bytes]], Iterator[bytes]], megabytes: int) -> bytes:
    return b"".join(packed(bytes(1 << 20) for _ in range(megabytes)))


def gzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield from (packer.compress(piece) for piece in pieces)
    yield packer.flush()


@pytest.mark.suite
def test_ten_megabytes_that_inflate_to_ten_gigabytes() -> None:
    """As a stream, without a disk: it ends at a tenth of what it would have been."""
    # Ten members of a gigabyte each: gzip streams may be written one behind the other.
    one = zeros(gzipped, 1024)
    bomb = io.BytesIO(one * 10)
    assert len(bomb.getbuffer()) < 11 << 20
    given = 0
    stream, words = compression.plain(bomb), ""
    try:
        while data := stream.read(1 << 20):
            given += len(data)
    except BadCompression as error:
        words = error.message
    assert "inflates too much" in words
    assert given <= compression.INFLATION_FREE + (1 << 20)


def test_a_bomb_leaves_nothing(store: Store, layer: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "INFLATION_FREE", 1 << 20)
    plain = layer(("zeros", {}, bytes(8 << 20)))
    bomb = archive_of(plain)
    with tarfile.open(fileobj=io.BytesIO(bomb)) as tar:
        files = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    packed = {name: gzip.compress(data, 9) if name.endswith("layer.tar") else data for name, data in files.items()}
    with pytest.raises(BadCompression, match="inflates too much"):
        store.load(made.tar([(name, 0o644, data) for name, data in packed.items()]))
    store.untouched()
    with pytest.raises(BadCompression, match="inflates too much"):
        store.load(gzip.compress(bomb, 9))
    store.untouched()


def test_what_compresses_well_is_no_bomb() -> None:
    packed = zeros(gzipped, 40)
    stream = compression.plain(io.BytesIO(packed))
    assert sum(len(data) for data in iter(lambda: stream.read(1 << 20), b"")) == 40 << 20


def test_windows() -> None:
    # A zstd frame header: magic, descriptor (no checksum, no size), window exponent 20 + 10 → 1 GiB; an empty last block.
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(30 - 10) << 3]) + b"\x01\x00\x00"
    with pytest.raises(BadCompression, match="zstd"):
        compression.plain(io.BytesIO(frame)).read(10)
    large = lzma.compress(b"x" * 100, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}])
    with pytest.raises(BadCompression, match="xz"):
        compression.plain(io.BytesIO(large)).read(10)


@pytest.mark.parametrize("layers", [2, 3])
def test_nested_compression(store: Store, layer: Layer, layers: int) -> None:
    """One compression is undone; what is compressed again is no tar."""
    plain = layer(("f", {}, os.urandom(5000)))
    packed = plain
    for _ in range(layers):
        packed = gzip.compress(packed)
    document = {"architecture": made.architecture(), "os": "linux", "config": {}}
    document["rootfs"] = {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(plain).hexdigest()]}
    described = [{"Config": "c.json", "RepoTags": ["bad:1"], "Layers": ["l.tar"]}]
    members = [("c.json", document), ("manifest.json", described)]
    archive = made.tar([("l.tar", 0o644, packed), *((name, 0o644, json.dumps(data).encode()) for name, data in members)])
    with pytest.raises(BadArchive, match="not a tar archive"):
        store.load(archive)
    store.untouched()


def sparse(real_size: int, pieces: list[tuple[int, int]], data: bytes) -> bytes:
    """A file in GNU's PAX 0.1 form."""
    info = tarfile.TarInfo("holes")
    info.size, info.uid, info.gid = len(data), os.getuid(), os.getgid()
    info.pax_headers = {
        "GNU.sparse.size": str(real_size),
        "GNU.sparse.map": ",".join(str(number) for piece in pieces for number in piece),
    }
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512) + bytes(1024)


def test_sparse_bombs(apply: Apply, root: Path) -> None:
    apply(sparse(1 << 30, [(0, 4), (1 << 29, 4)], b"headtail"))
    status = (root / "holes").stat()
    assert status.st_size == 1 << 30
    assert status.st_blocks * 512 < 1 << 20
    for size in (1 << 41, 1 << 62, 10**19):
        with pytest.raises(BadArchive, match=r"sparse|size"):
            apply(sparse(size, [(0, 4)], b"head"))
    # Many files whose claims add up.
    many = b"".join(sparse(1 << 39, [(0, 4)], b"head")[:-1024] for _ in range(4))
    with pytest.raises(BadArchive, match="claims to hold"):
        apply(many + bytes(1024))
    scattered = [(number << 20, 1) for number in range(2000)]
    with pytest.raises(BadArchive, match="larger than"):
        apply(sparse(1 << 31, scattered, bytes(2000)), limits=Limits(total_bytes=1 << 20))
    for pieces in ([(5, 4), (0, 4)], [(0, 4), (2, 4)], [(0, 99)], [(48, 8)]):
        with pytest.raises(BadArchive):
            apply(sparse(50, pieces, b"12345678"))


def test_paths_of_two_thousand_directories(store: Store, apply: Apply, layer: Layer) -> None:
    """As deep as a path can say is fine; deeper, by way of a link, is refused; so are directories without end."""
    deep = "/".join("d" * 2000)
    store.load(made.docker_archive("deep:1", [layer(f"{deep}/f", f"{deep}/g")]))
    store.images.remove("deep:1")
    links = [("l", SYM | {"linkname": deep}, b""), ("m", SYM | {"linkname": f"l/{deep}"}, b"")]
    with pytest.raises(BadArchive, match="deeper than a path can say"):
        store.load(archive_of(layer(f"{deep}/f", links[0], f"l/{deep}/f", links[1], "m/x/y")))
    store.untouched()
    with pytest.raises(BadArchive, match="directories its paths imply"):
        apply(layer(*(f"{number}/{deep[:400]}/f" for number in range(10))), limits=Limits(entries=1000))


TRICKS: dict[str, list[Any]] = {
    "write through a hard link to a link": [
        ("l", SYM | {"linkname": "../canary"}, b""), ("h", HARD | {"linkname": "l"}, b""), ("h/x", {}, b"dead"),
    ],
    "hard link to a link, replaced, written": [
        ("l", SYM | {"linkname": "/"}, b""), ("h", HARD | {"linkname": "l"}, b""), ("h", DIR, b""), ("h/canary", {}, b"dead"),
    ],
    "directory becomes a link in between": [
        ("d", DIR, b""), ("d/a", {}, b""), ("d", SYM | {"linkname": ".."}, b""), ("d/canary", {}, b"dead"),
        ("d", DIR | {"mode": 0o777}, b""),
    ],
    "a cached parent becomes a link": [
        ("a/b/c", {}, b""), ("a/b", SYM | {"linkname": "../../.."}, b""), ("a/b/canary", {}, b"dead"),
        ("a", SYM | {"linkname": ".."}, b""), ("a/canary", {}, b"dead"),
    ],
    "hard link to a directory": [("d", DIR, b""), ("h", HARD | {"linkname": "d"}, b"")],
    "hard link to itself": [("h", {}, b"x"), ("h", HARD | {"linkname": "h"}, b"")],
    "hard link to what is to come": [("h", HARD | {"linkname": "later"}, b""), "later"],
    "whiteout of a link's target": [("l", SYM | {"linkname": "../canary"}, b""), ".wh.l"],
    "opaque through a link": [("l", SYM | {"linkname": ".."}, b""), "l/.wh..wh..opq"],
    "a file below a file": ["f", "f/x"],
    "a name that is not UTF-8": [("bad\udcff", {}, b"x"), ("bad\udcff/..", DIR, b"")],
    "backslashes": ["..\\canary", "d\\..\\..\\canary"],
    "a link onto the root": [("l", SYM | {"linkname": "/"}, b""), ("l", {}, b"dead")],
    "a link that is too long": [("l", SYM | {"linkname": "x" * 5000}, b"")],
}  # fmt: skip


@pytest.mark.parametrize("case", TRICKS)
def test_tricks_stay_inside(apply: Apply, layer: Layer, case: str) -> None:
    try:
        apply(layer(*TRICKS[case]))
    except BadArchive:
        pass


@pytest.mark.root
def test_devices_are_no_doors(apply: Apply, layer: Layer, root: Path) -> None:
    disk = {"type": tarfile.BLKTYPE, "devmajor": 254, "devminor": 0}
    apply(layer(("d", disk, b""), ("h", HARD | {"linkname": "d"}, b""), ("h", {}, b"written")))
    assert stat.S_ISBLK((root / "d").lstat().st_mode)
    assert (root / "h").read_bytes() == b"written", "the device was replaced, not written to"
    for below in ("d/x", "h/x"):
        with pytest.raises(BadArchive, match="cannot unpack"):
            apply(layer(("d", disk, b""), ("h", disk, b""), below))


@pytest.mark.root
def test_overlay_attributes_never_arrive(apply: Apply, layer: Layer, root: Path) -> None:
    names = ("trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.opaque", "trusted.overlay.overlay.opaque",
             "user.overlay.redirect", "user.overlay.whiteout", "security.selinux", "security.ima")  # fmt: skip
    headers = {f"SCHILY.xattr.{name}": "y" for name in names} | {"SCHILY.xattr.user.kept": "1"}
    apply(layer(("f", {"pax_headers": headers}, b"x"), ("d", DIR | {"pax_headers": headers}, b"")))
    for name in ("f", "d"):
        assert os.listxattr(root / name) == ["user.kept"]


def opaque(root: Path, count: int, directories: int) -> float:
    """CPU seconds that ``count`` opaque whiteouts in so many directories take."""
    buffer = io.BytesIO()
    header = tarfile.TarInfo("x")
    for number in range(count):
        at = number * directories // count
        header.name = f"d{at // 100}/e{at % 100}/.wh..wh..opq"
        buffer.write(header.tobuf(tarfile.USTAR_FORMAT))
    buffer.write(bytes(1024))
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    try:
        began = time.process_time()
        assert unpack.apply_layer(io.BytesIO(buffer.getvalue()), fd).entries == count
        return time.process_time() - began
    finally:
        os.close(fd)


@pytest.mark.root
def test_a_hundred_thousand_opaque_whiteouts(memory: Path) -> None:
    spent = opaque(memory / "many", 100_000, 1000)
    assert os.getxattr(memory / "many/d7/e7", "trusted.overlay.opaque") == b"y"
    assert spent < 2, f"{spent:.2f} s of CPU"


@pytest.mark.root
def test_opaque_whiteouts_cost_the_same_each(memory: Path) -> None:
    few, many = opaque(memory / "few", 4000, 4000), opaque(memory / "many", 32_000, 32_000)
    assert many < 16 * few, f"{few:.2f} s, {many:.2f} s for eight times as many"


def cuts(archive: bytes, count: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(len(archive)), count))


def _two_layers(layer: Layer) -> bytes:
    noise = random.Random(5).randbytes(40_000)
    return made.docker_archive("bad:1", [layer(("f", {}, noise), ("l", SYM | {"linkname": "f"}, b"")), layer("g")])


def _cut_everywhere(store: Store, archive: bytes, count: int) -> None:
    end = len(archive.rstrip(b"\0"))
    for place in cuts(archive, count, 11):
        if place < end:
            with pytest.raises(CoveyError):
                store.load(archive[:place])
    store.untouched()


def test_archives_cut_short(store: Store, layer: Layer) -> None:
    _cut_everywhere(store, _two_layers(layer), 16)


@pytest.mark.suite
@pytest.mark.long
def test_archives_cut_at_a_thousand_places(store: Store, layer: Layer) -> None:
    _cut_everywhere(store, _two_layers(layer), 1000)
    _cut_everywhere(store, gzip.compress(_two_layers(layer)), 1000)


def _flip_everywhere(store: Store, archive: bytes, image_id: str, count: int) -> None:
    """A flipped bit is an error, or it changed nothing that an image is made of."""
    rng = random.Random(13)
    for _ in range(count):
        bent = bytearray(archive)
        bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
        try:
            (loaded,) = store.images.load_archive(io.BytesIO(bytes(bent)))
        except CoveyError:
            pass
        else:
            # The config is named by its digest, and its layers in it; a flip in it makes another, sound image.
            assert loaded.image.id == image_id or loaded.image.document != {}
            store.images.remove(loaded.image.id, force=True)
    store.untouched()


def test_archives_with_flipped_bits(store: Store, layer: Layer, tmp_path: Path) -> None:
    archive = _two_layers(layer)
    other = ImageStore(tmp_path / "other")
    (loaded,) = other.load_archive(io.BytesIO(archive))
    _flip_everywhere(store, archive, loaded.image.id, 12)
    _flip_everywhere(store, gzip.compress(archive), loaded.image.id, 8)


@pytest.mark.suite
@pytest.mark.long
def test_archives_with_many_flipped_bits(store: Store, layer: Layer, tmp_path: Path) -> None:
    archive = _two_layers(layer)
    other = ImageStore(tmp_path / "other")
    (loaded,) = other.load_archive(io.BytesIO(archive))
    _flip_everywhere(store, archive, loaded.image.id, 1500)


def test_one_bad_layer_stops_the_others(store: Store, layer: Layer) -> None:
    """Layers grow at the same time; when one fails none appears, and its error is the one that is told."""
    good = [layer(*((f"d{n}/f{m}", {}, b"x" * 5000) for m in range(60))) for n in range(4)]
    bad = layer("ok") + b"no tar" * 200
    bad = bad[:1024] + b"x" * 512 + bad[1024:]
    for place in range(5):
        with pytest.raises(BadArchive, match="checksum"):
            store.load(archive_of(*good[:place], bad, *good[place:]))
        store.untouched()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("unpack")]


def _mounted(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    syscalls.mount("tmpfs", str(place), "tmpfs", 0, f"size={size}")
    try:
        yield place
    finally:
        syscalls.umount2(str(place))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system that is soon full."""
    yield from _mounted(tmp_path / "small", "4m")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A file system that is no disk, for what is measured."""
    yield from _mounted(tmp_path / "memory", "512m")


@pytest.mark.root
def test_a_full_disk(small: Path, layer: Layer) -> None:
    """Loading, importing and tagging fail with the path's name; removing works, and makes room."""
    store = Store(small / "data", made.docker_archive("kept:1", [layer(("f", {}, os.urandom(300_000)))]))
    count = itertools.count(1)

    def fill() -> None:
        while number := next(count):
            store.load(made.docker_archive(f"more:{number}", [layer((f"f{number}", {}, os.urandom(200_000)))]))

    with pytest.raises(DiskFull, match=str(small)):
        fill()
    assert next(count) > 3
    with open(small / "filler", "ab", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    before = store.census()
    for attempt in (
        lambda: store.load(archive_of(layer("x"))),
        lambda: store.images.import_rootfs(io.BytesIO(layer(("y", {}, os.urandom(9000)))), "y:1"),
    ):
        with pytest.raises(DiskFull):
            attempt()
        assert store.census() == before
    assert store.images.remove("more:1").freed > 300_000
    assert list(store.images.fsck()) == []
    store.load(made.docker_archive("again:1", [layer(("f", {}, os.urandom(100_000)))]))
    assert {name for image in ImageStore(small / "data/images").list() for name in image.repo_tags} >= {"again:1", "kept:1"}


def test_errors_say_what_to_do(store: Store) -> None:
    for data, words in (
        (b"", "not an image archive"),
        (b"hello" * 200, "not a tar archive"),
        (gzip.compress(b"x" * 2000)[:-8], "cut short|damaged"),
        (made.tar([("manifest.json", 0o644, b"[]")]), "not a list of images"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            store.load(data)
    store.untouched()
