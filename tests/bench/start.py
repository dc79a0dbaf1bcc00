"""The table `start`: from a container's start to its end, bursts of starts, removals, and what a start costs in CPU.

Side by side in one run, in an order drawn for each round: Covey with its warm pool, Covey without one, crun (a child
process, no network), dockerd. Covey and dockerd are driven over their API: a container of ``true`` that exists, with the
default bridge network, seccomp, a log and limits; timed from the request to start it until ``wait`` answers. Between
any two measurements is a pause in which a pool refills, the same for all: what is measured is a start on a machine at
rest, and for crun on cgroup v1 that means that the kernel's first move of a process between cgroups waits for a grace
period, which Covey's way around (a process enters by itself) does not need.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from api import Connection, flood
from crun import Crun
from processes import own
from rivals import COLD, COVEY, DOCKER, Rival, clear_cgroups, running

from worker.kernel import syscalls
from worker.kernel.mounts import mount_points
from worker.runtime.cgroups import Cgroup

IMAGE = "covey/busybox:bench"
ROUNDS = 50
PAUSE = 0.15
"""Seconds between two measurements."""
BURST, FLIGHT, BURSTS = 100, 8, 5
COUNTED = 40
"""Starts whose CPU time is counted."""
LIMITS = {"Memory": 256 << 20, "CpuShares": 512, "LogConfig": {"Type": "json-file", "Config": {}}}


class Node:
    """A rival and a connection to it."""

    def __init__(self, rival: Rival) -> None:
        self.rival = rival
        self.api = Connection(rival.socket)
        self.waiting = Connection(rival.socket)

    def create(self, *argv: str) -> str:
        return str(self.api.call("POST", "/containers/create", {"Image": IMAGE, "Cmd": argv, "HostConfig": LIMITS})["Id"])

    def start_to_exit(self, ident: str) -> float:
        """Milliseconds."""
        self.waiting.send_call("POST", f"/containers/{ident}/wait?condition=next-exit")
        began = time.perf_counter()
        self.api.call("POST", f"/containers/{ident}/start")
        ended = self.waiting.answer()
        spent = (time.perf_counter() - began) * 1000
        if ended["StatusCode"]:
            raise SystemExit(f"bench: {self.rival.kind.name}'s container ended with {ended}")
        return spent

    def whole(self) -> float:
        """Milliseconds of create, start and wait together, what ``docker run`` does."""
        began = time.perf_counter()
        ident = self.create("true")
        self.waiting.send_call("POST", f"/containers/{ident}/wait?condition=next-exit")
        self.api.call("POST", f"/containers/{ident}/start")
        self.waiting.answer()
        spent = (time.perf_counter() - began) * 1000
        self.remove(ident)
        return spent

    def command(self) -> float:
        """Milliseconds of the command ``docker run``, from its fork to its end."""
        argv = ["docker", "-H", f"unix://{self.rival.socket}", "run", "--rm", "-m", "256m", IMAGE, "true"]
        began = time.perf_counter()
        if subprocess.run(argv, stdin=subprocess.DEVNULL).returncode:
            raise SystemExit("bench: docker run failed")
        return (time.perf_counter() - began) * 1000

    def remove(self, ident: str) -> None:
        self.api.call("DELETE", f"/containers/{ident}?force=true")

    def many(self, idents: list[str], method: str, path: str) -> float:
        """Seconds until a request for each has been answered, FLIGHT at a time."""
        began = time.perf_counter()
        flood(self.rival.socket, ((method, path.format(ident)) for ident in idents), FLIGHT)
        return time.perf_counter() - began


Contenders = dict[str, Callable[[], float]]


def run(rounds: int) -> int:
    """Measure and print; 0 also when an aim is missed, which the table says: a measurement is no test."""
    hide_unified()
    with image_archive() as (directory, archive), ExitStack() as stack:
        nodes = {}
        for kind in (COVEY, COLD, DOCKER):
            rival = stack.enter_context(running(kind, directory))
            with archive.open("rb") as data:
                rival.client.images.load(data)
            nodes[kind.name] = Node(rival)
        crun = stack.enter_context(crun_peer())
        rows = _rounds(nodes, crun, max(rounds, 1))
        print("\n".join(_table(rows)))
        print("\n".join(_cost(nodes, crun)))
        print("\n".join(_bursts(nodes, crun)))
    return 0


@contextmanager
def image_archive() -> Iterator[tuple[Path, Path]]:
    """(a directory for the measurement, the archive of IMAGE in it)."""
    with tempfile.TemporaryDirectory(prefix="covey-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        archive = directory / "image.tar"
        subprocess.run([sys.executable, "scripts/make-image", IMAGE, "-o", str(archive)], check=True)
        yield directory, archive


@contextmanager
def crun_peer() -> Iterator[Crun]:
    """crun with its files on a tmpfs, its root a busybox's."""
    parent = f"/covey-bench-{os.getpid()}-crun"
    base = Path(f"/run/covey-bench-{os.getpid()}")
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("bench: no busybox. Run: apt-get install busybox-static")
    try:
        for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
            (base / "rootfs" / name).mkdir(parents=True)
        shutil.copy(busybox, base / "rootfs/bin/busybox")
        for name in ("true", "sleep"):
            (base / "rootfs/bin" / name).symlink_to("busybox")
        Cgroup(parent).create()
        yield Crun(base, base / "rootfs", parent)
    finally:
        shutil.rmtree(base, ignore_errors=True)
        clear_cgroups(parent)


