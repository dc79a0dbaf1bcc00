"""The packing half of the table `scheduler`: how many nodes the pods of a trace need, and when one is first refused.

DIR holds the two lists of the openb trace (Alibaba cluster-trace-gpu-v2023: node and pod lists; CPU in thousandths, memory
in MiB; GPUs are left out); without DIR a seeded synthetic list takes its place, which the table says. *One by one*: pods
come singly and each is placed for good before the next is known (file order, then 20 shuffles beside plain best-fit).
*At once*: all wait in one pass of ``place.decide``, each a service of its own. *Improved*: the same with the improver on.
Best-fit is written out here: the node with least left (sum of both shares), lowest number first.
"""

from __future__ import annotations

import csv
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from covey.model.objects import Node, NodeDescription, NodeInfo, NodeStatus, Task
from covey.model.resources import MIB, NANO, Resources
from covey.model.task_states import TaskState
from scheduler.index import Index
from scheduler.placement import place
from scheduler.placement.bonds import Bonds
from scheduler.placement.capacity import Capacity
from scheduler.placement.levels import place_group
from scheduler.placement.request import Request, request_of
from scheduler.plan import AssignTasks
from scheduler.settings import Settings

Size = tuple[int, int]
NOW = 1_000_000.0
EFFORT = 300
#: (cores, GiB, aims: one by one, at once, improved)
IDENTICAL = ((96, 384, (903, 900, 890)), (104, 512, (826, 826, 823)))
FLEET_AIM = 858
REFUSAL_AIM = 0.98
SHUFFLES = 20


def run(trace: str | None) -> None:
    """Print the table; aims are the trace's and are left out for the synthetic list."""
    pods, fleet = _read(Path(trace)) if trace else _synthetic()
    print(f"\npacking, {len(pods)} pods of {'the openb trace' if trace else 'a SYNTHETIC list (no --trace DIR)'}")
    for cores, gib, aims in IDENTICAL:
        _identical(pods, (cores * 1000, gib * 1024), aims if trace else None)
    _mixed(pods, fleet, bool(trace))


