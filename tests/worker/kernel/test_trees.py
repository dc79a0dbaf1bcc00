"""Directories that come and go lie apart on ext4; elsewhere the wish does no harm."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from worker.kernel import trees

INODES_PER_GROUP = 8192
"""Of ext4's usual layout; a smaller real number only makes the groups that are counted fewer."""
MADE = 24


def groups_of(directory: Path) -> int:
    """How many block groups the directories made in it lie in."""
    found = set()
    for number in range(MADE):
        (directory / str(number)).mkdir()
        found.add(os.stat(directory / str(number)).st_ino // INODES_PER_GROUP)
    return len(found)


def test_directories_made_in_a_spread_one_lie_apart(tmp_path):
    plain, spread = tmp_path / "plain", tmp_path / "spread"
    for one in (plain, spread):
        one.mkdir()
    trees.spread(spread)
    trees.spread(spread)
    together, apart = groups_of(plain), groups_of(spread)
    if os.statvfs(tmp_path).f_files < 32 * INODES_PER_GROUP or "ext4" not in filesystem_of(tmp_path):
        pytest.skip(f"{tmp_path} is not on a large ext4 ({filesystem_of(tmp_path)}): nothing is promised there")
    assert apart > MADE // 4 > together, f"{together} groups without, {apart} with it"


def test_elsewhere_it_does_nothing():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        trees.spread(Path(place))
        assert groups_of(Path(place)) >= 1
    trees.spread(Path("/proc/self/fd"))
    trees.spread(Path("/no/such/directory"))


def filesystem_of(path: Path) -> str:
    """The type of the file system with the longest mount point above ``path``."""
    points = [line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = [one for one in points if one[1] == "/" or path == Path(one[1]) or Path(one[1]) in path.parents]
    return max(above, key=lambda one: len(one[1]))[2]
