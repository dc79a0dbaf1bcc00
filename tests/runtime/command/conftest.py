"""``covey-runtime`` called as podman and containerd call it: a process of its own, a --root of the test's own.

What a command prints goes to files: a container holds the descriptors it was given, so a pipe would not end with the
command. Whatever a test leaves is deleted, and then nothing of it may be there.
"""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import DOCKER_CAPABILITIES
from worker.runtime.cgroups import Cgroup

PATIENCE = 20.0
PROGRAM = str(Path(sys.executable).with_name("covey-runtime"))


def wait_for(what: str, condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come to be in {patience} s; last: {value!r}"
        time.sleep(0.005)
    return value


def ended(command: list[str], code: int | None, **how: Any) -> subprocess.CompletedProcess[str]:
    """A peer's command, run to its end; ``code``: what it must answer, None for anything."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **how)
    assert code is None or done.returncode == code, done
    return done


@dataclass
class Done:
    code: int
    out: str
    err: str


def config_of(rootfs: Path, cgroup: str, args: list[str], **changes: Any) -> dict[str, Any]:
    """A bundle's config; objects among ``changes`` are merged into it, ``mounts`` appended, other fields replace."""
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "root": {"path": str(rootfs)},
        "hostname": "box",
        "process": {
            "cwd": "/",
            "env": ["PATH=/bin:/sbin", "TERM=xterm"],
            "args": args,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), DOCKER_CAPABILITIES),
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")],
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        },
    }
    config["mounts"] += copy.deepcopy(changes.pop("mounts", []))
    for key, value in copy.deepcopy(changes).items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    return config


class Runtime:
    """The command with one --root. ``program``: the first words of every call."""

    def __init__(self, base: Path, rootfs: Path, cgroup_parent: str, program: tuple[str, ...] = (PROGRAM,)) -> None:
        self.base = base
        self.root = base / "state"
        self.rootfs = rootfs
        self.parent = cgroup_parent
        self.program = program
        self._numbers = itertools.count()

    def line(self, *words: str | Path) -> list[str]:
        return [*self.program, "--root", str(self.root), *(str(word) for word in words)]

    def call(self, *words: str | Path, code: int | None = 0, stdin: str | None = None, **how: Any) -> Done:
        """Run it to its end; ``code``: what it must answer, None for anything."""
        number = next(self._numbers)
        out, err = self.base / f"{number}.out", self.base / f"{number}.err"
        with open(out, "w") as out_file, open(err, "w") as err_file:
            ended = subprocess.run(
                self.line(*words),
                stdout=out_file,
                stderr=err_file,
                timeout=PATIENCE,
                check=False,
                **({"input": stdin.encode()} if stdin is not None else {"stdin": subprocess.DEVNULL}),
                **how,
            )
        done = Done(ended.returncode, out.read_text(), err.read_text())
        assert code is None or done.code == code, (words, done)
        return done

    def bundle(self, ident: str, args: list[str], **changes: Any) -> Path:
        directory = self.base / f"bundle-{ident}"
        directory.mkdir(exist_ok=True)
        config = config_of(self.rootfs, f"{self.parent}/{ident}", args, **changes)
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    def create(self, ident: str, args: list[str] | None = None, *options: str | Path, **changes: Any) -> None:
        bundle = self.bundle(ident, args or ["sleep", "1000"], **changes)
        self.call("create", "--bundle", bundle, *options, ident)

    def start(self, ident: str, args: list[str] | None = None, **changes: Any) -> dict[str, Any]:
        """Create and start; answers the state."""
        self.create(ident, args, **changes)
        self.call("start", ident)
        return self.state(ident)

    def state(self, ident: str) -> dict[str, Any]:
        return dict(json.loads(self.call("state", ident).out))

    def wait_for(self, what: str, condition: Callable[[], Any]) -> Any:
        return wait_for(what, condition)

    @staticmethod
    def runs(pid: int) -> bool:
        """Whether there is such a process and it is no zombie, which nobody may be there to reap."""
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    def wait_status(self, ident: str, status: str) -> None:
        wait_for(f"{ident} {status}", lambda: self.state(ident)["status"] == status)

    def ids(self) -> list[str]:
        return [name for name in os.listdir(self.root) if not name.startswith(".")] if self.root.exists() else []

    def group(self, ident: str) -> Cgroup:
        return Cgroup(f"{self.parent}/{ident}")

    def sweep_hierarchies(self) -> None:
        """Remove what a control (runc, crun) leaves of our parent in hierarchies that we do not use."""
        for mount in os.scandir("/sys/fs/cgroup"):
            for base, _, _ in os.walk(mount.path + self.parent, topdown=False):
                try:
                    os.rmdir(base)
                except OSError as error:
                    # The session's zygote and shims may be there, from other tests.
                    if error.errno != errno.EBUSY:
                        raise

    def clear(self) -> None:
        """Delete all there is; then no state and no cgroup may be left."""
        for ident in self.ids():
            self.call("delete", "--force", ident)
        left = os.listdir(self.root) if self.root.exists() else []
        assert not left, left
        for directory in Cgroup(self.parent).directories():
            below = [entry.name for entry in os.scandir(directory) if entry.is_dir()] if os.path.isdir(directory) else []
            mine = [name for name in below if name != "shims" and not name.startswith("box")]
            assert not mine, f"{directory}: {mine}"


@pytest.fixture
def own_rootfs(rootfs: Path) -> Iterator[Path]:
    """A copy that a test's containers may change; of /dev nothing, as to read a device has no end.

    Not below pytest's directories, which are closed to the mapped root of a user namespace.
    """
    with tempfile.TemporaryDirectory(prefix="covey-test-own-") as directory:
        os.chmod(directory, 0o755)
        ignore = lambda path, names: names if Path(path) == rootfs / "dev" else []  # noqa: E731
        yield Path(shutil.copytree(rootfs, f"{directory}/rootfs", symlinks=True, ignore=ignore))


@pytest.fixture
def runtime(tmp_path: Path, own_rootfs: Path, cgroup_parent: str) -> Iterator[Runtime]:
    assert shutil.which(PROGRAM), f"{PROGRAM} is missing: run scripts/setup --dev"
    made = Runtime(tmp_path, own_rootfs, cgroup_parent)
    yield made
    made.clear()
