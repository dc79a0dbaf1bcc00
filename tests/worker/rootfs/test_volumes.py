"""Local volumes: names, lifetime, driver options, and filling an empty one from the image."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from covey.errors import Conflict, Internal, InvalidArgument, NotFound
from worker.kernel import mounts
from worker.rootfs import views, volume_options
from worker.rootfs.volumes import ANONYMOUS, Volumes


class Node:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.users: dict[str, list[str]] = {}
        self.volumes = self.opened()

    def opened(self) -> Volumes:
        return Volumes(self.root, in_use=lambda: self.users, now=lambda: 1_700_000_000.5)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "volumes")


def test_create_get_restart(node: Node) -> None:
    made = node.volumes.create("data", labels={"a": "b"})
    assert made.mountpoint == node.root / "data" / "_data"
    assert made.mountpoint.is_dir()
    assert node.volumes.create("data", labels={"other": "labels"}) == made, "creating it again finds it"
    assert node.opened().get("data") == made
    assert views.volume(made) == {
        "Name": "data",
        "Driver": "local",
        "Mountpoint": str(made.mountpoint),
        "CreatedAt": "2023-11-14T22:13:20.5Z",
        "Labels": {"a": "b"},
        "Scope": "local",
        "Options": None,
    }


def test_anonymous(node: Node) -> None:
    volume = node.volumes.create()
    assert len(volume.name) == 64
    assert ANONYMOUS in volume.labels


@pytest.mark.parametrize("name", ["a", "/abs", "../up", "a/b", ".hidden", "-x", "sp ace", "n\n", "é" * 3, "x" * 256])
def test_bad_names(node: Node, name: str) -> None:
    with pytest.raises(InvalidArgument, match="volume name"):
        node.volumes.create(name)
    assert os.listdir(node.root) == [".removed"]


def test_refusals(node: Node) -> None:
    with pytest.raises(NotFound, match='plugin "nfsx" not found'):
        node.volumes.create("data", driver="nfsx")
    with pytest.raises(NotFound, match="get nope: no such volume"):
        node.volumes.get("nope")
    with pytest.raises(NotFound, match="no such volume"):
        node.volumes.remove("nope")
    node.volumes.remove("nope", force=True)
    node.volumes.create("data")
    with pytest.raises(Conflict, match="other options"):
        node.volumes.create("data", driver_opts={"type": "tmpfs", "device": "tmpfs"})
    node.users["data"] = ["web"]
    with pytest.raises(Conflict) as refused:
        node.volumes.remove("data", force=True)
    assert refused.value.message == "remove data: volume is in use - [web]"
    node.users.clear()
    node.volumes.remove("data")
    assert os.listdir(node.root) == [".removed"]


def test_list_and_prune(node: Node) -> None:
    node.volumes.create("alpha", labels={"tier": "db"})
    node.volumes.create("beta")
    anonymous, used = node.volumes.create(), node.volumes.create()
    node.users = {"alpha": ["web"], used.name: ["web"]}

    def names(**filters: list[str]) -> set[str]:
        return {volume.name for volume in node.volumes.list(filters)}

    assert names(name=["lph"]) == {"alpha"}
    assert names(label=["tier=db"]) == {"alpha"}
    assert names(dangling=["true"]) == {"beta", anonymous.name}
    assert names(dangling=["false"]) == {"alpha", used.name}
    assert names(driver=["other"]) == set()
    with pytest.raises(InvalidArgument, match="colour"):
        names(colour=["red"])
    (anonymous.mountpoint / "file").write_bytes(b"x" * 1000)
    assert node.volumes.prune() == ([anonymous.name], 1000)
    assert node.volumes.prune({"all": ["true"], "label!": ["tier"]}) == (["beta"], 0)
    assert {volume.name for volume in node.volumes.list()} == {"alpha", used.name}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "1"}, "invalid option"),
        ({"type": "tmpfs"}, "missing device"),
        ({"device": "/x"}, "missing type"),
        ({"o": "bind", "device": "relative"}, "absolute"),
        ({"type": "none", "o": "ro", "device": "/x"}, "o=bind"),
        ({"o": "bind,size=1", "device": "/x"}, "makes no sense"),
    ],
)
def test_bad_options(node: Node, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        node.volumes.create("data", driver_opts=options)


def test_options_plan() -> None:
    nfs = volume_options.plan("v", {"type": "nfs", "o": "addr=10.0.0.1,rw,nolock", "device": ":/export"})
    assert nfs is not None
    assert (nfs.bind, nfs.fstype, nfs.source, nfs.options) == (False, "nfs", ":/export", ("addr=10.0.0.1", "nolock"))
    bind = volume_options.plan("v", {"type": "none", "o": "rbind,ro", "device": "/srv"})
    assert bind is not None
    assert (bind.bind, bind.recursive, bool(bind.attributes & 1)) == (True, True, True)


def test_a_crash_before_the_record_is_no_volume(node: Node) -> None:
    (node.root / "half" / "_data").mkdir(parents=True)
    fresh = node.opened()
    assert fresh.list() == []
    assert fresh.create("half").name == "half"


def fill(rootfs: Path) -> None:
    """A root file system with a bit of everything below /srv/data, and links that lead elsewhere."""
    data = rootfs / "srv/data"
    (data / "sub").mkdir(parents=True)
    (data / "file").write_text("content")
    os.chmod(data / "file", 0o640)
    os.link(data / "file", data / "sub/same")
    (data / "out").symlink_to("/etc/passwd")
    os.mkfifo(data / "pipe", 0o600)
    os.setxattr(data / "file", "user.note", b"n")
    os.chmod(data, 0o1770)
    (rootfs / "var").symlink_to("/srv")
    (rootfs / "escape").symlink_to("../../../../..")


def test_populate(node: Node, tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    fill(rootfs)
    volume = node.volumes.create("data")
    assert node.volumes.populate("data", rootfs, "/nowhere") is False
    assert node.volumes.populate("data", rootfs, "/srv/data/file") is False
    assert node.volumes.populate("data", rootfs, "/var/data"), "links are followed inside the root"
    copied = volume.mountpoint
    assert (copied / "file").read_text() == "content"
    assert stat.S_IMODE(os.stat(copied / "file").st_mode) == 0o640
    assert os.stat(copied / "file").st_ino == os.stat(copied / "sub/same").st_ino
    assert os.readlink(copied / "out") == "/etc/passwd"
    assert stat.S_ISFIFO(os.stat(copied / "pipe").st_mode)
    assert os.getxattr(copied / "file", "user.note") == b"n"
    assert stat.S_IMODE(os.stat(copied).st_mode) == 0o1770
    assert node.volumes.populate("data", rootfs, "/srv") is False, "only an empty volume is filled"
    (tmp_path / "secret").write_text("host")
    node.volumes.create("other")
    assert node.volumes.populate("other", rootfs, "/escape")
    assert sorted(os.listdir(node.root / "other/_data")) == ["escape", "srv", "var"], "'..' stops at the root"


@pytest.mark.root
def test_populate_keeps_owners_and_devices(node: Node, tmp_path: Path) -> None:
    data = tmp_path / "rootfs/data"
    data.mkdir(parents=True)
    (data / "f").write_text("x")
    os.chown(data / "f", 1234, 567)
    os.mknod(data / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chown(data, 33, 33)
    volume = node.volumes.create("data")
    assert node.volumes.populate("data", tmp_path / "rootfs", "data")
    owner = os.stat(volume.mountpoint / "f")
    assert (owner.st_uid, owner.st_gid) == (1234, 567)
    assert os.stat(volume.mountpoint / "null").st_rdev == os.makedev(1, 3)
    assert os.stat(volume.mountpoint).st_uid == 33


@pytest.mark.root
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_mounted_while_used(node: Node, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    options = {
        "tmpfs": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,nosuid"},
        "bind": {"type": "none", "device": str(source), "o": "bind,ro"},
    }[kind]
    volume = node.volumes.create("data", driver_opts=options)
    point = str(volume.mountpoint)
    assert mounts.mount_points(point) == []
    try:
        assert node.volumes.acquire("data", "a") == volume.mountpoint
        node.volumes.acquire("data", "a")
        node.volumes = node.opened()
        node.volumes.acquire("data", "b")
        assert mounts.mount_points(point) == [point], "mounted once, found again after a restart"
        with pytest.raises(Conflict, match=r"\[a, b\]"):
            node.volumes.remove("data")
        if kind == "bind":
            with pytest.raises(OSError, match="Read-only"):
                (volume.mountpoint / "x").write_text("")
        else:
            assert os.statvfs(point).f_blocks * os.statvfs(point).f_frsize == 1 << 20
        node.volumes.release("data", "a")
        assert mounts.mount_points(point) == [point]
        node.volumes.release("data", "b")
        assert mounts.mount_points(point) == []
        node.volumes.release("data", "b")
        node.volumes.remove("data")
        assert source.is_dir()
    finally:
        node.volumes.release("data", "a")
        node.volumes.release("data", "b")


@pytest.mark.root
def test_a_mount_that_fails_says_which(node: Node) -> None:
    node.volumes.create("data", driver_opts={"type": "none", "o": "bind", "device": "/nowhere/at/all"})
    with pytest.raises(Internal, match="failed to mount local volume data: mount /nowhere/at/all"):
        node.volumes.acquire("data", "a")
    node.volumes.remove("data")
