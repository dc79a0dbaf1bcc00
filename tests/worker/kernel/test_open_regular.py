"""Only regular files of an untrusted tree are opened for reading; a device node in it is not touched."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from worker.kernel import safe_paths


def test_a_regular_file_is_read_through_links_inside_only(tmp_path: Path):
    (tmp_path / "real").write_text("text")
    (tmp_path / "link").symlink_to("/real")
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    for name in ("real", "link"):
        fd = safe_paths.open_regular_in_root(root, name)
        assert os.read(fd, 10) == b"text"
        os.close(fd)
    with pytest.raises(OSError, match="not a regular file"):
        safe_paths.open_regular(root, "link")
    os.close(root)


def test_a_fifo_does_not_hold_us_up(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    before = os.listdir("/proc/self/fd")
    for function in (safe_paths.open_regular, safe_paths.open_regular_in_root):
        with pytest.raises(OSError, match="not a regular file"):
            function(root, "fifo")
    assert os.listdir("/proc/self/fd") == before
    os.close(root)


@pytest.mark.root
def test_a_device_node_is_not_opened(tmp_path: Path):
    """No such device exists, so an open would be ENXIO: what is said shows that none was tried."""
    os.mknod(tmp_path / "node", stat.S_IFCHR | 0o600, os.makedev(10, 253))
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(OSError, match="No such device"):
        os.open(tmp_path / "node", os.O_RDONLY)
    with pytest.raises(OSError, match="not a regular file"):
        safe_paths.open_regular(root, "node")
    os.close(root)
