"""The table `commit`: how many tasks a second a leader brings to a real etcd, and what bounds it.

It starts an etcd (fsync on), one manager process and a process of fake workers with real sessions, which report RUNNING as
soon as they are told of a task. Each round creates a service and measures from the 201 until a reader of its own, which knows
etcd only, has seen every task ASSIGNED or later. The machine is shared by all of them and by whatever else runs, so the
table says what each part used; nothing passes or fails by time.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
        child = EtcdChild(str(directory / "etcd"))
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
        socket = directory / "run" / "manager.sock"
        _wait("the manager", socket.exists, self.log)
        self.client = Client(f"unix://{socket}")
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
        _wait("every node to be ready", lambda: self._ready() >= WORKERS, self.log)
        self.reader = stack.enter_context(Reader(child.endpoint()))

    def _line(self) -> str:
        assert self.workers.stdout is not None
        return self.workers.stdout.readline().strip()

    def _ready(self) -> int:
        time.sleep(0.3)
        return sum(node["Status"]["State"] == "ready" for node in self.client.get("/nodes"))

    def ask_workers(self) -> dict[str, Any]:
        assert self.workers.stdin is not None
        self.workers.stdin.write("\n")
        self.workers.stdin.flush()
        seen: dict[str, Any] = json.loads(self._line())
        return seen

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU that each process has used so far."""
        used = {"etcd": _cpu(self.etcd.pid), "manager": _cpu(self.manager.pid), "workers": _cpu(self.workers.pid)}
        return {**used, "reader": self.reader.cpu}


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


def _statistics(bed: Bed) -> dict[str, float]:
    said = bed.client.get("/covey/statistics")
    said["dispatcher"].pop("sessions")
    return _flat(said)


def _round(bed: Bed, number: int) -> dict[str, Any]:
    spec = {
        "Name": f"bench{number}",
        "TaskTemplate": {
            "ContainerSpec": {"Image": "busybox:1", "Args": ["httpd", "-f"], "Env": ["A=1", "B=2"]},
            "Resources": {"Reservations": {"NanoCPUs": 1_000_000, "MemoryBytes": 8 << 20}},
        },
        "Mode": {"Replicated": {"Replicas": REPLICAS}},
    }
    bed.reader.forget()
    before, used = _statistics(bed), bed.cpu()
    service = bed.client.post("/services/create", json=spec)["ID"]
    began = time.monotonic()
    _wait("every task to be assigned", lambda: len(bed.reader.assigned) >= REPLICAS, bed.log)
    at_assigned = bed.cpu()
    _wait("every task to run", lambda: len(bed.reader.running) >= REPLICAS, bed.log)
    at_running, after = bed.cpu(), _statistics(bed)
    seen = {
        "assigned": max(bed.reader.assigned.values()) - began,
        "half": statistics.median(bed.reader.assigned.values()) - began,
        "running": max(bed.reader.running.values()) - began,
        "cpu": {name: at_assigned[name] - used[name] for name in used},
        "cpu running": {name: at_running[name] - used[name] for name in used},
        "parts": {name: after[name] - before.get(name, 0.0) for name in after},
        "after": after,
    }
    bed.client.delete(f"/services/{service}")
    _wait("the tasks to be gone", lambda: len(bed.reader.gone) >= REPLICAS, bed.log)
    return seen


def run(rounds: int) -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="cb-") as name, ExitStack() as stack:
        bed = Bed(Path(name), stack)
        seen = []
        for number in range(rounds):
            sys.stderr.write(f"\rbench: round {number + 1} of {rounds}   ")
            seen.append(_round(bed, number))
        sys.stderr.write("\r" + " " * 40 + "\r")
        print("\n".join(_table(seen, bed.ask_workers())))
    return 0


def _table(seen: list[dict[str, Any]], workers: dict[str, Any]) -> list[str]:
    lines = [json.dumps(one, indent=1) for one in seen[-1:]]
    for one in seen:
        lines.append(
            f"assigned {REPLICAS / one['assigned']:.0f}/s  half {one['half']:.2f} s all {one['assigned']:.2f} s  running {one['running']:.2f} s"
            f"  cpu {one['cpu']}  {one['cpu running']}"
        )
    return [*lines, str(workers)]
