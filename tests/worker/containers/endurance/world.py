"""A node that is hurt: what the machine shows of it, what it knew when something was wrong, and what it leaves behind.

It looks at processes, mounts, links, cgroups and files itself and believes no answer of the daemon's.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.worker.containers.conftest import CONTROLLERS, Node, wait_until, zygote_of
from tests.worker.containers.states_and_verbs import Caller
from worker.kernel import process

IMAGE = "busybox:latest"
TAG = "endures-"
"""Begins every container's name, and stands in the command line of its first process."""


class World(Node):
    """A node with ``pool`` sandboxes ahead. ``out`` is a directory outside its data in which containers count their runs."""

    def __init__(self, root: Path, archive: bytes, pool: int) -> None:
        super().__init__(root, pool=pool)
        self.archive = archive
        self.out_directory = root / "out"
        self.out_directory.mkdir()
        self.api = Caller(self.socket)

    def begin(self) -> None:
        self.start()
        self.load()

    def load(self) -> None:
        tar = self.root / "busybox.tar"
        tar.write_bytes(self.archive)
        self.docker("load", "-i", str(tar))
        tar.unlink()

    def seen(self, path: Path) -> Path:
        """The path as the node's mount namespace has it."""
        return Path(f"/proc/{self.holder.pid}/root{path}")

    def run_directory(self, ident: str) -> Path:
        return self.seen(self.root / "run" / "containers" / ident)

    def shim(self, ident: str) -> tuple[int, int] | None:
        """(pid, start time) of the container's shim by its own record, if that lives."""
        return _living(self.run_directory(ident) / "shim.json")

    def sandboxes(self) -> list[tuple[Path, int, int]]:
        """(directory, shim pid, start time) of the idle sandboxes whose shim lives."""
        pool = self.seen(self.root / "run" / "pool")
        found = []
        for directory in sorted(pool.iterdir()) if pool.is_dir() else []:
            living = _living(directory / "shim.json")
            if living is not None:
                found.append((directory, *living))
        return found

    def first_processes(self) -> dict[str, list[int]]:
        """Name of a container → pids of the processes that are the first of its namespace and carry its name."""
        found: dict[str, list[int]] = {}
        for pid, line in processes():
            name = line.rpartition("#")[2].strip()
            if name.startswith(TAG) and _is_first(pid) and self._mine(pid):
                found.setdefault(name, []).append(pid)
        return found

    def runs(self, name: str) -> int:
        """How often the container's program has begun."""
        try:
            return (self.out_directory / name).stat().st_size
        except FileNotFoundError:
            return 0

    def leftovers(self) -> list[str]:
        """What is there that belongs to no container, when there is none. The daemon may run."""
        left = [f"process {pids} of {name}" for name, pids in self.first_processes().items()]
        for directory in ("run/containers", "data/containers", "data/rootfs/containers", "data/network/attachments"):
            folder = self.seen(self.root / directory)
            left += [f"file {directory}/{one.name}" for one in folder.iterdir()] if folder.is_dir() else []
        for line in Path(f"/proc/{self.holder.pid}/mountinfo").read_text().splitlines():
            point = line.split()[4]
            if point.startswith((str(self.root / "run") + "/", str(self.root / "data") + "/")):
                left.append(f"mount {point}")
        return left

    def sandbox_leftovers(self) -> list[str]:
        """What the pool has left, when the daemon has ended."""
        left = [f"link {name}" for name in self.links() if name not in ("lo", "covey0") and not name.startswith("sit")]
        pool = self.seen(self.root / "run" / "pool")
        left += [f"file {one.name} {sorted(os.listdir(one))}" for one in (pool.iterdir() if pool.is_dir() else [])]
        left += [
            f"process {pid} {line}"
            for pid, line in processes()
            if comm(pid) in ("covey-shim", "covey-sandbox") and self._mine(pid)
        ]
        return left + [f"cgroup {one}" for one in self.cgroups() if one.name != "shims"]

    def _mine(self, pid: int) -> bool:
        """Whether the process sees the node's mounts or was made in its cgroups."""
        try:
            return self.cgroup in Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            return False

    def cgroups(self) -> list[Path]:
        """The cgroups below the node's own, of all hierarchies."""
        tops = [base / self.cgroup.strip("/") for base in CONTROLLERS.iterdir()]
        return [one for top in tops if top.is_dir() for one in top.iterdir() if one.is_dir()]

    def links(self) -> list[str]:
        listed = subprocess.run(self.inside("ip", "-o", "link"), capture_output=True, text=True, check=True).stdout
        return [line.split(": ")[1].partition("@")[0] for line in listed.splitlines()]

    def story(self, *names: str) -> str:
        """What the node knew, for whoever has to find out."""
        parts = [f"daemon log:\n{_tail(self.errors)}", f"zygote log:\n{_tail(self.seen(self.root / 'run' / 'zygote.log'))}"]
        for name in names:
            with contextlib.suppress(Exception):
                parts.append(f"inspect {name}: {self.api.call('GET', f'/containers/{name}/json').text[:3000]}")
        with contextlib.suppress(Exception):
            parts.append(
                f"events:\n{self.docker('events', '--since', '1', '--until', f'{time.time():.6f}', code=None).stdout[-2500:]}"
            )
        run = self.seen(self.root / "run")
        for path in sorted([*run.glob("containers/*/*.json"), *run.glob("pool/*/*.json")]):
            if path.name in ("shim.json", "exit.json"):
                with contextlib.suppress(OSError):
                    parts.append(f"{path}: {path.read_text()}")
        parts.append("\n".join(f"{pid} {comm(pid)} {line[:120]}" for pid, line in processes() if self._mine(pid)))
        parts.append("cgroups:\n" + "\n".join(sorted({one.name for one in self.cgroups()})))
        return "\n\n".join(parts)

    def close(self) -> None:
        """Ends the node whatever state it is in; the daemon first, which would replace a zygote that is dead."""
        try:
            if self.daemon is not None and self.daemon.poll() is None:
                self.clear()
                self.kill(signal.SIGTERM)
            zygote = zygote_of(self.seen(self.root))
            if zygote:
                os.kill(zygote, signal.SIGTERM)
            super().close()
        except BaseException:
            for pid, _ in list(processes()):
                if self._mine(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            super().close()
            raise


def processes() -> Iterator[tuple[int, str]]:
    """(pid, command line) of all there are; zombies have none."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _is_first(pid: int) -> bool:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[-1] == "1" and len(line.split()) > 2
    except OSError:
        pass
    return False


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    except OSError:
        pass
    return False


def _living(path: Path) -> tuple[int, int] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    pid, started = int(found["pid"]), int(found["start_time"])
    return (pid, started) if process.is_alive(pid, started) else None


def _tail(path: Path, most: int = 8000) -> str:
    try:
        return path.read_text(errors="replace")[-most:]
    except OSError as error:
        return str(error)


def wait_dead(pid: int, started: int, what: str, patience: float = 10.0) -> None:
    wait_until(lambda: not process.is_alive(pid, started), f"{what} (pid {pid}) ends", patience)
