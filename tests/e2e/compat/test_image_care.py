"""fsck and pins as a user has them: through the daemon, by the cluster command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from covey.testing import images

pytestmark = [pytest.mark.e2e, pytest.mark.root]

NAME = "covey/cared:1"


def test_damage_is_named_and_mended(cluster: Any, tmp_path: Path) -> None:
    archive = tmp_path / "cared.tar"
    archive.write_bytes(images.docker_archive(NAME, [images.tar([("only/here", 0o644, b"as it was")])]))
    cluster("image", "load", "-i", str(archive))
    try:
        assert cluster("image", "fsck") == "no fault found\n"
        shown = cluster("image", "inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", NAME).strip()
        path = Path(shown, "only/here")
        path.write_bytes(b"as it is!")
        told = cluster("image", "fsck", code=1)
        assert f"{path}: its time and content changed" in told
        assert "fsck --repair" in told
        assert "unpacked again" in cluster("image", "fsck", "--repair")
        assert path.read_bytes() == b"as it was"
        assert cluster("image", "fsck") == "no fault found\n"
    finally:
        cluster("image", "rm", NAME)


def test_without_a_daemon(cluster: Any) -> None:
    """The same look at the same disk, for a daemon that does not start; nothing answers at this socket."""
    shown = cluster("image", "inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", "covey/busybox:demo").strip()
    data_root = Path(shown).parents[3]
    alone = type(cluster)((cluster.argv[0], "-H", "unix:///nowhere.sock"))
    assert alone("image", "fsck", "--data-root", str(data_root)) == "no fault found\n"
    assert "holds no images" in alone.run("image", "fsck", "--data-root", "/proc").stderr
    assert "the daemon's" in alone.run("image", "fsck", "--data-root", str(data_root), "--repair").stderr


def test_a_pin_keeps_an_image_from_prune(cluster: Any, tmp_path: Path) -> None:
    archive = tmp_path / "cared.tar"
    archive.write_bytes(images.docker_archive(NAME, [images.tar([("pinned", 0o644, b"x")])], {"Labels": {"cared": "1"}}))
    cluster("image", "load", "-i", str(archive))
    try:
        cluster("image", "pin", NAME)
        assert cluster("image", "pin") == f"{NAME}\n"
        # By its label only: other tests' images are not this one's to prune.
        cluster("image", "prune", "--all", "--filter", "label=cared")
        assert NAME in cluster("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")
        cluster("image", "unpin", NAME)
        assert cluster("image", "pin") == ""
        assert NAME in cluster("image", "prune", "--all", "--filter", "label=cared")
        cluster("image", "load", "-i", str(archive))
        assert "No such image" in cluster.run("image", "pin", "covey/nothing:1").stderr
    finally:
        cluster("image", "rm", NAME)
