"""Archives of images go between Covey, Debian's dockerd and skopeo, both ways, and the image stays the same bit for bit."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from covey.testing import images

pytestmark = [pytest.mark.e2e, pytest.mark.root]

NAME = "covey/archived:1"


@pytest.fixture
def docker_on_docker(dockerd: Any, docker: Any) -> Iterator[Any]:
    """The docker command of ``docker``, at Debian's dockerd."""
    at = type(docker)(docker.argv, {**docker.environ, "DOCKER_HOST": dockerd.host})
    yield at
    at.run("rmi", "-f", NAME)


@pytest.fixture
def docker_on_covey(docker: Any) -> Iterator[Any]:
    yield docker
    docker.run("rmi", "-f", NAME)


def facts(docker: Any, name: str) -> tuple[str, list[str], dict[str, Any]]:
    """(image id, diff ids, what of its config both show alike)."""
    shown = json.loads(docker("image", "inspect", name))[0]
    config = {key: shown["Config"].get(key) for key in ("Cmd", "Env", "Labels", "WorkingDir")}
    return shown["Id"], shown["RootFS"]["Layers"], config


def blobs(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        files = {one.name: tar.extractfile(one) for one in tar if one.isfile()}
        return {name: file.read() for name, file in files.items() if file}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "made.tar"
    top = images.tar([("etc/top", 0o600, os.urandom(200_000)), ("link", 0o777, "etc/top")])
    config = {"Cmd": ["sh", "-c", "true"], "Env": ["A=ü"], "Labels": {"k": "v"}, "WorkingDir": "/etc"}
    path.write_bytes(images.docker_archive(NAME, [images.busybox_rootfs_tar(), top], config))
    return path


def test_docker_to_covey_and_back(docker_on_docker: Any, docker_on_covey: Any, archive: Path, tmp_path: Path) -> None:
    docker_on_docker("load", "-i", str(archive))
    wanted = facts(docker_on_docker, NAME)
    docker_on_docker("save", "-o", str(tmp_path / "docker.tar"), NAME)
    docker_on_docker("rmi", NAME)

    docker_on_covey("load", "-i", str(tmp_path / "docker.tar"))
    assert facts(docker_on_covey, NAME) == wanted
    docker_on_covey("save", "-o", str(tmp_path / "covey.tar"), NAME)

    assert "Loaded image: covey/archived:1" in docker_on_docker("load", "-i", str(tmp_path / "covey.tar"))
    assert facts(docker_on_docker, NAME) == wanted
    docker_on_docker("run", "--rm", "--network=none", NAME, "test", "-f", "/etc/top")
    docker_on_docker("save", "-o", str(tmp_path / "again.tar"), NAME)
    assert blobs(tmp_path / "again.tar") == blobs(tmp_path / "docker.tar"), "what Docker saves is the same as before"
    stored = blobs(tmp_path / "covey.tar").values()
    for name, data in blobs(tmp_path / "docker.tar").items():
        if name.endswith("layer.tar"):
            assert data in stored


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_compressed_layers_reach_docker(
    docker_on_docker: Any, docker_on_covey: Any, archive: Path, tmp_path: Path, pack: Any
) -> None:
    """Docker 20.10 sniffs gzip in a layer, but knows no zstd: such a layer lies in the archive as a plain tar too."""
    packed = {name: pack(data) if name.endswith("layer.tar") else data for name, data in blobs(archive).items()}
    archive.write_bytes(images.tar([(name, 0o644, data) for name, data in packed.items()]))
    docker_on_covey("load", "-i", str(archive))
    docker_on_covey("save", "-o", str(tmp_path / "covey.tar"), NAME)
    docker_on_docker("load", "-i", str(tmp_path / "covey.tar"))
    assert facts(docker_on_docker, NAME) == facts(docker_on_covey, NAME)
    docker_on_covey("rmi", "-f", NAME)
    docker_on_covey("load", "-i", str(tmp_path / "covey.tar"))
    assert facts(docker_on_docker, NAME) == facts(docker_on_covey, NAME)


def skopeo(*words: str) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("no skopeo here: scripts/setup --dev installs it")
    done = subprocess.run(
        ["skopeo", "--insecure-policy", "copy", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_skopeo_both_ways(docker_on_covey: Any, archive: Path, tmp_path: Path) -> None:
    docker_on_covey("load", "-i", str(archive))
    wanted = facts(docker_on_covey, NAME)
    docker_on_covey("save", "-o", str(tmp_path / "covey.tar"), NAME)
    manifest = json.loads(blobs(tmp_path / "covey.tar")["index.json"])["manifests"][0]["digest"]

    skopeo(f"docker-archive:{tmp_path}/covey.tar", f"docker-archive:{tmp_path}/docker.tar:{NAME}")
    docker_on_covey("rmi", NAME)
    docker_on_covey("load", "-i", str(tmp_path / "docker.tar"))
    assert facts(docker_on_covey, NAME) == wanted

    # Unless told not to, skopeo compresses layers on the way.
    skopeo("--preserve-digests", f"oci-archive:{tmp_path}/covey.tar", f"oci-archive:{tmp_path}/oci.tar:{NAME}")
    assert json.loads(blobs(tmp_path / "oci.tar")["index.json"])["manifests"][0]["digest"] == manifest
    docker_on_covey("rmi", NAME)
    docker_on_covey("load", "-i", str(tmp_path / "oci.tar"))
    assert facts(docker_on_covey, NAME) == wanted

    # By way of another format: skopeo writes another config and compresses, the file systems stay.
    skopeo(f"docker-archive:{tmp_path}/covey.tar", f"oci-archive:{tmp_path}/turned.tar:{NAME}")
    docker_on_covey("rmi", NAME)
    docker_on_covey("load", "-i", str(tmp_path / "turned.tar"))
    assert facts(docker_on_covey, NAME)[1:] == wanted[1:]


def test_save_of_several_and_of_none(docker_on_covey: Any, cluster: Any, archive: Path, tmp_path: Path) -> None:
    docker_on_covey("load", "-i", str(archive))
    docker_on_covey("tag", NAME, "covey/archived:2")
    try:
        cluster("image", "save", "-o", str(tmp_path / "both.tar"), "covey/archived", "covey/busybox:demo")
        names = [one["RepoTags"] for one in json.loads(blobs(tmp_path / "both.tar")["manifest.json"])]
        assert names == [["covey/archived:1", "covey/archived:2"], ["covey/busybox:demo"]]
        assert "No such image" in docker_on_covey.run("save", "-o", str(tmp_path / "none.tar"), "covey/nothing:1").stderr
    finally:
        docker_on_covey("rmi", "covey/archived:2")
