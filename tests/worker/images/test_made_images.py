"""The images that demo and tests are made of: the same bytes each time, and loadable."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from covey.testing import images
from worker.images.tar_stream import TarReader

SCRIPT = Path(__file__).parents[3] / "scripts" / "make-image"

try:
    images.busybox_path()
except FileNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)


def test_busybox_rootfs() -> None:
    made = images.busybox_rootfs_tar({"/bin/hello": b"#!/bin/sh\necho hi\n", "www/index.html": b"mine"})
    assert made == images.busybox_rootfs_tar({"/bin/hello": b"#!/bin/sh\necho hi\n", "www/index.html": b"mine"})
    entries = {entry.name.rstrip("/"): entry for entry in TarReader(io.BytesIO(made))}
    assert (entries["bin/sh"].kind, entries["bin/sh"].link) == ("symlink", "busybox")
    assert entries["tmp"].mode == 0o1777
    assert entries["bin/hello"].mode == 0o755
    assert entries["www/index.html"].size == 4
    assert {"etc/passwd", "etc/group", "proc", "sys", "dev"} <= set(entries)


def test_script(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_text("a page")
    output = tmp_path / "image.tar"
    arguments = ["web:7", "--file", f"www/index.html={page}", "--config", '{"Cmd": ["httpd", "-f"]}', "-o", str(output)]
    subprocess.run([sys.executable, str(SCRIPT), *arguments], check=True, timeout=60)
    with tarfile.open(output) as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        assert b'"web:7"' in manifest.read()
    wrong = subprocess.run([sys.executable, str(SCRIPT), "--file", "x"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
    assert "PATH=SOURCE" in wrong.stderr
