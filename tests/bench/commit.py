"""The table `commit`: how many tasks a second a leader brings to a real etcd, and what bounds it.

It starts an etcd (fsync on), one manager process and a process of fake workers with real sessions, which report RUNNING as
soon as they are told of a task. Each round creates a service and measures from the 201 until a reader of its own, which knows
etcd only, has seen every task ASSIGNED or later. The machine is shared by all of them and by whatever else runs, so the
table says what each part used; nothing passes or fails by time. COVEY_BENCH_REPLICAS and COVEY_BENCH_WORKERS change the size.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import msgspec
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc import rpc_pb2_grpc as services

from covey.engine_api.light import Client
from covey.etcd import EtcdChild
from covey.tls import make_key_and_request

REPLICAS = int(os.environ.get("COVEY_BENCH_REPLICAS", "10000"))
WORKERS = int(os.environ.get("COVEY_BENCH_WORKERS", "1000"))
PATIENCE = 180.0
POLL = 0.02
ASSIGNED, RUNNING = 192, 512
ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


#: What the table names → the counters it is the sum of; all but the last five are times on the manager's event loop.
ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("decide: reconcile, allocate, placement", tuple(f"loop.{name}" for name in ("reconcile", "allocate", "placement"))),
    ("verify", ("loop.verify",)),
    ("draw and overlay: writes, speculative snapshot", ("loop.draw", "loop.overlay")),
    ("other decisions: liveness, reap", ("loop.liveness", "loop.reap")),
    ("encode", ("office.committer.encode_seconds",)),
    ("mirror: decode, index", ("mirror.apply_seconds",)),
    ("dispatch: what nodes should hold", ("dispatcher.holding_seconds",)),
    ("statuses: judge, encode", ("dispatcher.statuses.busy_seconds",)),
    ("CPU of the manager, all of the above and TLS, gRPC", ("cpu.manager",)),
    ("CPU of etcd", ("cpu.etcd",)),
    ("CPU of the workers", ("cpu.workers",)),
    ("CPU of the reader", ("cpu.reader",)),
    ("etcd waits for its disk (fsync of the log)", ("etcd.sync_seconds",)),
)


@dataclass(frozen=True)
class Sample:
    """One round: seconds from the 201, and what every counter rose by until then."""

    first: float
    assigned: float
    running: float
    until_assigned: dict[str, float]
    until_running: dict[str, float]
    after: dict[str, float]


class _Envelope(msgspec.Struct, array_like=True):
    schema: int
    kind: str
    body: msgspec.Raw


class _State(msgspec.Struct):
    service_id: str = ""
    state: int = 0


class Reader:
    """Follows etcd's own stream of changes in a thread: when each task was first seen assigned, and running."""

    def __init__(self, target: str) -> None:
        self.assigned: dict[str, float] = {}
        self.running: dict[str, float] = {}
        self.gone: set[str] = set()
        self.cpu = 0.0
        self._channel = grpc.insecure_channel(
            target, options=[("grpc.max_receive_message_length", -1), ("grpc.default_authority", "localhost")]
        )
        create = pb.WatchCreateRequest(key=b"/covey/task", range_end=b"/covey/tasl")
        self._requests = iter([pb.WatchRequest(create_request=create)])
        self._stream = services.WatchStub(self._channel).Watch(self._hold())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="reader", daemon=True)

    def _hold(self) -> Iterator[Any]:
        yield next(self._requests)
        self._over.wait()

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._stream.cancel()
        self._thread.join()
        self._channel.close()

    def forget(self) -> None:
        """Before a round."""
        self.assigned, self.running, self.gone = {}, {}, set()

    def _follow(self) -> None:
        envelopes, states = msgspec.msgpack.Decoder(_Envelope), msgspec.msgpack.Decoder(_State)
        try:
            for response in self._stream:
                now = time.monotonic()
                for event in response.events:
                    kind, _, name = event.kv.key.decode().removeprefix("/covey/").partition("/")
                    if event.type == 1:
                        self.gone.update([name] if kind == "task" else [])
                    else:
                        state = states.decode(envelopes.decode(event.kv.value).body).state
                        if kind == "task" and state >= ASSIGNED:
                            self.assigned.setdefault(name, now)
                        elif kind == "task_status" and state >= RUNNING:
                            self.running.setdefault(name, now)
                self.cpu = time.thread_time()
        except grpc.RpcError:
            if not self._over.is_set():
                raise


