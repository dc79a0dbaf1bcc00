"""A node for builds, and requests that no client would make."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import pytest

from covey.testing import images

from ..containers.conftest import Node, loaded

__all__ = ["Node", "loaded"]
BASE = "busybox:latest"


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A context."""
    return images.tar([(name, 0o644, data) for name, data in files.items()])


def entry(name: str, kind: bytes, link: str = "", data: bytes = b"") -> bytes:
    """One member of a hostile tar, without an end."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info.tobuf() + data + b"\0" * (-len(data) % 512)


@dataclass
class Built:
    """What ``POST /build`` said."""

    status: int
    lines: list[dict[str, Any]]

    @property
    def text(self) -> str:
        return "".join(line.get("stream", "") for line in self.lines)

    @property
    def error(self) -> str:
        return next(
            (str(line.get("error") or line.get("message")) for line in self.lines if {"error", "message"} & set(line)), ""
        )

    @property
    def id(self) -> str:
        return next(line["aux"]["ID"] for line in reversed(self.lines) if "aux" in line)


class BuildNode:
    """A node and its build API."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def connection(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self.node.socket))
        return connection

    def begin(self, context: bytes, headers: Mapping[str, str] | None = None, **query: Any) -> http.client.HTTPConnection:
        """A connection on which a build was asked for."""
        connection = self.connection()
        sent = {"Content-Type": "application/x-tar", **(headers or {})}
        connection.request("POST", f"/v1.45/build?{urlencode(query, doseq=True)}", context, sent)
        return connection

    def build(self, text: str | bytes, files: Mapping[str, bytes] | None = None, **query: Any) -> Built:
        """A whole build; ``text`` is a Dockerfile, or as bytes a context."""
        context = text if isinstance(text, bytes) else tar_of({"Dockerfile": text.encode(), **(files or {})})
        headers = query.pop("headers", None)
        connection = self.begin(context, headers, **query)
        try:
            response = connection.getresponse()
            body = response.read().decode()
        finally:
            connection.close()
        return Built(response.status, [json.loads(line) for line in body.splitlines() if line.strip()])

    def left(self) -> list[str]:
        """What builds have left on disk that is no image, layer or cache."""
        root = self.node.root
        places = [
            root / "data/build/contexts",
            root / "run/builds",
            root / "run/build-secrets",
            root / "data/rootfs/containers",
        ]
        return [str(path) for place in places if place.is_dir() for path in place.iterdir()]


@pytest.fixture(scope="session")
def _build_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if not shutil.which("docker"):
        pytest.skip("no docker CLI on this machine")
    config = {"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"]}
    archive = images.docker_archive(BASE, [images.busybox_rootfs_tar()], config)
    with loaded(Node(tmp_path_factory.mktemp("build-node")), archive) as node:
        yield node


@pytest.fixture
def builds(_build_session: Node) -> Iterator[BuildNode]:
    """The node, without containers, caches and leftovers of builds before and after."""
    one = BuildNode(_build_session)
    yield one
    _build_session.clear()
    _build_session.call("POST", "/build/prune")
    assert one.left() == []
