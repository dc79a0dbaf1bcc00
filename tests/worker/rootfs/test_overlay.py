"""Container root file systems on a real overlayfs."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey.errors import Internal, NotFound
from covey.testing import images
from worker.images import unpack
from worker.images.store import ImageStore
from worker.kernel import mounts, syscalls, trees
from worker.rootfs.overlay import Overlay

pytestmark = pytest.mark.root


class Place:
    """A layer directory, an Overlay and a mount point below one temporary directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.overlay = Overlay(base / "rootfs")
        self.target = base / "run" / "rootfs"

    def layer(self, name: str, *members: tuple[str, int, bytes | str | None]) -> Path:
        directory = self.base / name
        directory.mkdir()
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fchmod(fd, 0o755)
            unpack.apply_layer(io.BytesIO(images.tar(members)), fd)
        finally:
            os.close(fd)
        return directory


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.overlay.unmount(made.target)
    assert mounts.mount_points(str(tmp_path)) == []


def test_layers_whiteouts_and_changes(place: Place) -> None:
    base = place.layer(
        "base",
        ("etc/passwd", 0o644, b"root"),
        ("etc/gone", 0o644, b"x"),
        ("opaque/old", 0o644, b"x"),
        ("tmp", 0o1777, None),
        ("dir/a", 0o644, b"a"),
        ("dir/b", 0o644, b"b"),
        ("keep", 0o600, b"keep"),
    )
    top = place.layer(
        "top",
        ("etc/.wh.gone", 0o644, b""),
        ("opaque/.wh..wh..opq", 0o644, b""),
        ("opaque/new", 0o644, b"n"),
        ("tmp", 0o1777, None),
    )
    place.overlay.prepare("c", [top, base])
    place.overlay.prepare("c", [top, base])
    place.overlay.mount("c", place.target)
    place.overlay.mount("c", place.target)
    assert mounts.mount_points(str(place.target)) == [str(place.target)], "mounting twice mounts once"
    root = place.target
    assert os.listdir(root / "etc") == ["passwd"]
    assert os.listdir(root / "opaque") == ["new"]
    assert stat.S_IMODE(os.stat(root / "tmp").st_mode) == 0o1777
    assert stat.S_IMODE(os.stat(root).st_mode) == 0o755

    (root / "etc/passwd").write_text("changed")
    (root / "added").write_text("12345")
    (root / "keep").unlink()
    trees.remove_path(root / "dir")
    (root / "dir").mkdir()
    (root / "dir/c").write_text("c")
    (root / "link").symlink_to("/etc/shadow")
    assert place.overlay.diff("c") == [
        {"Path": "/added", "Kind": 1},
        {"Path": "/dir", "Kind": 0},
        {"Path": "/dir/a", "Kind": 2},
        {"Path": "/dir/b", "Kind": 2},
        {"Path": "/dir/c", "Kind": 1},
        {"Path": "/etc", "Kind": 0},
        {"Path": "/etc/passwd", "Kind": 0},
        {"Path": "/keep", "Kind": 2},
        {"Path": "/link", "Kind": 1},
    ]
    assert place.overlay.size("c") == len("changed" + "12345" + "c")
    assert (base / "etc/passwd").read_text() == "root", "layers are shared: nobody writes to them"


def test_teardown_is_safe_without_setup(place: Place) -> None:
    place.overlay.unmount(place.target)
    place.overlay.remove("never")
    with pytest.raises(NotFound):
        place.overlay.mount("never", place.target)
    with pytest.raises(Internal, match="no layers"):
        place.overlay.prepare("empty", [])
    layer = place.layer("base", ("f", 0o644, b"x"))
    place.overlay.prepare("c", [layer])
    place.overlay.mount("c", place.target)
    assert Overlay(place.base / "rootfs").containers() == ["c"]
    with open(place.target / "f") as held:
        place.overlay.unmount(place.target)
        assert held.read() == "x", "a busy root is detached, whoever reads it may finish"
    place.overlay.unmount(place.target)
    place.overlay.remove("c")
    assert place.overlay.containers() == []
    assert os.listdir(place.base / "rootfs/removed") == []


def test_a_container_keeps_its_files_over_a_remount(place: Place) -> None:
    layer = place.layer("base", ("f", 0o644, b"x"))
    place.overlay.prepare("c", [layer])
    place.overlay.mount("c", place.target)
    (place.target / "mine").write_text("kept")
    place.overlay.unmount(place.target)
    fresh = Overlay(place.base / "rootfs")
    fresh.mount("c", place.target)
    assert (place.target / "mine").read_text() == "kept"


@pytest.mark.parametrize("way", ["one option a layer", "mount(2)"])
@pytest.mark.parametrize("name", ["plain", "l" * 120 + ":,x"])
def test_very_many_layers(place: Place, monkeypatch: pytest.MonkeyPatch, way: str, name: str) -> None:
    if way == "mount(2)":
        real = mounts.new_filesystem

        def old_kernel(fstype: str, options: list[str], *rest: object, **more: object) -> int:
            if any(option.startswith("lowerdir+") for option in options):
                raise OSError(errno.EINVAL, "unknown parameter 'lowerdir+'")
            return real(fstype, options)

        monkeypatch.setattr(mounts, "new_filesystem", old_kernel)
    layers = []
    for number in range(125):
        directory = place.base / name / f"{number:064}" / "diff"
        directory.mkdir(parents=True)
        (directory / f"f{number}").write_text(str(number))
        (directory / "same").write_text(str(number))
        layers.append(directory)
    place.overlay.prepare("c", layers)
    place.overlay.mount("c", place.target)
    assert len(os.listdir(place.target)) == 126
    assert (place.target / "same").read_text() == "0", "the first layer given is the topmost"
    (place.target / "f124").write_text("writable")