@contextmanager
def _process(argv: Sequence[str], log: Path, **more: Any) -> Iterator[subprocess.Popen[str]]:
    with log.open("wb") as errors:
        process = subprocess.Popen(argv, stderr=errors, text=True, **more)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(what: str, condition: Any, log: Path | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            tail = f"\n{log.read_text()[-2000:]}" if log else ""
            raise SystemExit(f"bench: waited {PATIENCE:.0f} s for {what}{tail}")
        time.sleep(POLL)


class Bed:
    """What a measurement stands on: etcd, manager, workers, reader."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        child = self._child = EtcdChild(str(directory / "etcd"))
        child.prepare()
        environment = {**os.environ, **child.environment()}
        self.etcd = stack.enter_context(_process(child.argv(), directory / "etcd.log", cwd=child.directory, env=environment))
        child.wait_ready(20, alive=lambda: self.etcd.poll() is None)
        self.log = directory / "manager.log"
        paths = ["--data-root", str(directory / "data"), "--exec-root", str(directory / "run")]
        self.manager = stack.enter_context(
            _process(
                [str(ROOT / ".venv/bin/cluster"), "manager", "--listen", "127.0.0.1:0", "--store", child.endpoint(), *paths],
                self.log,
            )
        )
        private = directory / "run" / "manager.sock"
        _wait("the manager", private.exists, self.log)
        self.client = Client(f"unix://{private}")
        _, request = make_key_and_request()
        reply = self.client.post("/covey/bootstrap", json={"RequestPEM": request})
        token = self.client.get("/swarm")["JoinTokens"]["Worker"]
        self.workers = stack.enter_context(
            _process(
                [
                    sys.executable,
                    "-P",
                    str(Path(__file__).with_name("commit_workers.py")),
                    reply["Managers"][0],
                    token,
                    str(WORKERS),
                ],
                directory / "workers.log",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        if self._line() != "ready":
            raise SystemExit(f"bench: the workers do not come up: {(directory / 'workers.log').read_text()[-2000:]}")
        _wait("every node to be ready", lambda: self.ready() >= WORKERS, self.log)
        self.reader = stack.enter_context(Reader(child.endpoint()))

    def _line(self) -> str:
        assert self.workers.stdout is not None
        return self.workers.stdout.readline().strip()

    def ready(self) -> int:
        """How many nodes are."""
        time.sleep(0.3)
        return sum(node["Status"]["State"] == "ready" for node in self.client.get("/nodes"))

    def ask_workers(self) -> dict[str, Any]:
        assert self.workers.stdin is not None
        self.workers.stdin.write("\n")
        self.workers.stdin.flush()
        seen: dict[str, Any] = json.loads(self._line())
        return seen

    def count(self) -> dict[str, float]:
        """Every counter there is: of the manager's parts, of etcd's disk, and seconds of CPU by process."""
        said = self.client.get("/covey/statistics")
        said["dispatcher"].pop("sessions")
        counts = _flat(said)
        for loop in said["office"]["loops"].values():
            counts["steps.long"] = counts.get("steps.long", 0.0) + loop["long"]
            for step, seconds in loop["seconds"].items():
                counts[f"loop.{step}"] = counts.get(f"loop.{step}", 0.0) + seconds
        for name, pid in (("etcd", self.etcd.pid), ("manager", self.manager.pid), ("workers", self.workers.pid)):
            counts[f"cpu.{name}"] = _cpu(pid)
        metrics = {
            line.split()[0]: line.split()[-1] for line in self._metrics().splitlines() if line.startswith("etcd_disk_wal")
        }
        counts["etcd.sync_seconds"] = float(metrics["etcd_disk_wal_fsync_duration_seconds_sum"])
        counts["etcd.syncs"] = float(metrics["etcd_disk_wal_fsync_duration_seconds_count"])
        return {**counts, "cpu.reader": self.reader.cpu}

    def _metrics(self) -> str:
        with socket.socket(socket.AF_UNIX) as link:
            link.connect(self._child.socket_path())
            link.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            pieces = []
            while piece := link.recv(1 << 16):
                pieces.append(piece)
        return b"".join(pieces).decode()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _flat(counts: Any, prefix: str = "") -> dict[str, float]:
    """Numbers of a statistics object by dotted path."""
    found: dict[str, float] = {}
    for name, value in counts.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{name}."))
        elif isinstance(value, (int, float)):
            found[prefix + name] = value
    return found


def _spec(number: int) -> dict[str, Any]:
    return {
        "Name": f"bench{number}",
        "TaskTemplate": {
            "ContainerSpec": {"Image": "busybox:1", "Args": ["httpd", "-f"], "Env": ["A=1", "B=2"]},
            "Resources": {"Reservations": {"NanoCPUs": 1_000_000, "MemoryBytes": 8 << 20}},
        },
        "Mode": {"Replicated": {"Replicas": REPLICAS}},
    }


def _round(bed: Bed, number: int) -> Sample:
    """One service, from its 201 until all its tasks run; then it is removed."""
    bed.reader.forget()
    before = bed.count()
    service = bed.client.post("/services/create", json=_spec(number))["ID"]
    began = time.monotonic()
    _wait("every task to be assigned", lambda: len(bed.reader.assigned) >= REPLICAS, bed.log)
    assigned = bed.count()
    _wait("every task to run", lambda: len(bed.reader.running) >= REPLICAS, bed.log)
    running = bed.count()
    sample = Sample(
        first=min(bed.reader.assigned.values()) - began,
        assigned=max(bed.reader.assigned.values()) - began,
        running=max(bed.reader.running.values()) - began,
        until_assigned={name: assigned[name] - before.get(name, 0.0) for name in assigned},
        until_running={name: running[name] - before.get(name, 0.0) for name in running},
        after=running,
    )
    bed.client.delete(f"/services/{service}")
    _wait("the tasks to be gone", lambda: len(bed.reader.gone) >= REPLICAS, bed.log)
    return sample


def run(rounds: int) -> int:
    """Measure and print; 0 whatever the figures are: a measurement is no test."""
    with tempfile.TemporaryDirectory(prefix="cb-") as name, ExitStack() as stack:
        bed = Bed(Path(name), stack)
        samples: list[Sample] = []
        for number in range(rounds):
            sys.stderr.write(f"\rbench: round {number + 1} of {rounds}   ")
            samples.append(_round(bed, number))
        sys.stderr.write("\r" + " " * 40 + "\r")
        print("\n".join([*_table(samples), *_calm(samples[-1], bed.ask_workers(), bed.ready())]))
    return 0


def _table(samples: list[Sample]) -> list[str]:
    rates = sorted(REPLICAS / sample.assigned for sample in samples)
    middle = sorted(samples, key=lambda sample: sample.assigned)[len(samples) // 2]
    every = ", ".join(f"{rate:,.0f}" for rate in rates)
    first, assigned, running = middle.first, middle.assigned, middle.running
    lines = [
        f"service create --replicas {REPLICAS}, {WORKERS} workers with sessions, etcd with fsync",
        f"{os.cpu_count()} CPUs shared by all of it; load of the machine {os.getloadavg()[0]:.1f}",
        f"assigned, tasks/s from the 201: median {statistics.median(rates):,.0f} ({every})",
        f"the median round: first task seen after {first:.2f} s, last {assigned:.2f} s, all running {running:.2f} s",
        "",
        f"{'':50}{'until assigned':>18}{'until running':>18}",
        f"{'':50}{'s':>9}{'share':>9}{'s':>9}{'share':>9}",
    ]
    lines.append(_line("time", [(middle.assigned, 1.0), (middle.running, 1.0)]))
    for title, names in ROWS:
        spent = [
            (sum(part.get(name, 0.0) for name in names), whole)
            for part, whole in ((middle.until_assigned, middle.assigned), (middle.until_running, middle.running))
        ]
        lines.append(_line(title, [(seconds, seconds / whole) for seconds, whole in spent]))
    return lines


def _line(title: str, columns: list[tuple[float, float]]) -> str:
    return f"{title:50}" + "".join(f"{seconds:9.2f}{share:9.0%}" for seconds, share in columns)


def _calm(last: Sample, workers: dict[str, Any], ready: int) -> list[str]:
    """Whether anybody was taken for dead because the manager was busy."""
    after, count = last.after, last.until_running
    longest = max(seconds for name, seconds in after.items() if name.endswith("longest_step"))
    decided, reported = count["office.committer.transactions"], count["dispatcher.statuses.transactions"]
    return [
        "",
        f"transactions: {decided:.0f} of decisions, {reported:.0f} of statuses; etcd synced {count['etcd.syncs']:.0f} times",
        f"the manager was late by at most {after['lateness.worst']:.2f} s since its start, of the 7.5 s a worker may be silent",
        f"the longest step of a pass took {longest:.3f} s; {count['steps.long']:.0f} steps of the last round took over 0.05 s",
        f"sessions found silent {after['dispatcher.silent']:.0f}, opened again {workers['reopened']}; statuses refused"
        f" {workers['refused']}; nodes ready {ready} of {WORKERS}; leases {after['claim.granted']:.0f}",
    ]
