"""The contract of worker.agent.runtime.TaskRuntime: what every runtime promises, as functions on a World.

Plain functions, not tests, because the real runtime is tried by a program inside a machine of the lab.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import pytest

from covey.model.objects import Task
from covey.wire.messages import AssignedNetwork, AssignedTask
from worker.agent.runtime import PrepareError, StartError, TaskRuntime
from worker.agent.vocabulary import Exited, Found

IMAGE = "covey/busybox:contract"
SLEEP = ("sleep", "1000")
SECONDS = 10.0


class World(Protocol):
    """A node with IMAGE on it, under a runtime. ``end`` lets a container's process die of SIGKILL (exit code 137)."""

    runtime: TaskRuntime

    async def end(self, container_id: str) -> None: ...

    def restarted(self, meanwhile: Callable[[], Awaitable[None]]) -> Awaitable[None]:
        """The daemon goes, ``meanwhile`` happens, and ``runtime`` is a new one over the same containers."""


def task(name: str, command: tuple[str, ...] = SLEEP, image: str = IMAGE, init: bool = True) -> AssignedTask:
    spec: dict[str, Any] = {"ContainerSpec": {"Image": image, "Command": list(command), "Init": init}}
    made = Task(
        id=f"contract{name}".ljust(25, "0"), service_id="s" * 25, slot=1, service_name=name, node_id="n" * 25, spec=spec
    )
    return AssignedTask(task=made, hostname="")


async def prepared(world: World, assigned: AssignedTask) -> str:
    return await world.runtime.prepare(assigned, (), (), ())


async def found(world: World, task_id: str) -> Found | None:
    """The task's container; more than one breaks the contract."""
    here = [one for one in await world.runtime.found() if one.task_id == task_id]
    assert len(here) <= 1, here
    return here[0] if here else None


async def state(world: World, task_id: str) -> str:
    here = await found(world, task_id)
    return here.state if here else "none"


async def wait_state(world: World, task_id: str, wanted: str) -> Found:
    async with asyncio.timeout(SECONDS):
        while (await state(world, task_id)) != wanted:
            await asyncio.sleep(0.02)
    here = await found(world, task_id)
    assert here is not None
    return here


@contextlib.asynccontextmanager
async def exits(world: World) -> AsyncIterator[list[Exited]]:
    """The exits told from now on."""
    told: list[Exited] = []

    async def listen() -> None:
        async for event in world.runtime.events():
            if isinstance(event, Exited):
                told.append(event)

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.05)
    try:
        yield told
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def wait_told(told: list[Exited], count: int) -> None:
    async with asyncio.timeout(SECONDS):
        while len(told) < count:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    assert len(told) == count, f"an exit is told once: {told}"


async def a_task_is_prepared_once_however_often_it_is_asked(world: World) -> None:
    one = task("twice")
    first = await prepared(world, one)
    assert await prepared(world, one) == first
    here = await found(world, one.task.id)
    assert here is not None
    assert (here.container_id, here.state) == (first, "created")


async def a_missing_image_is_refused_for_good_and_nothing_half_made_stays(world: World) -> None:
    one = task("missing", image="covey/nowhere:1")
    with pytest.raises(PrepareError, match="covey/nowhere:1") as refusal:
        await prepared(world, one)
    assert refusal.value.rejected
    assert await state(world, one.task.id) == "none"


async def a_start_that_is_repeated_only_says_so(world: World) -> None:
    one = task("started")
    container = await prepared(world, one)
    first = await world.runtime.start(one.task.id, container)
    again = await world.runtime.start(one.task.id, container)
    assert first.pid == again.pid > 0
    assert (first.task_id, first.container_id) == (one.task.id, container)
    assert (await wait_state(world, one.task.id, "running")).pid == first.pid


async def a_container_is_never_started_twice(world: World) -> None:
    one = task("once")
    container = await prepared(world, one)
    await world.runtime.start(one.task.id, container)
    await world.end(container)
    await wait_state(world, one.task.id, "exited")
    with contextlib.suppress(StartError):
        await world.runtime.start(one.task.id, container)
    assert await state(world, one.task.id) == "exited"


async def an_exit_is_told_once_and_found_with_its_code(world: World) -> None:
    one = task("exits")
    container = await prepared(world, one)
    async with exits(world) as told:
        await world.runtime.start(one.task.id, container)
        await world.end(container)
        await wait_told(told, 1)
    assert (told[0].task_id, told[0].exit_code) == (one.task.id, 137)
    here = await wait_state(world, one.task.id, "exited")
    assert here.exit_code == 137
    assert here.finished_at > 0