def _rounds(nodes: dict[str, Node], crun: Crun, rounds: int) -> dict[str, list[float]]:
    """Milliseconds by contender; one unmeasured round first."""
    dice = random.Random(rounds)
    spent: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        contenders: Contenders = {}
        idents = {name: node.create("true") for name, node in nodes.items()}
        for name, node in nodes.items():
            contenders[name] = lambda node=node, ident=idents[name]: node.start_to_exit(ident)
            contenders[f"{name} whole"] = node.whole
        contenders["docker run"] = nodes["docker"].command
        crun.bundle(f"c{number}", "/bin/true")
        contenders["crun"] = lambda ident=f"c{number}": crun.run(ident) * 1000
        order = list(contenders)
        dice.shuffle(order)
        for name in order:
            time.sleep(PAUSE)
            took = contenders[name]()
            if number:
                spent.setdefault(name, []).append(took)
        for name, node in nodes.items():
            node.remove(idents[name])
        crun.forget(f"c{number}")
        sys.stderr.write(f"\rbench: round {number} of {rounds}   ")
    sys.stderr.write("\r" + " " * 40 + "\r")
    return spent


def _table(spent: dict[str, list[float]]) -> list[str]:
    rows = (
        ("Covey, warm pool", "covey"),
        ("Covey, pool off", "covey-cold"),
        ("crun run, no network", "crun"),
        ("dockerd", "docker"),
        ("Covey, warm: create, start, wait", "covey whole"),
        ("dockerd: create, start, wait", "docker whole"),
        ("docker run, the command", "docker run"),
    )
    lines = [f"{'start to exit of true (ms)':36}{'median':>9}{'p10':>9}{'p90':>9}"]
    for title, name in rows:
        ordered = sorted(spent[name])
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        lines.append(f"{title:36}{statistics.median(ordered):9.1f}{low:9.1f}{high:9.1f}")
    middle = {name: statistics.median(values) for name, values in spent.items()}
    lines += [
        _ratio("warm / crun", middle["covey"] / middle["crun"], 0.40),
        _ratio("pool off / crun", middle["covey-cold"] / middle["crun"], 1.0),
        _ratio("warm / docker run", middle["covey"] / middle["docker run"], 0.04),
        f"{'create, start, wait: warm / dockerd':36}{middle['covey whole'] / middle['docker whole']:9.3f}",
        f"({len(spent['crun'])} rounds, order drawn anew in each, {PAUSE * 1000:.0f} ms before each)",
        "",
    ]
    return lines


def _ratio(title: str, value: float, most: float) -> str:
    return f"{title:36}{value:9.3f}   aim ≤ {most:.2f}  {'met' if value <= most else 'MISSED'}"


def _least(title: str, value: float, least: float) -> str:
    return f"{title:36}{value:9.2f}   aim ≥ {least:.1f}  {'met' if value >= least else 'MISSED'}"


def _cost(nodes: dict[str, Node], crun: Crun) -> list[str]:
    """CPU milliseconds of a start to exit: all processes of each, the container's and the pool's refill included."""
    spent = {}
    for name in ("covey", "covey-cold"):
        node = nodes[name]
        idents = [node.create("true") for _ in range(COUNTED)]
        time.sleep(1)
        before = _cpu(node.rival)
        for ident in idents:
            node.start_to_exit(ident)
            time.sleep(PAUSE)
        time.sleep(1)
        spent[name] = (_cpu(node.rival) - before) / COUNTED
        for ident in idents:
            node.remove(ident)
    before = _crun_cpu(crun)
    for number in range(COUNTED):
        crun.bundle(f"p{number}", "/bin/true")
        _counted(crun, f"p{number}")
        time.sleep(PAUSE)
        crun.forget(f"p{number}")
    spent["crun"] = (_crun_cpu(crun) - before) / COUNTED
    lines = [f"{'CPU time of a start to exit (ms)':36}"]
    lines += [f"{name:36}{value:9.1f}" for name, value in spent.items()]
    lines.append(_ratio("warm, refill included / crun", spent["covey"] / spent["crun"], 1.5))
    pool = nodes["covey"].rival
    shims, boxes = pool.processes("shims"), pool.processes("sandboxes")
    held = sum(own(one.pid) for one in (*shims, *boxes)) / 1024
    lines += [f"pool: {len(boxes)} sandboxes, {held:.1f} MiB of their own in all", ""]
    return lines


