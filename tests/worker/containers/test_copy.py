"""docker cp, diff and export against our engine, with trees that try to lead it astray."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from .conftest import Node

pytestmark = pytest.mark.root


@pytest.fixture(params=["running", "stopped"])
def container(node: Node, request: pytest.FixtureRequest) -> str:
    node.docker("create", "--name", "one", "-v", "/vol", "busybox", "sleep", "100")
    if request.param == "running":
        node.docker("start", "one")
    return "one"


def test_out_and_in(node: Node, container: str, tmp_path: Path) -> None:
    node.docker("cp", f"{container}:/www", str(tmp_path / "out"))
    assert "hello from covey" in (tmp_path / "out" / "index.html").read_text()
    node.docker("cp", f"{container}:/etc/passwd", str(tmp_path / "passwd"))
    assert (tmp_path / "passwd").read_text().startswith("root:x:0:0")
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_text("content")
    (source / "link").symlink_to("deep/file")
    node.docker("cp", f"{source}/.", f"{container}:/tmp")
    node.docker("cp", f"{source}/deep", f"{container}:/vol/")
    back = tmp_path / "back"
    node.docker("cp", f"{container}:/tmp/.", str(back))
    assert (back / "deep" / "file").read_text() == "content"
    assert (back / "link").readlink() == Path("deep/file")
    node.docker("cp", f"{container}:/vol/deep/file", str(tmp_path / "fromvolume"))
    assert (tmp_path / "fromvolume").read_text() == "content"
    assert "Could not find the file /nosuch" in node.docker("cp", f"{container}:/nosuch", str(tmp_path), code=1).stderr


def test_links_do_not_lead_out_of_the_container(node: Node, container: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    evil = tarfile.TarInfo("evil")
    evil.type, evil.linkname = tarfile.SYMTYPE, str(outside)
    through = tarfile.TarInfo("evil/planted")
    through.size = 3
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(evil)
        archive.addfile(through, io.BytesIO(b"bad"))
    command = ["docker", "-H", f"unix://{node.socket}", "cp", "-", f"{container}:/tmp"]
    subprocess.run(command, input=buffer.getvalue(), capture_output=True, check=False)
    assert list(outside.iterdir()) == []


def test_diff_and_export(node: Node, tmp_path: Path) -> None:
    node.docker("run", "--name", "one", "busybox", "sh", "-c", "echo new > /new; rm /www/index.html; mkdir /dir")
    changes = node.out("diff", "one").splitlines()
    assert {"A /new", "A /dir", "C /www", "D /www/index.html"} <= set(changes)
    node.docker("export", "-o", str(tmp_path / "root.tar"), "one")
    with tarfile.open(tmp_path / "root.tar") as archive:
        names = set(archive.getnames())
    assert {"new", "dir", "bin/busybox"} <= names
    assert "www/index.html" not in names
