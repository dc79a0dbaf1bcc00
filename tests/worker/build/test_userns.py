"""Builds on a node whose containers have a user namespace: the same image as on one without."""

from __future__ import annotations

from pathlib import Path

import pytest

from covey.testing import images

from ..containers.conftest import Node, loaded
from .conftest import BASE, BuildNode

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

IDS = {"uids": [[0, 300_000, 65_536]], "gids": [[0, 400_000, 65_536]]}
TEXT = f"""\
FROM {BASE} AS one
RUN mkdir /made && echo x > /made/root && echo y > /made/theirs && chown 7:8 /made/theirs && chmod 4755 /made/root
COPY --chown=www a /by-name/
FROM {BASE}
COPY --from=one /made /kept
COPY --from=one --chown=5:6 /made /given
COPY a /mine
ADD a.tar /unpacked/
WORKDIR /work
RUN --mount=type=cache,target=/c,uid=9,gid=10 stat -c '%u %g' /c > cache
COPY --from=one /by-name /by-name
RUN rm /etc/group && stat -c '%u %g %a %n' /kept/* /given/* /mine /unpacked/f /work /by-name/a > all; cat all cache
"""


def test_the_same_image(builds: BuildNode, tmp_path: Path) -> None:
    inner = images.tar([("f", 0o600, b"f")])
    files = {"a": b"a", "a.tar": inner}
    plain = builds.build(TEXT, files)
    assert plain.error == ""
    archive = images.docker_archive(BASE, [images.busybox_rootfs_tar()], {"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin"]})
    with loaded(Node(tmp_path, ids=IDS), archive) as node:
        remapped = BuildNode(node)
        mapped = remapped.build(TEXT, files, t="mapped:1")
        assert mapped.error == ""
        assert len(_owners(plain.text)) == 8, plain.text
        assert _owners(mapped.text) == _owners(plain.text)
        assert node.out("run", "--rm", "--userns=host", "mapped:1", "cat", "/work/cache") == "9 10"
        assert remapped.left() == []


def _owners(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.count(" ") == 3 and line[0].isdigit()]