def _cpu(rival: Rival) -> float:
    """Milliseconds of CPU used so far by the node's processes and, below its cgroup, by its containers and shims.

    The daemon is the only long-lived process outside that cgroup.
    """
    (daemon,) = rival.processes("daemon")
    ticks = sum(int(field) for field in Path(f"/proc/{daemon.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])
    precise = Path(f"/proc/{daemon.pid}/schedstat")
    own = sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{daemon.pid}/task").iterdir())
    return (own / 1e6 if precise.exists() else ticks * 10) + _group_cpu(rival.cgroup)


def _group_cpu(path: str) -> float:
    return int(Path(f"/sys/fs/cgroup/cpuacct{path}/cpuacct.usage").read_text()) / 1e6


def _crun_cpu(crun: Crun) -> float:
    return _group_cpu(crun.parent)


def _counted(crun: Crun, ident: str) -> None:
    """``crun run`` from within its parent cgroup, so that its own time is counted too."""
    group = Cgroup(f"{crun.parent}/self")
    group.create()
    pid = os.fork()
    if pid == 0:
        try:
            group.enter()
            os.execv(crun.command[0], [*crun.command, "run", "--bundle", str(crun.base / ident), ident])
        finally:
            os._exit(127)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("bench: crun run failed while its CPU time was counted")


def _bursts(nodes: dict[str, Node], crun: Crun) -> list[str]:
    """Rates of BURST starts, FLIGHT at a time, and of their removal: medians of BURSTS, in an order drawn for each."""
    dice = random.Random(BURST)
    spent: list[tuple[float, float]] = []
    contenders = {
        "covey": partial(_counted_burst, nodes["covey"], spent),
        "docker": lambda name: _burst(nodes["docker"], name)[:2],
    }
    contenders["crun"] = partial(_crun_burst, crun)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(BURSTS):
        order = list(contenders)
        dice.shuffle(order)
        for name in order:
            rates[name].append(contenders[name](f"b{number}"))
            time.sleep(1)
    starts, removals = ({name: statistics.median(one[at] for one in held) for name, held in rates.items()} for at in (0, 1))
    return [
        f"{f'{BURSTS} bursts of {BURST}, {FLIGHT} in flight (1/s)':36}{'start':>9}{'remove':>9}",
        *(f"{name:36}{starts[name]:9.1f}{removals[name]:9.1f}" for name in ("covey", "crun", "docker")),
        f"{'CPU time of one of Covey (ms)':36}" + "".join(f"{statistics.median(one):9.1f}" for one in zip(*spent, strict=True)),
        _least("starts, Covey / crun", starts["covey"] / starts["crun"], 1.0),
        _least("starts, Covey / docker", starts["covey"] / starts["docker"], 15.0),
        _least("removals, Covey / crun", removals["covey"] / removals["crun"], 1.0),
    ]


def _burst(node: Node, _: str, count: Callable[[], float] = lambda: 0.0) -> tuple[float, float, list[float]]:
    """Rates of starts and removals, and what ``count`` grew by during each."""
    idents = [node.create("sleep", "600") for _ in range(BURST)]
    rates, grown = [], []
    for method, path in (("POST", "/containers/{}/start"), ("DELETE", "/containers/{}?force=true")):
        time.sleep(1)
        before = count()
        rates.append(BURST / node.many(idents, method, path))
        grown.append(count() - before)
    return rates[0], rates[1], grown


def _counted_burst(node: Node, held: list[tuple[float, float]], name: str) -> tuple[float, float]:
    """Rates; ``held`` gets the CPU milliseconds of a start and of a removal until it is answered."""
    started, removed, grown = _burst(node, name, partial(_cpu, node.rival))
    held.append((grown[0] / BURST, grown[1] / BURST))
    return started, removed


def _crun_burst(crun: Crun, prefix: str) -> tuple[float, float]:
    idents = [f"{prefix}-{number}" for number in range(BURST)]
    for ident in idents:
        crun.bundle(ident, "/bin/sleep", "600")
    time.sleep(1)
    started = BURST / crun.many("start", idents, FLIGHT)
    time.sleep(1)
    removed = BURST / crun.many("delete", idents, FLIGHT)
    for ident in idents:
        crun.forget(ident)
    return started, removed


def hide_unified() -> None:
    """In a mount namespace of this process's own, leave one version of cgroups: crun refuses a machine that mixes them."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    unified = "/sys/fs/cgroup/unified"
    if Cgroup("/").version == 1 and unified in mount_points(unified):
        # Over it, not off it: crun makes directories there whatever it is.
        syscalls.mount("tmpfs", unified, "tmpfs", 0)
