"""The applier: layers come out as they went in, and a malicious one never leaves its root."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.images import unpack
from worker.images.tar_stream import BadArchive, Limits

SYM: dict[str, Any] = {"type": tarfile.SYMTYPE}
HARD: dict[str, Any] = {"type": tarfile.LNKTYPE}
DIR: dict[str, Any] = {"type": tarfile.DIRTYPE, "mode": 0o755}

Apply = Callable[..., unpack.Applied]
Layer = Callable[..., bytes]
Named = tuple[str, str, str]


def test_a_tree_comes_out(apply: Apply, layer: Layer, root: Path) -> None:
    applied = apply(
        layer(
            ("./", DIR | {"mode": 0o711}, b""),
            ("./usr/lib/", DIR | {"mtime": 1000}, b""),
            ("./usr/lib/a", {"mode": 0o4750, "mtime": 5}, b"hello"),
            ("usr/lib/b", HARD | {"linkname": "./usr/lib/a"}, b""),
            ("lib", SYM | {"linkname": "/usr/lib", "mtime": 7}, b""),
            ("lib/through", {}, b"via link"),
            ("deep/er/file", {}, b""),
            ("pipe", {"type": tarfile.FIFOTYPE, "mode": 0o600}, b""),
        )
    )
    assert applied == unpack.Applied(size=13, entries=8)
    a, b = root / "usr/lib/a", root / "usr/lib/b"
    assert a.read_bytes() == b"hello"
    assert os.stat(a).st_ino == os.stat(b).st_ino
    assert (stat.S_IMODE(os.stat(a).st_mode), os.stat(a).st_mtime) == (0o4750, 5)
    assert os.readlink(root / "lib") == "/usr/lib"
    assert os.lstat(root / "lib").st_mtime == 7
    assert (root / "usr/lib/through").read_bytes() == b"via link"
    assert os.stat(root / "usr/lib").st_mtime == 1000, "a directory's time is set after its content"
    assert stat.S_IMODE(os.stat(root).st_mode) == 0o711
    assert stat.S_IMODE(os.stat(root / "deep/er").st_mode) == 0o755
    assert stat.S_ISFIFO(os.stat(root / "pipe").st_mode)


def test_later_entries_win(apply: Apply, layer: Layer, root: Path) -> None:
    apply(
        layer(
            "d/sub/x",
            ("d/sub", SYM | {"linkname": "../e"}, b""),
            "e/y",
            "d/sub/z",
            ("f", SYM | {"linkname": "e/y"}, b""),
            ("f", {}, b"new"),
            ("dir", DIR, b""),
            ("dir", DIR | {"mode": 0o700}, b""),
        )
    )
    assert sorted(os.listdir(root / "e")) == ["y", "z"]
    assert (root / "e/y").read_text() == "e/y", "a file entry replaces a link, it never writes through it"
    assert (root / "f").read_text() == "new"
    assert stat.S_IMODE(os.stat(root / "dir").st_mode) == 0o700


MALICIOUS: dict[str, list[Any]] = {
    "dots": ["../canary"],
    "dots inside": ["a/../../canary"],
    "absolute dots": ["/../../canary"],
    "link then write": [("l", SYM | {"linkname": ".."}, b""), "l/canary"],
    "absolute link then write": [("l", SYM | {"linkname": "/"}, b""), "l/../../canary"],
    "chain of links": [
        ("a", SYM | {"linkname": "b/.."}, b""),
        ("b", SYM | {"linkname": "../../.."}, b""),
        "a/canary",
        "b/canary",
    ],
    "hard link outside": [("h", HARD | {"linkname": "../canary"}, b""), ("h", {}, b"dead")],
    "hard link absolute": [("h", HARD | {"linkname": "/../../canary"}, b"")],
    "hard link to link": [
        ("l", SYM | {"linkname": "../canary"}, b""),
        ("h", HARD | {"linkname": "l"}, b""),
        ("h", {}, b"dead"),
    ],
    "hard link through link": [
        ("l", SYM | {"linkname": ".."}, b""),
        ("h", HARD | {"linkname": "l/canary"}, b""),
    ],
    "magic link": [("l", SYM | {"linkname": "/proc/self/cwd"}, b""), "l/canary"],
    "whiteout of parent": [".wh..."],
    "whiteout of self": [".wh.."],
    "whiteout of nothing": ["d/.wh."],
    "whiteout through link": [("l", SYM | {"linkname": ".."}, b""), "l/.wh.canary"],
    "directory over link": [("l", SYM | {"linkname": ".."}, b""), ("l", DIR | {"mode": 0o777}, b""), "l/canary"],
    "loop of links": [("a", SYM | {"linkname": "b"}, b""), ("b", SYM | {"linkname": "a"}, b""), "a/x"],
    "root as file": [("/", {}, b"x")],
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_nothing_leaves_the_root(apply: Apply, layer: Layer, case: str) -> None:
    try:
        apply(layer(*MALICIOUS[case]))
    except BadArchive:
        pass


@pytest.mark.parametrize("case", ["dots", "dots inside", "hard link outside", "whiteout of parent", "loop of links"])
def test_what_can_only_be_meant_ill_is_refused(apply: Apply, layer: Layer, case: str) -> None:
    with pytest.raises(BadArchive):
        apply(layer(*MALICIOUS[case]))


def test_limits_on_paths(apply: Apply, layer: Layer) -> None:
    for name in ("n" * 256, "d/" * 2100 + "x"):
        with pytest.raises(BadArchive, match="too long"):
            apply(layer((name, {}, b"")))


def test_parents_take_the_attributes_they_have_below(apply: Apply, layer: Layer, root: Path, tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    (lower / "tmp").mkdir(parents=True)
    os.chmod(lower / "tmp", 0o1777)
    fd = os.open(lower, os.O_RDONLY)
    try:
        apply(layer("tmp/new"), lowers=(fd,))
    finally:
        os.close(fd)
    assert stat.S_IMODE(os.stat(root / "tmp").st_mode) == 0o1777


def test_sparse_and_large_names(apply: Apply, layer: Layer, root: Path) -> None:
    name = "/".join(["d" * 200] * 10)
    apply(layer((name, {}, b"deep")), limits=Limits())
    assert (root / name).read_bytes() == b"deep"


NAMES = ["a", "b", "a/b", "a/canary", "b/canary", "../canary", "a/../canary", "a/.wh.canary", ".wh.a", "."]
TARGETS = ["..", "../..", "/..", "a", "b", "../canary", "a/canary", "b/..", "/../canary"]
LINKS = st.tuples(st.sampled_from(["a", "b"]), st.just("sym"), st.sampled_from(TARGETS))
OTHERS = st.tuples(st.sampled_from(NAMES), st.sampled_from(["file", "dir", "hard"]), st.sampled_from(TARGETS))
ENTRIES = st.tuples(st.lists(LINKS, min_size=1, max_size=3), st.lists(OTHERS | LINKS, min_size=1, max_size=6))


@pytest.mark.suite
@settings(max_examples=250, deadline=None)
@given(ENTRIES)
def test_no_sequence_of_entries_leaves_the_root(entries: tuple[list[Named], list[Named]]) -> None:
    buffer = io.BytesIO()
    kinds = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, link in entries[0] + entries[1]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kinds[kind], link, 0o755
            info.uid, info.gid = os.getuid(), os.getgid()
            archive.addfile(info)
    with tempfile.TemporaryDirectory(prefix="covey-test-") as outer:
        canary, root = Path(outer, "canary"), Path(outer, "root")
        canary.write_text("alive")
        root.mkdir()
        before = os.stat(canary), os.stat(outer)
        fd = os.open(root, os.O_RDONLY)
        try:
            unpack.apply_layer(io.BytesIO(buffer.getvalue()), fd)
        except (BadArchive, PermissionError):
            pass
        finally:
            os.close(fd)
        after = os.stat(canary), os.stat(outer)
        assert sorted(os.listdir(outer)) == ["canary", "root"]
        for old, new in zip(before, after):
            assert (old.st_mtime_ns, old.st_ctime_ns, old.st_nlink) == (new.st_mtime_ns, new.st_ctime_ns, new.st_nlink)


@pytest.mark.root
def test_devices_owners_and_attributes(apply: Apply, layer: Layer, root: Path) -> None:
    headers = {"SCHILY.xattr.user.note": "n", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}
    capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    headers["SCHILY.xattr.security.capability"] = capability.decode("latin-1")
    apply(
        layer(
            ("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "mode": 0o666, "uid": 7}, b""),
            ("owned", {"uid": 1000, "gid": 100, "mode": 0o6755, "pax_headers": headers}, b"x"),
            ("link", SYM | {"linkname": "nowhere", "uid": 5}, b""),
        )
    )
    null, owned = os.stat(root / "null"), os.stat(root / "owned")
    assert (null.st_rdev, stat.S_IMODE(null.st_mode), null.st_uid) == (os.makedev(1, 3), 0o666, 7)
    assert (owned.st_uid, owned.st_gid, stat.S_IMODE(owned.st_mode)) == (1000, 100, 0o6755)
    assert os.lstat(root / "link").st_uid == 5
    assert os.getxattr(root / "owned", "user.note") == b"n"
    assert os.getxattr(root / "owned", "security.capability") == capability
    assert "trusted.overlay.redirect" not in os.listxattr(root / "owned"), "a layer must not steer overlayfs"


@pytest.mark.root
def test_whiteouts_in_overlay_form(apply: Apply, layer: Layer, root: Path) -> None:
    apply(
        layer(
            "d/.wh.gone",
            "o/.wh..wh..opq",
            "o/kept",
            ".wh.replaced",
            ("replaced", DIR, b""),
            ("first", DIR, b""),
            ".wh.first",
            ".wh..wh.plnk/x",
        )
    )
    gone = os.lstat(root / "d/gone")
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    for opaque in ("o", "replaced", "first"):
        assert os.getxattr(root / opaque, "trusted.overlay.opaque") == b"y", opaque
    assert sorted(os.listdir(root)) == ["d", "first", "o", "replaced"]