def _identical(pods: Sequence[Size], node: Size, aims: tuple[int, int, int] | None) -> None:
    fitting = [pod for pod in pods if pod[0] <= node[0] and pod[1] <= node[1]]
    bound = max(-(-sum(pod[axis] for pod in fitting) // node[axis]) for axis in (0, 1))
    nodes = [node] * int(bound * 1.2)
    print(f"\nnodes of {node[0] // 1000} cores, {node[1] // 1024} GiB: {len(fitting)} pods ({len(pods) - len(fitting)} larger"
          f" than a node skipped), bound {bound}")  # fmt: skip
    _line("one by one, file order", *_singly(fitting, nodes), aims and aims[0])
    ours, theirs = [], []
    for seed in range(SHUFFLES):
        shuffled = random.Random(seed).sample(fitting, len(fitting))
        ours.append(_singly(shuffled, nodes)[0])
        theirs.append(_best_fit(shuffled, node, len(nodes)))
    mean, plain = statistics.mean(ours), statistics.mean(theirs)
    print(f"  {f'one by one, mean of {SHUFFLES} shuffles':44}{mean:8.2f} nodes; plain best-fit {plain:.2f}"
          f"{'' if aims is None else '  met' if mean <= plain else '  MISSED'}")  # fmt: skip
    _line("at once", *_at_once(fitting, nodes, 0)[:2], aims and aims[1])
    _line(f"at once, improved ({EFFORT} steps a node)", *_at_once(fitting, nodes, EFFORT)[:2], aims and aims[2])


def _mixed(pods: Sequence[Size], fleet: Sequence[Size], aimed: bool) -> None:
    print(f"\nthe mixed fleet of {len(fleet)} nodes, all {len(pods)} pods")
    for title, effort in (("at once", 0), (f"at once, improved ({EFFORT} steps a node)", EFFORT)):
        used, seconds, unplaced = _at_once(pods, fleet, effort)
        _line(f"{title}; unplaced: {unplaced}", used, seconds, FLEET_AIM if aimed and not unplaced else 0 if aimed else None)
    for seed in (1, 2, 3):
        share = _first_refusal(pods, fleet, seed)
        verdict = "" if not aimed else "  met" if share >= REFUSAL_AIM else "  MISSED"
        print(f"  {f'pack-small, drawn with seed {seed}: first refusal at':44}{share:8.2%} of the CPU{verdict}")


def _line(title: str, nodes: int, seconds: float, aim: int | None) -> None:
    verdict = "" if aim is None else f"   aim ≤ {aim}  {'met' if nodes <= aim else 'MISSED'}"
    print(f"  {title:44}{nodes:8} nodes {seconds:8.2f} s{verdict}", flush=True)


def _index(nodes: Sequence[Size]) -> Index:
    index = Index()
    changes = []
    for number, (cpus, memory) in enumerate(nodes):
        name = f"node{number:05}"
        said = NodeDescription(hostname=name, resources=Resources(nano_cpus=cpus * NANO // 1000, memory_bytes=memory * MIB))
        changes += [
            ("node", name, Node(id=name)),
            ("node_info", name, NodeInfo(id=name, description=said)),
            ("node_status", name, NodeStatus(id=name, state="ready")),
        ]
    index.apply(changes, 1)
    return index


def _task(number: int, pod: Size, strategy: str) -> Task:
    reserved = {"NanoCPUs": pod[0] * NANO // 1000, "MemoryBytes": pod[1] * MIB}
    spec = {"Resources": {"Reservations": reserved}, "Placement": {"Strategy": strategy}}
    name = f"pod{number:06}"
    return Task(id=name, service_id=name, slot=1, spec=spec, state=TaskState.PENDING, created_at=NOW - 1)


class _Single:
    """Places pods one after another, for good."""

    def __init__(self, nodes: Sequence[Size], strategy: str) -> None:
        self._index = _index(nodes)
        self._strategy = strategy
        self._requests: dict[Size, Request] = {}
        self.capacity = Capacity(self._index.snapshot(), Settings())
        self._bonds = Bonds(self.capacity)

    def place(self, pod: Size) -> bool:
        request = self._requests.get(pod)
        if request is None:
            task = _task(len(self._requests), pod, self._strategy)
            self._index.apply([("task", task.id, task)], 1)
            request = self._requests[pod] = request_of(task, self.capacity, NOW, self._bonds)
        return len(place_group(self.capacity, request, self._strategy, 1)) == 1


def _singly(pods: Sequence[Size], nodes: Sequence[Size]) -> tuple[int, float]:
    single = _Single(nodes, "pack")
    started = time.process_time()
    for pod in pods:
        if not single.place(pod):
            raise SystemExit("bench: a pod found no node")
    return int((single.capacity.nominal_cpus > 0).sum()), time.process_time() - started


def _first_refusal(pods: Sequence[Size], fleet: Sequence[Size], seed: int) -> float:
    """The share of the fleet's CPU that was given when a pod first found no node; pods up to 130 % of it are offered."""
    rng = random.Random(seed)
    total = sum(cpus for cpus, _ in fleet)
    single = _Single(fleet, "pack-small")
    given = 0
    while given <= 1.3 * total:
        pod = rng.choice(pods)
        if not single.place(pod):
            break
        given += pod[0]
    return given / total


def _at_once(pods: Sequence[Size], nodes: Sequence[Size], effort: int) -> tuple[int, float, int]:
    """(nodes in use, CPU seconds of the pass, pods without a node)."""
    index = _index(nodes)
    index.apply([("task", task.id, task) for number, pod in enumerate(pods) if (task := _task(number, pod, "pack"))], 1)
    settings = Settings(pass_tasks=1 << 40, pack_effort=effort)
    started = time.process_time()
    plan = place.decide(index.snapshot(), NOW, settings)
    seconds = time.process_time() - started
    used = [node for change in plan.changes if isinstance(change, AssignTasks) for node in change.node_ids]
    return len(set(used)), seconds, len(pods) - len(used)


def _best_fit(pods: Sequence[Size], node: Size, count: int) -> int:
    cpus, memory = np.full(count, float(node[0])), np.full(count, float(node[1]))
    opened = 0
    for pod in pods:
        rows = np.flatnonzero((cpus[:opened] >= pod[0]) & (memory[:opened] >= pod[1]))
        row = opened
        if len(rows):
            row = rows[np.argmin(cpus[rows] / node[0] + memory[rows] / node[1])]
        else:
            opened += 1
        cpus[row] -= pod[0]
        memory[row] -= pod[1]
    return opened


def _read(directory: Path) -> tuple[list[Size], list[Size]]:
    lists = []
    for name in ("openb_pod_list_default.csv", "openb_node_list_all_node.csv"):
        with (directory / name).open(encoding="utf-8", newline="") as file:
            lists.append([(int(row["cpu_milli"]), int(row["memory_mib"])) for row in csv.DictReader(file)])
    return lists[0], lists[1]


def _synthetic() -> tuple[list[Size], list[Size]]:
    rng = random.Random(1)
    kinds = [(rng.randint(1, 160) * 100, rng.randint(1, 64) * 1024) for _ in range(60)]
    pods = [rng.choice(kinds) for _ in range(8000)]
    fleet = [rng.choice(((32000, 131072), (64000, 262144), (96000, 393216), (128000, 786432))) for _ in range(1500)]
    return pods, fleet
