"""A container asked for together with its shim: one process serves itself until it executes, and nothing is lost by that."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from worker.containers import ways
from worker.containers.shim_client import Launching, Shim, exit_record, sweep
from worker.containers.shim_socket import ShimGone
from worker.kernel import process
from worker.runtime.cgroups import Cgroup
from worker.runtime.errors import UNFIT, RuntimeFault
from worker.shim import records

from .conftest import Boxes, read_all, wait_until
from .test_keeper import OWN_KIB, own_kib, workers

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
PATIENCE, DEATH = 10.0, 2.0
ROUNDS = 40


@dataclass
class Asked:
    """A container that is being made together with its shim."""

    shim: Shim
    launching: Launching
    directory: Path
    cgroup: Cgroup
    rootfs: Path

    @property
    def log(self) -> Path:
        return self.directory / "box.log"

    @property
    def keeper(self) -> int:
        record = records.read(str(self.directory), "shim.json")
        assert record is not None, "the shim is on record before anything is made"
        return int(record["pid"])

    async def started(self) -> int:
        """The pid of its first process."""
        pid, _ = await asyncio.wait_for(self.launching.created(), PATIENCE)
        await asyncio.wait_for(self.launching.started(), PATIENCE)
        return pid

    async def exit(self) -> dict[str, Any]:
        events = self.shim.events()
        try:
            async with asyncio.timeout(PATIENCE):
                return await anext(events)
        finally:
            await events.aclose()


class Direct:
    """``ordered``: what is decided of a container is sent along, as the daemon does; else its process decides.

    ``lean``: its root is sent along, too, and it begins in the zygote's lean mount namespace.
    """

    def __init__(self, boxes: Boxes, *, ordered: bool, lean: bool) -> None:
        self._boxes = boxes
        self.ordered = ordered
        self._lean = lean
        self._asked: list[Asked] = []

    async def ask(self, args: list[str], **changes: Any) -> Asked:
        ident = f"direct{len(self._asked)}"
        directory = self._boxes.base / ident
        directory.mkdir(mode=0o700)
        config = self._boxes.bundle(args, ident, **changes)
        (directory / "config.json").write_text(json.dumps(config))
        log = {"path": str(directory / "box.log"), "driver": "json-file"}
        request: dict[str, Any] = {"bundle": str(directory), "log": log, "init": False}
        if self.ordered:
            request["orders"] = ways.orders_for(config, directory, False).to_plain()
        zygote, root = self._boxes.zygote, ""
        if self._lean:
            assert zygote.roots is not None, "the zygote could make itself a lean mount namespace"
            # Tests keep their containers beside the zygote's directory, of which the namespace has all that is not a mount.
            zygote.roots, root = Path("/"), config["root"]["path"]
        line = await zygote.fork_container(ident, directory, request, self._boxes.parent, root)
        shim = Shim.newborn(directory)
        asked = Asked(
            shim, shim.launching(line), directory, Cgroup(config["linux"]["cgroupsPath"]), Path(config["root"]["path"])
        )
        self._asked.append(asked)
        return asked

    async def clear(self) -> None:
        for asked in self._asked:
            asked.launching.close()
            asked.shim.close()
            record = records.read(str(asked.directory), "shim.json") or {}
            if record:
                process.kill_verified(record["pid"], record["start_time"], signal.SIGKILL)
                await wait_until("the shim's end", lambda r=record: not process.is_alive(r["pid"], r["start_time"]))
                await wait_until("sweep", lambda d=asked.directory: sweep(d))
            assert not asked.cgroup.exists(), asked.cgroup.path


@pytest_asyncio.fixture(params=[(True, False), (True, True), (False, False)], ids=["ordered", "lean", "by itself"])
async def direct(boxes, request):
    ordered, lean = request.param
    asked = Direct(boxes, ordered=ordered, lean=lean)
    yield asked
    await asked.clear()


async def test_a_life_without_a_worker_until_something_is_wanted(direct):
    asked = await direct.ask(["sleep", "100"])
    init = await asked.started()
    assert workers(asked.keeper) == []
    assert Path(f"/proc/{init}/comm").read_text() == "sleep\n"
    assert not asked.log.exists()
    root = os.stat(asked.rootfs)
    held = [entry.name for entry in os.scandir(f"/proc/{asked.keeper}/fd") if os.path.samestat(os.stat(entry.path), root)]
    assert held == [], "nobody but the container keeps its root busy"
    # Pages that the zygote has written since are its last shim's; another one shows what a shim has for good.
    await (await direct.ask(["sleep", "100"])).started()
    assert own_kib(asked.keeper) < OWN_KIB
    state = await asked.shim.state()
    assert (state["state"], state["init_pid"], state["pid"]) == ("running", init, asked.keeper)
    assert state["started_at"] > 0
    await asked.shim.kill(signal.SIGTERM)
    await asked.shim.kill(signal.SIGKILL)
    assert (await asked.exit())["code"] == 137
    assert exit_record(asked.directory)["exit_code"] == 137
    await asked.shim.delete()
    await wait_until("the socket gone", lambda: not (asked.directory / "shim.sock").exists())


async def test_output_and_exit_are_there_however_short_it_lives(direct):
    asked = await direct.ask(["sh", "-c", "echo out; echo err >&2; exit 9"])
    await asked.started()
    event = await asked.exit()
    assert (event["type"], event["code"]) == ("exit", 9)
    entries = {json.loads(line)["stream"]: json.loads(line)["log"] for line in asked.log.read_text().splitlines()}
    assert entries == {"stdout": "out\n", "stderr": "err\n"}
    assert exit_record(asked.directory)["exit_code"] == 9
    await asked.shim.delete()


async def test_an_exec_and_an_update(direct):
    asked = await direct.ask(["sleep", "100"])
    init = await asked.started()
    await asked.shim.exec("one", {"cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", "echo said; exit 3"]})
    attachment = await asked.shim.attach(exec_id="one")
    await asked.shim.exec_start("one")
    assert await read_all(attachment) == (b"said\n", b"")
    assert (await asked.shim.exec_state("one"))["exit_code"] == 3
    assert init in await asked.shim.pids()
    await asked.shim.pause()
    await asked.shim.resume()


async def test_it_gives_way_to_who_attaches_before_the_start(direct):
    asked = await direct.ask(["sh", "-c", "echo first; exit 4"])
    init, _ = await asked.launching.created()
    attachment = await asyncio.wait_for(asked.shim.attach(), PATIENCE)
    state = await asked.shim.state()
    assert (state["state"], state["init_pid"]) == ("created", init)
    await asyncio.wait_for(asked.launching.started(), PATIENCE)
    assert await read_all(attachment) == (b"first\n", b"")
    assert (await asked.exit())["code"] == 4


async def test_it_gives_way_to_an_older_daemon(direct):
    """One that asks for the start alone, and for the events after it."""
    asked = await direct.ask(["sh", "-c", "sleep 0.2; exit 6"])
    await asked.launching.created()
    asked.launching._start = {"op": "start"}
    await asyncio.wait_for(asked.launching.started(), PATIENCE)
    assert (await asked.exit())["code"] == 6


@pytest.mark.parametrize("give_way", [False, True], ids=["alone", "with a worker"])
@pytest.mark.parametrize(
    ("program", "code"),
    [("no-such-program", "not-found"), ("/etc/not-a-program", "not-executable"), ("/tmp", "not-executable")],
)
async def test_a_program_that_cannot_be_run(direct, program, code, give_way):
    asked = await direct.ask([program])
    await asked.launching.created()
    keeper = asked.keeper
    started = process.start_time(keeper)
    if give_way:
        assert (await asked.shim.state())["state"] == "created"
    with pytest.raises(RuntimeFault) as caught:
        await asyncio.wait_for(asked.launching.started(), PATIENCE)
    assert caught.value.code == code
    if give_way:
        assert (await asked.exit())["code"] in (126, 127)
    else:
        await wait_until("the shim's end", lambda: not process.is_alive(keeper, started), DEATH)
        assert exit_record(asked.directory) is None


async def test_a_program_that_the_kernel_refuses(direct, boxes):
    """The very last step: the keeper has everything by then."""
    odd = boxes.rootfs / "bin/odd"
    odd.write_bytes(b"\x7fELF no more")
    odd.chmod(0o755)
    try:
        asked = await direct.ask(["odd"])
        await asked.launching.created()
        keeper, started = asked.keeper, process.start_time(asked.keeper)
        with pytest.raises(RuntimeFault) as caught:
            await asyncio.wait_for(asked.launching.started(), PATIENCE)
        assert (caught.value.code, caught.value.step) == ("not-executable", "execve")
        await wait_until("the shim's end", lambda: not process.is_alive(keeper, started), DEATH)
    finally:
        odd.unlink()


async def test_what_it_cannot_do_alone_is_unfit(direct):
    other = Cgroup((await direct.ask(["true"])).cgroup.path + "-taken")
    other.create()
    # Whoever sends orders has found out before that it can do alone; who is in its cgroup only shows then.
    beyond: list[dict[str, Any]] = (
        []
        if direct.ordered
        else [
            {"linux": {"namespaces": [{"type": kind} for kind in ("network", "ipc", "uts", "mount", "cgroup")]}},
            {"process": {"terminal": True}},
            {"hooks": {"poststop": [{"path": "/bin/true"}]}},
        ]
    )
    try:
        for changes in ({"linux": {"cgroupsPath": other.path}}, *beyond):
            asked = await direct.ask(["true"], **changes)
            with pytest.raises(RuntimeFault) as caught:
                await asyncio.wait_for(asked.launching.created(), PATIENCE)
            assert caught.value.code == UNFIT, changes
            assert records.read(str(asked.directory), "shim.json") is None, "nothing has been made for it"
    finally:
        assert other.remove()


async def test_a_zygote_of_other_code_is_given_no_orders(boxes, monkeypatch):
    monkeypatch.setattr(boxes.zygote, "orders", False)
    asked = Direct(boxes, ordered=True, lean=False)
    try:
        one = await asked.ask(["sh", "-c", "exit 3"])
        await one.started()
        assert (await one.exit())["code"] == 3
        await one.shim.delete()
    finally:
        await asked.clear()


async def test_a_bundle_that_cannot_be_run_is_refused_in_its_words(direct):
    async def made(**changes: Any) -> None:
        await asyncio.wait_for((await direct.ask(["true"], **changes)).launching.created(), PATIENCE)

    with pytest.raises(RuntimeFault, match="/no/such"):
        await made(mounts=[{"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}])
    with pytest.raises(RuntimeFault, match="intelRdt"):
        await made(linux={"intelRdt": {"closID": "x"}})


async def test_a_user_may_open_its_output_again(direct):
    asked = await direct.ask(
        ["sh", "-c", "echo again > /dev/stdout; echo worse > /dev/stderr"], process={"user": {"uid": 1000, "gid": 1000}}
    )
    await asked.started()
    assert (await asked.exit())["code"] == 0
    assert "again" in asked.log.read_text()
    assert "worse" in asked.log.read_text()


async def test_nothing_of_the_host_is_open_in_it(direct):
    asked = await direct.ask(["sh", "-c", "exec sleep 100"])
    init = await asked.started()
    await wait_until("sleep", lambda: Path(f"/proc/{init}/comm").read_text() == "sleep\n")
    assert sorted(os.listdir(f"/proc/{init}/fd")) == ["0", "1", "2"]


@pytest.mark.parametrize("when", ["created", "running"])
async def test_the_keepers_death_is_the_containers(direct, when):
    asked = await direct.ask(["sh", "-c", "trap '' TERM; while true; do sleep 0.05; done"])
    if when == "created":
        init, _ = await asked.launching.created()
    else:
        init = await asked.started()
    started = process.start_time(init)
    os.kill(asked.keeper, signal.SIGKILL)
    await wait_until("the container's end", lambda: not process.is_alive(init, started), DEATH)


async def test_a_container_that_is_killed_before_its_start_ends_the_shim(direct):
    asked = await direct.ask(["true"])
    init, _ = await asked.launching.created()
    keeper, started = asked.keeper, process.start_time(asked.keeper)
    os.kill(init, signal.SIGKILL)
    with pytest.raises(ShimGone):
        await asyncio.wait_for(asked.launching.started(), PATIENCE)
    await wait_until("the shim's end", lambda: not process.is_alive(keeper, started), DEATH)


async def test_who_asked_may_go_at_any_moment(direct):
    """Then there is nothing, or a shim on record that answers the next daemon with what it has."""
    dice = random.Random(7)
    seen = set()
    for number in range(ROUNDS):
        asked = await direct.ask(["sleep", "100"])
        if number % 4 == 3:
            await asked.launching.created()
            asked.launching.ask_start()
        await asyncio.sleep(dice.uniform(0, 0.012))
        asked.launching.close()
        record = await wait_until("a record", lambda a=asked: records.read(str(a.directory), "shim.json"))
        try:
            shim = await Shim.connect(asked.directory)
        except ShimGone:
            await wait_until("its end", lambda r=record: not process.is_alive(r["pid"], r["start_time"]))
            seen.add("ended")
            continue
        seen.add(shim.hello["state"])
        shim.close()
    print(f"{ROUNDS} rounds: {sorted(seen)}")
    assert seen <= {"ended", "created", "running"}
    assert "created" in seen


async def test_an_out_of_memory_kill_is_told(direct):
    script = "x=; while true; do x=$x$(head -c 1000000 /dev/zero | tr '\\0' x); done"
    asked = await direct.ask(["sh", "-c", script], linux={"resources": {"memory": {"limit": 16 << 20}}})
    await asked.started()
    events = asked.shim.events()
    kinds = []
    async with asyncio.timeout(30):
        while "exit" not in kinds:
            kinds.append((await anext(events))["type"])
    await events.aclose()
    assert "oom" in kinds
    assert exit_record(asked.directory)["oom"] is True
