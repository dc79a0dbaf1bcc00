"""What the attacks share: containers exactly as Covey gives them by default, older runtimes as controls, a program kit.

A control is the same attack on something that is open to it: the distribution's older runc or crun, or a weakened
bundle. It shows that the test can fail; what came of each is printed at the end of the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from covey.testing import lab_remains, python_image
from worker.containers import bundle, host_config, limits, seccomp, surroundings
from worker.containers.shim_client import Shim
from worker.containers.users import User
from worker.containers.zygote_client import Zygote

from ..conftest import PATIENCE, Boxes, Result, copied, default_bundle, merged

KIT = (Path(__file__).parent / "kit.py").read_bytes()
PYTHON = [python_image.PYTHON, "-I", "-S", "-c"]
_OUTCOMES: list[str] = []


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _OUTCOMES:
        terminalreporter.section("controls")
        for line in _OUTCOMES:
            terminalreporter.write_line(line)


def outcome(attack: str, on: str, happened: object, words: str = "") -> None:
    """Note what came of a control; ``happened``: whether the attack succeeded there."""
    told = "; ".join(words.strip().splitlines())[:160]
    _OUTCOMES.append(f"{attack:16} {on:36} {'open' if happened else 'closed':7}{told}".rstrip())


@pytest.fixture(scope="session")
def python_root(rootfs: Path) -> Iterator[Path]:
    """The busybox root file system with Python and the kit in it; shared, so written to only through mounts."""
    with tempfile.TemporaryDirectory(prefix="covey-test-attacks-") as directory:
        root = Path(directory) / "root"
        copied(rootfs, root)
        root.parent.chmod(0o755)
        for path, content in python_image.python_files(extra={"kit": KIT}).items():
            place = root / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            place.chmod(0o755 if python_image.is_program(path) else 0o644)
        setuid = root / "py/bin/setuid-python"
        shutil.copy(root / python_image.PYTHON.lstrip("/"), setuid)
        setuid.chmod(0o4755)
        yield root


@pytest.fixture
def own_root(python_root: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the root file system that a test may change; gone afterwards, as it is large."""
    place = tmp_path / "own-root"
    copied(python_root, place)
    yield place
    shutil.rmtree(place, ignore_errors=True)


