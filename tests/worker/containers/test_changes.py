"""What a container changed: the engine's own places are none of it, in ``diff`` and in what is ready to be committed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from worker.rootfs import changes

from .conftest import Node
from .states_and_verbs import Caller

pytestmark = pytest.mark.root


def test_a_container_that_did_nothing_changed_nothing(node: Node) -> None:
    node.docker("run", "--name", "idle", "-v", "/made/volume", "busybox", "true")
    assert node.out("diff", "idle").splitlines() == ["A /made", "A /made/volume"]


def test_what_it_did_is_told_beside_the_engines_places(node: Node) -> None:
    script = "echo x > /etc/own; chmod 700 /etc; echo y >> /etc/passwd; rm -r /tmp; mkdir -p /a/b; touch /a/b/c; mknod /a/n p"
    node.docker("run", "--name", "busy", "busybox", "sh", "-c", script)
    assert node.out("diff", "busy").splitlines() == [
        "A /a", "A /a/b", "A /a/b/c", "A /a/n", "C /etc", "A /etc/own", "C /etc/passwd", "D /tmp",
    ]  # fmt: skip


def test_a_changed_mode_alone_is_a_change(node: Node) -> None:
    node.docker("run", "--name", "mode", "busybox", "chmod", "700", "/etc")
    assert node.out("diff", "mode") == "C /etc"


def test_the_upper_directory_is_ready_to_commit(node: Node) -> None:
    """All that is below it but the engine's own is what the container wrote, and it can be told which that is."""
    node.docker("run", "--name", "ready", "busybox", "sh", "-c", "echo kept > /kept; rm /bin/true")
    directory = node.root / "data" / "rootfs" / "containers" / str(node.inspect("ready")["Id"])
    lowers = [Path(lower) for lower in json.loads((directory / "lowers.json").read_text())["lowers"]]
    ours = changes.made_by_engine(directory / "upper", lowers)
    assert {"etc", "etc/hosts", "etc/hostname", "etc/resolv.conf"} <= ours
    left = {str(path.relative_to(directory / "upper")) for path in (directory / "upper").rglob("*")} - ours
    assert left == {"bin", "bin/true", "kept"}


def test_export_is_the_whole_tree_and_a_tar(node: Node) -> None:
    node.docker("run", "--name", "exported", "busybox", "sh", "-c", "echo kept > /kept; ln -s kept /link; rm /bin/true")
    # The text of a tar is its bytes: Caller decodes, so it is asked of the docker command.
    path = node.root / "exported.tar"
    node.docker("export", "-o", str(path), "exported")
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as tar:
        names = set(tar.getnames())
        kept = tar.extractfile("kept")
        assert kept is not None
        assert kept.read() == b"kept\n"
        assert tar.getmember("link").linkname == "kept"
    path.unlink()
    assert "bin/busybox" in names
    assert "bin/true" not in names
    assert Caller(node.socket).call("GET", "/containers/exported/export").status == 200
