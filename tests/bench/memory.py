"""The table `memory`: what a running container costs in processes of ours, beside containerd's shim and conmon.

A node at a time: 50 idle containers are started over its API, one after another; when they are at rest, each shim's own
memory (USS: pages it shares with nobody) and the proportional share (PSS) of the daemons are read. A Covey shim is its
keeper and, while something is under way, its worker. Then every container is asked for its processes once, and the shims
are read again when they have gone back to sleep. MB are 10^6 bytes.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from api import Connection
from crun import Crun
from processes import Process, own, pss
from rivals import COLD, COVEY, DOCKER, Kind, Rival, running
from start import IMAGE, crun_peer, hide_unified, image_archive
from waiting import wait

CONTAINERS = 50
PATIENCE = 120.0
REST = 3.0
"""Seconds after the last start or request before Docker is read; Covey's workers are waited for as well."""
KIB = 1024 / 1e6
AIMS = {"shim": 1.1, "daemons": 60.0}


def run(rounds: int) -> int:
    """Measure ``rounds`` times and print each; 0 also when an aim is missed, which the table says."""
    hide_unified()
    with image_archive() as (directory, archive), ExitStack() as stack:
        for _ in range(rounds):
            lines = [f"{f'own memory of a shim, {CONTAINERS} containers (kB)':52}{'min':>8}{'median':>8}{'max':>8}"]
            for title, kind in (("Covey, warm pool", COVEY), ("Covey, pool off", COLD), ("containerd-shim", DOCKER)):
                if kind is not DOCKER or shutil.which("dockerd"):
                    lines += _node(title, kind, directory, archive)
            if shutil.which("conmon"):
                lines += _conmons(stack.enter_context(crun_peer()))
                stack.close()
            print("\n".join(lines))
    return 0


def _node(title: str, kind: Kind, directory: Path, archive: Path) -> list[str]:
    with running(kind, directory) as rival:
        with archive.open("rb") as data:
            rival.client.images.load(data)
        api = Connection(rival.socket)
        idents = []
        for number in range(CONTAINERS):
            ident = api.call("POST", "/containers/create", {"Image": IMAGE, "Cmd": ["sleep", "86400"]})["Id"]
            api.call("POST", f"/containers/{ident}/start")
            idents.append(ident)
            sys.stderr.write(f"\rbench: {title}, container {number + 1} of {CONTAINERS}   ")
            time.sleep(0.15)
        lines = []
        for when in ("", ", after a request"):
            time.sleep(REST)
            shims = _at_rest(rival) if kind is not DOCKER else {one.pid: own(one.pid) for one in rival.processes("shims")}
            lines.append(_row(f"{title}{when}", list(shims.values())))
            if kind is not DOCKER:
                lines.append(_aim("largest of them", max(shims.values()) * KIB, AIMS["shim"]))
            for ident in idents:
                api.call("GET", f"/containers/{ident}/top")
        lines += _daemons(rival)
        for ident in idents:
            api.call("DELETE", f"/containers/{ident}?force=true")
        api.close()
    sys.stderr.write("\r" + " " * 60 + "\r")
    return lines


def _at_rest(rival: Rival) -> dict[int, int]:
    """Own memory in KiB by keeper of a container's shim, once no container has anything under way."""
    deadline = time.monotonic() + PATIENCE
    while True:
        keepers, workers = _of_containers(rival)
        if len(keepers) == CONTAINERS and not workers:
            return {one.pid: own(one.pid) for one in keepers}
        if time.monotonic() > deadline:
            sys.stderr.write(f"\nbench: {len(workers)} of {len(keepers)} shims still have a worker, which is counted\n")
            return {one.pid: own(one.pid) + sum(own(w.pid) for w in workers if w.parent == one.pid) for one in keepers}
        time.sleep(0.2)


def _of_containers(rival: Rival) -> tuple[list[Process], list[Process]]:
    """(keepers, workers) of the shims that are not the pool's."""
    shims = rival.processes("shims")
    pids = {one.pid for one in shims}
    waiting = {one.parent for one in rival.processes("sandboxes")}
    keepers = [one for one in shims if one.parent not in pids and one.pid not in waiting]
    return keepers, [one for one in shims if one.parent in {keeper.pid for keeper in keepers}]


def _daemons(rival: Rival) -> list[str]:
    if rival.kind.name == DOCKER.name:
        held = sum(pss(one.pid) for part in ("dockerd", "containerd") for one in rival.processes(part))
        return [f"{'  dockerd and containerd (PSS, MB)':52}{held * KIB:24.1f}", ""]
    parts = {part: sum(pss(one.pid) for one in rival.processes(part)) * KIB for part in ("daemon", "zygote")}
    words = " and ".join(f"{part} {amount:.1f}" for part, amount in parts.items())
    lines = [_aim(f"{words} (PSS)", sum(parts.values()), AIMS["daemons"])]
    keepers, workers = _of_containers(rival)
    boxes = rival.processes("sandboxes")
    if boxes:
        counted = {one.pid for one in (*keepers, *workers)}
        pool = [*boxes, *(one for one in rival.processes("shims") if one.pid not in counted)]
        held = sum(own(one.pid) for one in pool) * KIB
        lines.append(f"{f'  pool: {len(boxes)} sandboxes, own memory in all (MB)':52}{held:24.1f}")
    return [*lines, ""]


def _conmons(crun: Crun) -> list[str]:
    with _watched_by_conmon(crun) as pids:
        time.sleep(1)
        return [_row("conmon", [own(pid) for pid in pids])]


@contextmanager
def _watched_by_conmon(crun: Crun) -> Iterator[list[int]]:
    """Containers of crun, each with a conmon; their pids."""
    idents = [f"conmon{number}" for number in range(CONTAINERS)]
    options = [word for argument in crun.command[1:] for word in ("--runtime-arg", argument)]
    pids: list[int] = []
    try:
        for ident in idents:
            crun.bundle(ident, "/bin/sleep", "86400")
            base = crun.base / ident
            command = [
                "conmon", "--cid", ident, "--cuuid", ident, "--name", ident, "--runtime", crun.command[0], *options,
                "--bundle", str(base), "--container-pidfile", str(base / "pid"), "--conmon-pidfile", str(base / "conmon"),
                "--log-path", f"k8s-file:{base}/log", "--exit-dir", str(base), "--socket-dir-path", str(base),
            ]  # fmt: skip
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
            pid = base / "pid"
            wait(f"conmon to write {pid}", lambda pid=pid: pid.exists() and pid.read_text())
            subprocess.run([*crun.command, "start", ident], check=True)
            pids.append(int((base / "conmon").read_text()))
        yield pids
    finally:
        for ident in idents:
            if (crun.base / ident).exists():
                subprocess.run([*crun.command, "delete", "--force", ident], check=False, stderr=subprocess.DEVNULL)
        # A conmon ends with its container.
        wait("conmon's end", lambda: not any(Path(f"/proc/{pid}/smaps_rollup").exists() and own(pid) for pid in pids))


def _row(title: str, kib: list[int]) -> str:
    numbers = (min(kib), statistics.median(kib), max(kib))
    return f"{title:52}" + "".join(f"{number * 1.024:8.0f}" for number in numbers)


def _aim(title: str, value: float, most: float) -> str:
    return f"{f'  {title} (MB)':52}{value:24.2f}   aim ≤ {most:.1f}  {'met' if value <= most else 'MISSED'}"
