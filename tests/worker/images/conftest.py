"""What the image tests share: tars owned by whoever runs the test, so that most of them need no root."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker.images import unpack
from worker.images.tar_stream import Limits

Member = tuple[str, dict[str, Any], bytes]
Layer = Callable[..., bytes]


@pytest.fixture
def layer() -> Layer:
    """``layer(("path", {TarInfo fields}, b"content"), …, format=…)`` → tar bytes. A str member is a plain file."""

    def build(*members: Member | str, format: int = tarfile.PAX_FORMAT) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
            for member in members:
                name, fields, content = (member, {}, member.encode()) if isinstance(member, str) else member
                info = tarfile.TarInfo(name)
                info.uid, info.gid, info.mtime, info.size = os.getuid(), os.getgid(), 1_700_000_000, len(content)
                for key, value in fields.items():
                    setattr(info, key, value)
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    return build


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty layer root with a canary beside it that no layer may touch."""
    place = tmp_path / "outer" / "root"
    place.mkdir(parents=True)
    (tmp_path / "outer" / "canary").write_text("alive")
    return place


@pytest.fixture
def apply(root: Path) -> Iterator[Callable[..., unpack.Applied]]:
    """Apply a tar to ``root``; afterwards the canary must be as it was and alone."""

    canary = root.parent / "canary"
    before = os.stat(canary)

    def run(data: bytes, lowers: tuple[int, ...] = (), limits: Limits | None = None) -> unpack.Applied:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return unpack.apply_layer(io.BytesIO(data), fd, lowers, limits)
        finally:
            os.close(fd)

    yield run
    assert sorted(os.listdir(root.parent)) == ["canary", "root"], "something was written outside the root"
    assert canary.read_text() == "alive", "the canary was written to"
    # The inode's change time also tells of a hard link that came and went.
    assert os.stat(canary).st_ctime_ns == before.st_ctime_ns, "the canary was touched"
