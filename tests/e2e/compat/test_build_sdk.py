"""docker-py and testcontainers build, unmodified, on Covey and on Debian's dockerd: the same files and errors."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Endpoint
from .dockerfiles import BASE, CASES, TREE, Case
from .test_build import Builder, builders, write

docker = pytest.importorskip("docker")
pytest.importorskip("testcontainers")

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
__all__ = ["builders"]

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", ["stages", "arguments", "ignore", "archives", "shapes", "words"])
def test_docker_py(name: str, builders: tuple[Builder, Builder], tmp_path: Path) -> None:
    case = BY_NAME[name]
    context = write(case, tmp_path / "context")
    arguments = {"two": "zwei", "one": "eins"} if name == "arguments" else {}
    results = []
    for builder in builders:
        client = docker.DockerClient(base_url=builder.endpoint.host)
        try:
            image, log = client.images.build(path=str(context), tag=f"py-{name}", rm=True, forcerm=True, buildargs=arguments)
            assert [line["aux"]["ID"] for line in log if "aux" in line][-1] == image.id
        finally:
            client.close()
        results.append((builder.tree(f"py-{name}"), builder.config(f"py-{name}"), builder.history(f"py-{name}")))
    assert results[0] == results[1]


def test_docker_py_errors_and_a_file_object(builders: tuple[Builder, Builder]) -> None:
    told = []
    for builder in builders:
        client = docker.DockerClient(base_url=builder.endpoint.host)
        try:
            text = f"FROM {BASE}\nRUN echo x > /x\nLABEL a=b\n"
            image, _ = client.images.build(
                fileobj=io.BytesIO(text.encode()), container_limits={"memory": 64 << 20}, nocache=True, rm=True
            )
            assert client.containers.run(image.id, ["cat", "/x"], remove=True) == b"x\n"
            with pytest.raises(docker.errors.BuildError) as failed:
                client.images.build(fileobj=io.BytesIO(f"FROM {BASE}\nRUN exit 5\n".encode()), rm=True, forcerm=True)
            with pytest.raises(docker.errors.APIError) as refused:
                client.images.build(fileobj=io.BytesIO(f"FROM {BASE}\nWHAT 5\n".encode()), rm=True)
            told.append((str(failed.value), refused.value.response.status_code))
        finally:
            client.close()
    assert told[0] == told[1]


PROGRAM = """
import sys
from testcontainers.core.container import DockerContainer
from testcontainers.core.image import DockerImage

with DockerImage(path=sys.argv[1], tag="testcontainers-built:1", buildargs={"one": "eins"}) as image:
    with DockerContainer(str(image)).with_command("sleep 100") as container:
        print(container.exec("cat /said")[1].decode(), end="")
"""


def test_testcontainers(builders: tuple[Builder, Builder], tmp_path: Path) -> None:
    text = f"FROM {BASE}\nARG one=1\nCOPY a.txt /\nRUN cat a.txt > /said && echo $one >> /said\n"
    context = write(Case("testcontainers", text, TREE), tmp_path / "context")
    for builder in builders:
        environ = {**os.environ, "DOCKER_HOST": builder.endpoint.host, "TESTCONTAINERS_RYUK_DISABLED": "true"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(context)], capture_output=True, text=True, timeout=90, env=environ, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "a\neins\n"
        assert b"testcontainers-built" not in builder("images")


def test_our_own_command_on_both(builders: tuple[Builder, Builder], tmp_path: Path) -> None:
    cluster = str(Path(sys.executable).with_name("cluster"))
    for name in ("ignore", "shapes", "stages"):
        context = write(BY_NAME[name], tmp_path / name)
        trees = []
        for builder in builders:
            host: Endpoint = builder.endpoint
            done = subprocess.run(
                [cluster, "-H", host.host, "build", "-t", f"own-{name}", str(context)],
                capture_output=True,
                text=True,
                timeout=90,
            )
            assert done.returncode == 0, done
            assert f"Successfully tagged own-{name}:latest" in done.stdout
            trees.append(builder.tree(f"own-{name}"))
        builders[1].build(f"its-{name}", context)
        assert trees[0] == trees[1] == builders[1].tree(f"its-{name}")
