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