def test_a_target_behind_a_link(place: Place) -> None:
    """/var/run is a link to /run: mountinfo knows only the real path."""
    place.overlay.prepare("c", [place.layer("base", ("f", 0o644, b"x"))])
    place.target.parent.mkdir(parents=True)
    (place.base / "link").symlink_to(place.target.parent)
    for _ in range(2):
        place.overlay.mount("c", place.base / "link" / "rootfs")
    assert mounts.mount_points(str(place.target)) == [str(place.target)]
    place.overlay.unmount(place.base / "link" / "rootfs")
    assert mounts.mount_points(str(place.target)) == []


def test_busybox_runs_from_its_image(place: Place, tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images", tmp_path / "rootfs/layers")
    archive = images.docker_archive("hello", [images.busybox_rootfs_tar({"bin/greet": b"#!/bin/sh\nid -un; whoami"})])
    (loaded,) = store.load_archive(io.BytesIO(archive))
    place.overlay.prepare("c", store.layer_dirs(loaded.image))
    place.overlay.mount("c", place.target)
    command = ["chroot", str(place.target), "/bin/greet"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout == "root\nroot\n"
    assert place.overlay.diff("c") == []


def test_a_very_deep_tree_can_be_removed(place: Place) -> None:
    layer = place.layer("base", ("f", 0o644, b"x"))
    place.overlay.prepare("c", [layer])
    program = "import os\nfor _ in range(1500):\n os.mkdir('d'*20); os.chdir('d'*20)\nopen('bottom','w')"
    subprocess.run([sys.executable, "-c", program], cwd=place.overlay.upper("c"), check=True)
    place.overlay.remove("c")
    assert os.listdir(place.base / "rootfs/removed") == []


def test_errors_say_what_and_where(place: Place) -> None:
    layer = place.layer("base", ("f", 0o644, b"x"))
    place.overlay.prepare("c", [layer])
    trees.remove_path(layer)
    with pytest.raises(Internal, match=f"container c at {place.target}"):
        place.overlay.mount("c", place.target)


def test_a_full_disk_is_one_line_and_leaves_nothing(place: Place) -> None:
    small = place.base / "small"
    small.mkdir()
    syscalls.mount("tmpfs", str(small), "tmpfs", 0, "size=64k,nr_inodes=6")
    try:
        overlay = Overlay(small / "rootfs")
        layer = place.layer("base", ("f", 0o644, b"x"))
        with pytest.raises(Internal) as full:
            overlay.prepare("c", [layer])
        assert full.value.message == (
            f"cannot prepare the root file system of container c in {small}/rootfs/containers/c: "
            "no space left on device; free space there or remove unused images"
        )
        assert overlay.containers() == []
    finally:
        syscalls.umount2(str(small))


def test_what_is_mounted_upon_is_there_before_the_first_mount_and_no_change(place: Place) -> None:
    base = place.layer("base", ("etc", 0o750, None), ("etc/hosts", 0o600, b"own"), ("proc", 0o555, None))
    place.overlay.prepare("c", [base])
    place.overlay.furnish("c")
    upper = place.overlay.upper("c")
    assert sorted(os.listdir(upper)) == ["dev", "etc", "sys"]
    assert sorted(os.listdir(upper / "etc")) == ["hostname", "resolv.conf"]
    assert place.overlay.diff("c") == []
    assert place.overlay.size("c") == 0
    place.overlay.mount("c", place.target)
    assert stat.S_IMODE((place.target / "etc").stat().st_mode) == 0o750
    assert (place.target / "etc/hosts").read_bytes() == b"own"
    assert (place.target / "etc/hostname").read_bytes() == b""


def test_an_etc_that_is_a_link_or_missing_is_left_to_the_start(place: Place) -> None:
    for name, member in (("link", ("etc", 0o777, "elsewhere")), ("none", ("bin/sh", 0o755, b""))):
        place.overlay.prepare(name, [place.layer(name, member)])
        place.overlay.furnish(name)
        assert sorted(os.listdir(place.overlay.upper(name))) == ["dev", "proc", "sys"]


def test_a_file_that_an_upper_layer_has_removed_is_made_again(place: Place) -> None:
    base = place.layer("base", ("etc/hosts", 0o644, b"old"), ("etc/passwd", 0o644, b"root"))
    top = place.layer("top", ("etc/.wh.hosts", 0o644, b""))
    place.overlay.prepare("c", [top, base])
    place.overlay.furnish("c")
    place.overlay.mount("c", place.target)
    assert sorted(os.listdir(place.target / "etc")) == ["hostname", "hosts", "passwd", "resolv.conf"]
    assert (place.target / "etc/hosts").read_bytes() == b""