class Default(Boxes):
    """Containers as the daemon makes them: its bundle, its compiled profile. ``host``: a HostConfig, as Docker names it."""

    cache: Path

    def bundle(self, args: list[str], ident: str, *, host: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        settings = host_config.completed(copy.deepcopy(host or {}), os.cpu_count() or 1)
        names = limits.capabilities(settings)
        profile = seccomp.chosen(settings["SecurityOpt"] or [], settings["Privileged"])
        wanted = str((changes.get("process") or {}).get("user", {}).get("uid", 0))
        config = bundle.build(
            bundle.Inputs(
                config={},
                host_config=settings,
                argv=args,
                rootfs=str(self.rootfs),
                cgroup=f"{self.parent}/{ident}",
                user=User(int(wanted), int(wanted), (), "/"),
                hostname="box",
                seccomp=surroundings.compiled_seccomp(profile, names, self.cache, True),
                devices=surroundings.devices(settings),
                ceilings=surroundings.hard_limits(),
                cpus=os.cpu_count() or 1,
            )
        )
        return merged(config, changes)

    async def python(self, program: str, **changes: Any) -> Any:
        """What a Python program tells (``kit.tell``) from inside a container: its last line, parsed."""
        result = await self.run([*PYTHON, f"import kit, os\n{program}"], **changes)
        return told(result)


async def discard(shim: Shim) -> None:
    """End what a shim has made, started or not, and the shim."""
    if (await shim.state())["state"] not in ("empty", "stopped"):
        await shim.kill(signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            async for event in shim.events():
                if event["type"] == "exit":
                    break
    await shim.delete()


def told(result: Result) -> Any:
    assert result.code == 0, (result.code, result.out, result.err)
    return json.loads(result.out.splitlines()[-1])


@pytest_asyncio.fixture
async def covey(zygote_socket: Path, python_root: Path, cgroup_parent: str, tmp_path: Path) -> AsyncIterator[Default]:
    zygote = await Zygote.connect(zygote_socket)
    made = Default(zygote, python_root, tmp_path, cgroup_parent)
    made.cache = tmp_path / "seccomp"
    yield made
    await made.clear()
    zygote.close()


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        return (self.err or self.out).strip().replace("\n", "; ")


class Control:
    """An older runtime of the distribution, run in a mount namespace of its own."""

    def __init__(self, name: str, base: Path, cgroup: str, root: Path) -> None:
        self.name = name
        self._base = base
        self._cgroup = cgroup
        self._root = root
        self._count = 0

    @property
    def label(self) -> str:
        return f"{self.name} {version(self.name)}"

    def config(self, args: list[str], **changes: Any) -> dict[str, Any]:
        config = default_bundle(self._root, f"{self._cgroup}/{self.name}{self._count}")
        config["process"] |= {"args": args, "user": {"uid": 0, "gid": 0}}
        for mount in config["mounts"]:
            mount.setdefault("source", mount["type"])
        return merged(config, changes)

    def run(self, args: list[str], *, leave: Collection[str] = (), **changes: Any) -> Ended:
        """``run`` of a bundle to its end, 20 seconds at most; mounts at ``leave`` are left out."""
        directory = self._base / f"{self.name}{self._count}"
        directory.mkdir()
        config = self.config(args, **changes)
        config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] not in leave]
        (directory / "config.json").write_text(json.dumps(config))
        self._count += 1
        options = ["--cgroup-manager=cgroupfs"] if self.name == "crun" else []
        hide = 'mount -t tmpfs tmpfs /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
        command = [
            *("unshare", "-m", "sh", "-c", hide, "sh", self.name, "--root", str(self._base / "state"), *options),
            *("run", "--bundle", str(directory), f"covey-{os.getpid()}-{directory.name}"),
        ]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
        return Ended(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def version(program: str) -> str:
    """The first line's version of ``program --version``."""
    words = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split()
    return words[2].split("+")[0] if len(words) > 2 else "?"


@pytest.fixture
def controls(python_root: Path, tmp_path: Path) -> Iterator[dict[str, Control]]:
    """Those older runtimes that are here, by name."""
    cgroup = f"/covey-test-attacks-{os.getpid()}"
    base = tmp_path / "controls"
    base.mkdir()
    found = {name: Control(name, base, cgroup, python_root) for name in ("runc", "crun") if shutil.which(name)}
    for name in {"runc", "crun"} - set(found):
        sys.stderr.write(f"attacks: no {name} here, its controls are left out: apt-get install {name}\n")
    yield found
    lab_remains.remove_cgroups(cgroup)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A directory of the host with one file in it; nothing in it may change."""
    place = tmp_path / "canary"
    place.mkdir()
    (place / "file").write_text("canary\n")
    before = _seen(place)
    yield place
    assert _seen(place) == before


def _seen(place: Path) -> list[tuple[str, int, str]]:
    found = []
    for base, _, files in os.walk(place):
        found.append((base, os.stat(base).st_mode, ""))
        found += [(f"{base}/{name}", os.stat(f"{base}/{name}").st_mode, Path(base, name).read_text()) for name in files]
    return sorted(found)


_SWAP = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
a, b = (os.fsencode(path) for path in sys.argv[1:])
while True:
    for _ in range(200):
        libc.syscall({"x86_64": 316, "aarch64": 276}[os.uname().machine], -100, a, -100, b, 2)
"""


@contextlib.contextmanager
def swapped(one: Path, other: Path) -> Iterator[None]:
    """While the context lasts, another process exchanges two names without pause (renameat2 EXCHANGE)."""
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", _SWAP, str(one), str(other)])
    try:
        yield
    finally:
        process.kill()
        process.wait()
