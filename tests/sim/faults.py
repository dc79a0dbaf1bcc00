"""What goes wrong in a history: a table of faults, each with its end, and a schedule drawn from the seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from covey.model.objects import Leader
from tests.sim.clock import EPOCH
from tests.sim.net import Weather

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


class Trouble(NamedTuple):
    """The everyday kind: shares of calls and containers that go wrong."""

    store_fails: float = 0.01
    prepare_fails: float = 0.03
    exits: float = 0.3
    bad_images: bool = True


PEACE = Trouble(0.0, 0.0, 0.0, False)


def kill_manager(sim: Simulation) -> bool:
    return _kill(sim, sim.rng.choice(sim.manager_names))


def kill_leader(sim: Simulation) -> bool:
    name = leader(sim)
    return name is not None and _kill(sim, name)


def _kill(sim: Simulation, name: str) -> bool:
    struck = sim.controllers[name].process.alive
    sim.controllers[name].kill()
    sim.later(sim.rng.uniform(0.5, 20), sim.controllers[name].boot)
    return struck


def stall_leader(sim: Simulation) -> bool:
    """SIGSTOP for longer than the lease, or shorter."""
    name = leader(sim)
    return name is not None and _stall(sim, name, sim.rng.uniform(1, 14))


def stall_manager(sim: Simulation) -> bool:
    return _stall(sim, sim.rng.choice(sim.manager_names), sim.rng.uniform(1, 14))


def _stall(sim: Simulation, name: str, seconds: float) -> bool:
    return sim.controllers[name].stall(seconds)


def stall_leader_over_verdict(sim: Simulation) -> bool:
    """A worker is cut off, and comes back while the leader is stopped over the moment at which it would judge."""
    worker = sim.rng.choice(list(sim.machines))
    pairs = [(worker, manager) for manager in sim.manager_names]
    sim.net.partition(pairs)
    sim.later(10.0, _stall_over_verdict, sim, worker, pairs)
    return True


def _stall_over_verdict(sim: Simulation, worker: str, pairs: list[tuple[str, str]]) -> None:
    status, name = sim.truth("node_status").get(worker), leader(sim)
    if status is None or status.state != "unknown" or name is None:
        sim.net.heal(pairs)
        return
    left = max(status.down_at - EPOCH - sim.skew[name] - sim.loop.time(), 0.3)
    sim.later(left - 0.2, _stall, sim, name, sim.rng.uniform(2.5, 4.5))
    sim.later(left - 0.1, sim.net.heal, pairs)


def kill_daemon(sim: Simulation) -> bool:
    machine = sim.machines[sim.rng.choice(list(sim.machines))]
    if not machine.alive:
        return False
    machine.kill_daemon()
    sim.later(sim.rng.uniform(0.2, 25), machine.boot)
    return True


def kill_machine(sim: Simulation) -> bool:
    machine = sim.machines[sim.rng.choice(list(sim.machines))]
    struck = machine.alive
    machine.kill_machine()
    sim.later(sim.rng.uniform(2, 45), machine.boot)
    return struck


def partition_worker(sim: Simulation) -> bool:
    """A worker is cut off from every manager, or from one."""
    worker = sim.rng.choice(list(sim.machines))
    managers = sim.manager_names if sim.rng.random() < 0.7 else [sim.rng.choice(sim.manager_names)]
    return _partition(sim, [(worker, manager) for manager in managers])


def partition_manager(sim: Simulation) -> bool:
    """A manager is cut off from every worker, though not from the store."""
    manager = sim.rng.choice(sim.manager_names)
    return _partition(sim, [(worker, manager) for worker in sim.machines])


def _partition(sim: Simulation, pairs: list[tuple[str, str]]) -> bool:
    sim.net.partition(pairs)
    sim.later(sim.rng.uniform(1, 40), sim.net.heal, pairs)
    return True


def break_links(sim: Simulation) -> bool:
    """Connections break; what was under way is lost."""
    broken = [link for link in sim.net.links if sim.rng.random() < 0.5]
    for link in broken:
        link.sever(notice=True)
    return bool(broken)


def lose_store(sim: Simulation) -> bool:
    """A manager is cut off from the store."""
    controller = sim.controllers[sim.rng.choice(sim.manager_names)]
    controller.disturb(cut_off=True, seconds=sim.rng.uniform(0.5, 12))
    return True


def delay_view(sim: Simulation) -> bool:
    """Mirrors fall behind: the leader's, or those of the others, one of which may lead next. Workers move meanwhile."""
    first = leader(sim)
    behind = [name for name in sim.manager_names if (name == first) == (sim.rng.random() < 0.5)]
    sim.later(sim.rng.uniform(0.5, 4), break_links, sim)
    for controller in (sim.controllers[name] for name in behind):
        controller.disturb(view_lag=sim.rng.choice((1.0, 3.0, 9.0)) * sim.rng.random(), seconds=sim.rng.uniform(5, 25))
    return True


def crash_manager_at_write(sim: Simulation) -> bool:
    """The leader dies before or after one of its next writes."""
    name = leader(sim) or sim.rng.choice(sim.manager_names)
    sim.crash_at[name, sim.rng.choice(("store, before", "store, after"))] = sim.rng.randint(1, 6)
    return True


def stall_leader_at_write(sim: Simulation) -> bool:
    """The leader is stopped with a transaction on its tongue, for longer than its lease lasts."""
    name = leader(sim) or sim.rng.choice(sim.manager_names)
    sim.crash_at[name, "store, stalled"] = sim.rng.randint(1, 6)
    return True


def crash_worker_at_write(sim: Simulation) -> bool:
    """A daemon dies before or after one of its next journal writes."""
    name = sim.rng.choice(list(sim.machines))
    sim.crash_at[name, sim.rng.choice(("journal, before", "journal, after"))] = sim.rng.randint(1, 4)
    return True


def bad_store(sim: Simulation) -> bool:
    """Many answers of the store are lost."""
    sim.trouble = sim.trouble._replace(store_fails=0.3)
    sim.later(sim.rng.uniform(2, 10), sim.restore_trouble)
    return True


def bad_weather(sim: Simulation) -> bool:
    """Slow links that repeat what they carry."""
    sim.net.weather = Weather(slow=1.5, repeat=0.3)
    sim.later(sim.rng.uniform(2, 15), setattr, sim.net, "weather", Weather())
    return True


def leader(sim: Simulation) -> str | None:
    held = sim.truth("leader").get("leader")
    return held.node_id if isinstance(held, Leader) else None


#: Fault → how often it is drawn. Each says whether it struck: there may have been nobody to strike.
FAULTS: dict[Callable[[Simulation], bool], int] = {
    kill_manager: 2,
    kill_leader: 3,
    stall_leader: 3,
    stall_manager: 2,
    stall_leader_over_verdict: 3,
    kill_daemon: 3,
    kill_machine: 3,
    partition_worker: 3,
    partition_manager: 2,
    break_links: 2,
    lose_store: 2,
    delay_view: 3,
    crash_manager_at_write: 4,
    stall_leader_at_write: 4,
    crash_worker_at_write: 4,
    bad_store: 2,
    bad_weather: 2,
}
