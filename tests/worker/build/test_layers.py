"""A container's upper directory as a layer: the same bytes each time, and the same tree when it is unpacked again."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path

import pytest

from covey.errors import InvalidArgument
from covey.testing import images
from worker.build import layer_tar
from worker.images import commit, draft
from worker.images.reference import parse_tagged
from worker.images.store import ImageStore
from worker.kernel import trees
from worker.rootfs.overlay import Overlay

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(directory) / name
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            attributes = {} if path.is_symlink() else {key: os.getxattr(path, key) for key in os.listxattr(path)}
            found[str(path.relative_to(root))] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
                int(status.st_mtime) if kind != stat.S_IFDIR else 0,
                os.readlink(path) if path.is_symlink() else "",
                path.read_bytes() if stat.S_ISREG(status.st_mode) else b"",
                status.st_nlink if stat.S_ISREG(status.st_mode) else 0,
                tuple(sorted((key, value) for key, value in attributes.items() if not key.startswith("trusted.overlay"))),
            )
    return found


def change(root: Path) -> None:
    """Everything a container may do to its files."""
    (root / "new").mkdir(mode=0o1777)
    (root / "new" / "file").write_bytes(b"x" * 100_000)
    os.chown(root / "new" / "file", 1234, 70_000)
    (root / "new" / "suid").write_text("s")
    (root / "new" / "suid").chmod(0o4755)
    os.link(root / "new" / "file", root / "hard")
    (root / "soft").symlink_to("/absolute/nowhere")
    os.lchown(root / "soft", 5, 6)
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    os.setxattr(root / "new" / "file", "user.note", b"\x00\xff binary")
    os.setxattr(root / "new" / "suid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.utime(root / "new" / "suid", (1, 1_000_000_000))
    name = "long" * 60
    (root / name).mkdir()
    (root / name / ("é" + name)).write_text("long")
    (root / os.fsdecode(b"not-utf8-\xff")).write_text("bytes")
    (root / "etc" / "group").unlink()
    for path in (root / "www").iterdir():
        path.unlink()
    (root / "www").rmdir()
    (root / "www").mkdir()
    (root / "www" / "fresh").write_text("fresh")
    (root / "tmp").rmdir()
    (root / "bin" / "busybox").chmod(0o711)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def test_round_trip(store: ImageStore, tmp_path: Path) -> None:
    (base,) = store.load_archive(io.BytesIO(images.docker_archive("b:1", [images.busybox_rootfs_tar()])))
    overlay = Overlay(tmp_path / "rootfs")
    overlay.prepare("one", store.layer_dirs(base.image))
    first, second = tmp_path / "first", tmp_path / "second"
    overlay.mount("one", first)
    try:
        change(first)
        wanted = tree(first)
        tars = [b"".join(layer_tar.pack(overlay.upper("one"))) for _ in range(2)]
        assert tars[0] == tars[1]
        with store.content.lease() as lease:
            layer = commit.add_layer(store, base.image.layers, layer_tar.Stream(iter([tars[0]])), lease)
            assert layer is not None
            assert layer.diff_id == "sha256:" + hashlib.sha256(tars[0]).hexdigest()
            made = draft.follow(draft.begin(base.image), {"Cmd": ["x"]}, "2026-01-01T00:00:00Z", "test", layer=layer)
            stored = commit.store(store, made, [parse_tagged("made:1")], lease)
        assert stored.id == made.id
        assert store.resolve("made:1").layers[-1] == layer
        overlay.prepare("two", store.layer_dirs(stored))
        overlay.mount("two", second)
        assert tree(second) == wanted
    finally:
        for place, name in ((first, "one"), (second, "two")):
            overlay.unmount(place)
            overlay.remove(name)


def test_nothing_is_no_layer(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    with store.content.lease() as lease:
        assert commit.add_layer(store, (), layer_tar.Stream(layer_tar.pack(tmp_path / "upper")), lease) is None


def test_what_a_layer_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "upper" / "d").mkdir(parents=True)
    (tmp_path / "upper" / "d" / ".wh.passwd").write_text("a trap")
    with pytest.raises(InvalidArgument, match=r"/d/\.wh\.passwd"):
        list(layer_tar.pack(tmp_path / "upper"))
    os.rename(tmp_path / "upper" / "d" / ".wh.passwd", tmp_path / "upper" / ".wh.d")
    with pytest.raises(InvalidArgument, match=r"/\.wh\.d"):
        list(layer_tar.pack(tmp_path / "upper"))
    (tmp_path / "upper" / ".wh.d").unlink()
    os.setxattr(tmp_path / "upper" / "d", "trusted.overlay.redirect", b"/elsewhere")
    with pytest.raises(InvalidArgument, match="redirect"):
        list(layer_tar.pack(tmp_path / "upper"))


def test_deep_trees_and_links_out(tmp_path: Path) -> None:
    """A tree far deeper than Python recurses, and a link that would lead a careless walk out."""
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "out").symlink_to(tmp_path)
    fd = os.open(upper, os.O_RDONLY)
    for _ in range(1050):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    try:
        data = b"".join(layer_tar.pack(upper))
    finally:
        # pytest's own clearing recurses.
        trees.remove_path(upper)
    assert data.count(b"/d/d/d/") > 0
    assert str(tmp_path).encode() in data
    assert b"upper/" not in data.replace(str(tmp_path).encode(), b"")
