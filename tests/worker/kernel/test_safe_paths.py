"""Paths of a hostile tree stay inside it."""

from __future__ import annotations

import errno
import os

import pytest

from worker.kernel import safe_paths
from worker.kernel.mounts import unescape


@pytest.fixture
def tree(tmp_path):
    """(descriptor, root, a directory outside of it)."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "dir").mkdir()
    (root / "dir/file").write_text("inside")
    (root / "absolute").symlink_to("/dir")
    (root / "out").symlink_to(outside)
    (root / "up").symlink_to("../../../../../.." + str(outside))
    (root / "loop").symlink_to("loop")
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield fd, root, outside
    os.close(fd)


def content(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def test_links_are_followed_inside(tree):
    fd, _, _ = tree
    for path in ("dir/file", "/dir/file", "absolute/file", "../../dir/file", "dir/../../dir/file"):
        assert content(safe_paths.open_in_root(fd, path, os.O_RDONLY)) == b"inside"


@pytest.mark.parametrize("path", ["out/secret", "up/secret", "../outside/secret"])
def test_nothing_leads_out(tree, path):
    with pytest.raises(FileNotFoundError):
        safe_paths.open_in_root(tree[0], path)


def test_links_can_be_refused(tree):
    with pytest.raises(OSError, match="absolute") as caught:
        safe_paths.open_in_root(tree[0], "absolute/file", follow=False)
    assert caught.value.errno == errno.ELOOP


def test_magic_links_are_refused():
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="proc") as caught:
            safe_paths.open_in_root(fd, "/proc/self/root/etc")
        assert caught.value.errno == errno.ELOOP
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "made"), [("a/b/c", "a/b/c"), ("absolute/x", "dir/x"), ("../../q", "q"), ("dir/./y/../z", "dir/z")]
)
def test_directories_are_made_inside(tree, path, made):
    fd, root, _ = tree
    os.close(safe_paths.make_dirs_in_root(fd, path))
    assert (root / made).is_dir()


@pytest.mark.parametrize("path", ["out/x", "up/x"])
def test_a_link_out_has_its_path_made_inside(tree, path):
    fd, root, outside = tree
    os.close(safe_paths.make_dirs_in_root(fd, path))
    assert (root / str(outside).lstrip("/") / "x").is_dir()
    assert sorted(os.listdir(outside)) == ["secret"]


def test_loops_and_files_in_the_way(tree):
    for path, code in (("loop/x", errno.ELOOP), ("dir/file/x", errno.ENOTDIR)):
        with pytest.raises(OSError, match=r".") as caught:
            safe_paths.make_dirs_in_root(tree[0], path)
        assert caught.value.errno == code


def test_files_are_made_inside_and_existing_ones_kept(tree):
    fd, root, outside = tree
    (root / "dangling").symlink_to(outside / "new")
    for path in ("new/file", "dir/file", "dangling"):
        os.close(safe_paths.create_file_in_root(fd, path))
    assert (root / "new/file").read_text() == ""
    assert (root / "dir/file").read_text() == "inside"
    assert sorted(os.listdir(outside)) == ["secret"]


@pytest.mark.parametrize("path", ["", "/", "a/..", ".."])
def test_a_path_that_names_no_file(path):
    with pytest.raises(OSError, match="names no file"):
        safe_paths.split(path)


def test_procfs_is_verified():
    with open(safe_paths.open_proc("self/stat"), "rb") as file:
        assert file.read().startswith(b"%d " % os.getpid())
    with pytest.raises(OSError, match="/proc/self/cwd") as caught:
        safe_paths.open_proc("self/cwd")
    assert caught.value.errno in (errno.ELOOP, errno.EXDEV)
    with pytest.raises(OSError, match=r"/proc/\.\./etc"):
        safe_paths.open_proc("../etc/passwd")


def test_mountinfo_escapes():
    assert unescape("/a\\040b\\011c\\134d") == "/a b\tc\\d"