async def a_command_that_is_not_there_is_127(world: World) -> None:
    one = task("nocommand", ("/no/such/command",), init=False)
    container = await prepared(world, one)
    with pytest.raises(StartError) as failure:
        await world.runtime.start(one.task.id, container)
    assert failure.value.exit_code == 127


async def stop_returns_when_the_process_has_ended_and_may_be_repeated(world: World) -> None:
    one = task("stops")
    container = await prepared(world, one)
    async with exits(world) as told:
        await world.runtime.start(one.task.id, container)
        await world.runtime.stop(container, 2.0)
        assert await state(world, one.task.id) == "exited"
        await wait_told(told, 1)
        await world.runtime.stop(container, 2.0)
    await world.runtime.stop("f" * 64, 0.0)


async def remove_leaves_nothing_and_may_be_repeated(world: World) -> None:
    created, running = task("created"), task("runs")
    await prepared(world, created)
    container = await prepared(world, running)
    await world.runtime.start(running.task.id, container)
    for one, known in ((created, ""), (running, container)):
        for _ in range(2):
            await world.runtime.remove(one.task.id, known)
        assert await state(world, one.task.id) == "none"
    await world.runtime.remove("nobody".ljust(25, "0"), "")


async def what_runs_is_found_again_by_the_next_daemon_and_exits_meanwhile_too(world: World) -> None:
    stays, ends = task("stays"), task("ends")
    containers = [await prepared(world, one) for one in (stays, ends)]
    started = [await world.runtime.start(one.task.id, held) for one, held in zip((stays, ends), containers, strict=True)]

    async def meanwhile() -> None:
        await world.end(containers[1])

    await world.restarted(meanwhile)
    here = await wait_state(world, stays.task.id, "running")
    assert (here.container_id, here.pid) == (containers[0], started[0].pid)
    gone = await wait_state(world, ends.task.id, "exited")
    assert (gone.container_id, gone.exit_code) == (containers[1], 137)
    assert await prepared(world, stays) == containers[0]


async def what_a_caller_that_went_away_began_is_over_when_it_is_found(world: World) -> None:
    for pause in (0.0, 0.002, 0.005, 0.01, 0.02, 0.04):
        one = task(f"away{int(pause * 1000)}")
        begun = asyncio.create_task(prepared(world, one))
        await asyncio.sleep(pause)
        begun.cancel()
        await asyncio.gather(begun, return_exceptions=True)
        at_once = await state(world, one.task.id)
        await asyncio.sleep(0.1)
        assert await state(world, one.task.id) == at_once, "a container came to be after its agent had gone"


async def networks_may_be_ensured_and_dropped_twice(world: World) -> None:
    network = AssignedNetwork(id="w" * 25, name="contract", subnets=("10.77.3.0/24",), gateways=("10.77.3.1",))
    for _ in range(2):
        await world.runtime.ensure_network(network)
    for _ in range(2):
        await world.runtime.drop_network(network.id)


async def a_node_says_what_it_has(world: World) -> None:
    description = await world.runtime.describe()
    assert description.hostname
    assert description.os == "linux"
    assert description.resources.nano_cpus > 0
    assert description.resources.memory_bytes > 0


PROMISES: dict[str, Callable[[World], Awaitable[None]]] = {
    promise.__name__: promise
    for promise in (
        a_task_is_prepared_once_however_often_it_is_asked,
        a_missing_image_is_refused_for_good_and_nothing_half_made_stays,
        a_start_that_is_repeated_only_says_so,
        a_container_is_never_started_twice,
        an_exit_is_told_once_and_found_with_its_code,
        a_command_that_is_not_there_is_127,
        stop_returns_when_the_process_has_ended_and_may_be_repeated,
        remove_leaves_nothing_and_may_be_repeated,
        what_runs_is_found_again_by_the_next_daemon_and_exits_meanwhile_too,
        what_a_caller_that_went_away_began_is_over_when_it_is_found,
        networks_may_be_ensured_and_dropped_twice,
        a_node_says_what_it_has,
    )
}


async def keep(promise: str, world: World) -> None:
    """Try one promise; its containers are removed."""
    try:
        await PROMISES[promise](world)
    finally:
        for one in await world.runtime.found():
            await world.runtime.remove(one.task_id, one.container_id)
