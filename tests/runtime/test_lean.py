"""The mount namespace that containers begin in has what they look at, and nothing that others have mounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from worker.kernel import syscalls
from worker.kernel.mounts import mount_points
from worker.runtime import lean


@pytest.mark.parametrize(
    ("point", "kept"),
    [
        ("/", True),
        ("/dev", True),
        ("/dev/pts", False),
        ("/proc", True),
        ("/proc/sys/fs/binfmt_misc", False),
        ("/sys", True),
        ("/sys/fs/cgroup", True),
        ("/sys/fs/cgroup/cpu,cpuacct", True),
        ("/sys/fs/cgroups", False),
        ("/sys/fs/bpf", False),
        ("/sys/fs/selinux", True),
        ("/sys/kernel/security", True),
        ("/sys/kernel/debug", False),
        ("/run", True),
        ("/run/covey", True),
        ("/run/covey/containers/1/rootfs", False),
        ("/run/coveyed", False),
        ("/runner", False),
        ("/mnt/usb", False),
    ],
)
def test_what_is_needed(point: str, kept: bool) -> None:
    assert lean.is_kept(point, "/run/covey") is kept


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A mount that holds ``place``, one below that, and one elsewhere."""
    with ExitStack() as stack:
        for name in ("held", "held/place/below", "elsewhere"):
            path = tmp_path / name
            path.mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
            stack.callback(subprocess.run, ["umount", path], check=True)
        yield tmp_path


def _seen_in(namespace: int) -> list[str]:
    """The mount points there, as a child process sees them that has gone there."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            syscalls.setns(namespace, syscalls.CLONE_NEWNS)
            os.write(write, "\n".join(mount_points("/")).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text.split("\n")


@pytest.mark.root
def test_nothing_else_is_mounted_there_now_or_later(mounted: Path, tmp_path: Path) -> None:
    place = tmp_path / "held/place"
    namespace = lean.make(str(place))
    try:
        seen = _seen_in(namespace)
        assert str(tmp_path / "held") in seen
        assert [point for point in seen if not lean.is_kept(point, str(place))] == []
        (place / "later").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place / "later"], check=True)
        try:
            assert sorted(_seen_in(namespace)) == sorted(seen)
        finally:
            subprocess.run(["umount", place / "later"], check=True)
        assert str(place / "below") in mount_points("/"), "the machine keeps its own"
    finally:
        os.close(namespace)
