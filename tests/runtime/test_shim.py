"""A shim's life: streams, execs, signals, records, and who survives whose death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from worker.containers.shim_client import Shim, exit_record, sweep
from worker.containers.shim_socket import ShimGone
from worker.containers.zygote_client import Zygote
from worker.kernel import process
from worker.runtime.cgroups import Cgroup
from worker.runtime.errors import RuntimeFault

from .conftest import wait_until

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
MIB = 1 << 20


async def collect(attachment) -> tuple[bytes, bytes]:
    streams = {1: bytearray(), 2: bytearray()}
    async with asyncio.timeout(30):
        async for stream, data in attachment.frames():
            streams[stream] += data
    attachment.close()
    return bytes(streams[1]), bytes(streams[2])


async def wait_dead(pid: int, started: int, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while process.is_alive(pid, started):
            await asyncio.sleep(0.005)


async def test_stdout_and_stderr_stay_apart(boxes):
    result = await boxes.sh("echo out; echo err >&2; printf tail")
    assert (result.out, result.err) == ("out\ntail", "err\n")


async def test_eight_mebibytes_each_way_with_half_close(boxes):
    box = await boxes.make(["cat"], stdin=True, log={"driver": "none"})
    attachment = await box.shim.attach(stdin=True)
    await box.shim.start()
    data = os.urandom(64 * 1024) * 128

    async def feed() -> None:
        for offset in range(0, len(data), 100_000):
            await attachment.send(data[offset : offset + 100_000])
        await attachment.half_close()

    feeder = asyncio.ensure_future(feed())
    out, err = await collect(attachment)
    await feeder
    assert (len(out), out == data, err) == (8 * MIB, True, b"")
    assert (await box.exit())["code"] == 0


async def test_one_frame_larger_than_any_buffer(boxes):
    box = await boxes.make(["wc", "-c"], stdin=True)
    attachment = await box.shim.attach(stdin=True)
    await box.shim.start()
    attachment.writer.write(b"\0\0\0\0" + (3 * MIB).to_bytes(4, "big") + bytes(3 * MIB))
    await attachment.half_close()
    out, _ = await collect(attachment)
    assert int(out) == 3 * MIB


async def test_every_attacher_gets_everything_even_a_slow_one(boxes):
    box = await boxes.make(["dd", "if=/dev/zero", "bs=64k", "count=64"], log={"driver": "none"})
    quick, slow = await box.shim.attach(), await box.shim.attach(stderr=False)
    await box.shim.start()
    reading = asyncio.ensure_future(collect(quick))
    done, _ = await asyncio.wait([reading], timeout=0.3)
    assert not done, "4 MiB cannot have been delivered while one attacher reads nothing"
    out, err = await collect(slow)
    assert (len(out), err) == (4 * MIB, b"")
    out, err = await reading
    assert len(out) == 4 * MIB
    assert b"64+0 records out" in err


async def test_an_attacher_that_goes_away_blocks_nobody(boxes):
    box = await boxes.make(["dd", "if=/dev/zero", "bs=64k", "count=64"], log={"driver": "none"})
    gone = await box.shim.attach()
    await box.shim.start()
    await asyncio.sleep(0.05)
    gone.close()
    assert (await box.exit())["code"] == 0


async def test_output_is_delivered_although_deleted_meanwhile(boxes):
    box = await boxes.make(["dd", "if=/dev/zero", "bs=1k", "count=200"], log={"driver": "none"})
    attachment = await box.shim.attach(stderr=False)
    await box.shim.start()
    await box.exit()
    await box.shim.delete()
    out, _ = await collect(attachment)
    assert len(out) == 200 * 1024


async def test_log_of_lines_and_rotation(boxes):
    box = await boxes.start(["sh", "-c", "seq 1 200; printf end"], log={"max_size": 4096, "max_file": 3})
    await box.exit()
    files = [box.log, *(Path(f"{box.log}.{n}") for n in (1, 2))]
    assert [file.exists() for file in files] == [True, True, True]
    assert not Path(f"{box.log}.3").exists()
    assert all(file.stat().st_size <= 4096 for file in files)
    entries = [json.loads(line) for file in reversed(files) for line in file.read_text().splitlines()]
    kept = [entry["log"] for entry in entries]
    assert kept[-2:] == ["200\n", "end"]
    assert kept[:-1] == [f"{n}\n" for n in range(201 - (len(kept) - 1), 201)]
    assert {entry["stream"] for entry in entries} == {"stdout"}


async def test_terminal(boxes):
    script = "tty; stty size; echo to-err >&2; read line; echo got $line; stty size"
    box = await boxes.make(
        [], stdin=True, process={"args": ["sh", "-c", script], "terminal": True, "consoleSize": {"height": 20, "width": 70}}
    )
    attachment = await box.shim.attach(stdin=True)
    await box.shim.start()
    await box.logged("to-err")
    await box.shim.resize(33, 99)
    await attachment.send(b"hello\n")
    out, err = await collect(attachment)
    assert err == b""
    lines = out.decode().split("\r\n")
    assert lines[:3] == ["/dev/console", "20 70", "to-err"] or lines[:3] == ["/dev/pts/0", "20 70", "to-err"], lines
    assert lines[-3:] == ["got hello", "33 99", ""]
    assert (await box.exit())["code"] == 0


async def test_terminal_is_the_controlling_one(boxes):
    """Ctrl-C reaches the foreground process."""
    box = await boxes.make(
        [],
        stdin=True,
        process={
            "args": ["sh", "-c", "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.05; done"],
            "terminal": True,
        },
    )
    attachment = await box.shim.attach(stdin=True)
    await box.shim.start()
    await box.logged("ready")
    await attachment.send(b"\x03")
    assert (await box.exit())["code"] == 3


_NAMESPACES = "echo $$ >&2; hostname; for n in /proc/self/ns/*; do readlink $n; done; exit 7"


async def test_exec(boxes):
    box = await boxes.start(["sleep", "60"])
    code, out, err = await box.run_exec("a", ["sh", "-c", _NAMESPACES])
    assert code == 7
    assert err.strip() != b"1"
    ours = {os.readlink(f"/proc/{box.init_pid}/ns/{kind}") for kind in ("pid", "net", "mnt", "uts", "ipc", "cgroup")}
    assert out.split()[0] == b"box"
    assert ours <= {line.decode() for line in out.split()[1:]}
    code, out, _ = await box.run_exec("b", ["id", "-u"], user={"uid": 33, "gid": 33}, cwd="/tmp")
    assert (code, out) == (0, b"33\n")


async def test_exec_is_in_the_cgroup_and_without_leaks(boxes):
    box = await boxes.start(["sleep", "60"])
    _, out, _ = await box.run_exec("a", ["ls", "/proc/self/fd"])
    assert out.split() == [b"0", b"1", b"2", b"3"]
    await box.shim.exec("b", {"cwd": "/", "args": ["sleep", "60"], "env": ["PATH=/bin"]})
    await box.shim.exec_start("b")
    pid = (await box.shim.exec_state("b"))["pid"]
    ids = {line.split(":")[1]: line.split(":")[2] for line in Path(f"/proc/{pid}/cgroup").read_text().split()}
    inside = {path for path in ids.values() if path.endswith(box.cgroup.path)}
    assert len([path for path in ids.values() if path in inside]) == len(box.cgroup.hierarchies), ids


async def test_exec_events_and_states(boxes):
    box = await boxes.start(["sleep", "60"])
    events = box.shim.events()
    waiting = asyncio.ensure_future(anext(events))
    body = {"cwd": "/", "args": ["sh", "-c", "read x; exit $x"], "env": ["PATH=/bin"]}
    await box.shim.exec("e", body, stdin=True)
    attachment = await box.shim.attach(exec_id="e", stdin=True)
    assert (await box.shim.exec_state("e"))["running"] is False
    await box.shim.exec_start("e")
    assert (await box.shim.exec_state("e"))["running"] is True
    with pytest.raises(RuntimeFault, match="started already"):
        await box.shim.exec_start("e")
    await attachment.send(b"12\n")
    async with asyncio.timeout(10):
        assert await waiting == {"type": "exec-exit", "exec_id": "e", "code": 12}
    assert (await box.shim.exec_state("e"))["exit_code"] == 12
    with pytest.raises(RuntimeFault, match="exists already"):
        await box.shim.exec("e", body)


async def test_exec_of_what_cannot_run(boxes):
    box = await boxes.start(["sleep", "60"])
    for args, code, exit_code in ((["nothing"], "not-found", 127), (["/etc/passwd"], "not-executable", 126)):
        await box.shim.exec(args[0], {"cwd": "/", "args": args})
        with pytest.raises(RuntimeFault) as caught:
            await box.shim.exec_start(args[0])
        assert caught.value.code == code
        async with asyncio.timeout(5):
            while (state := await box.shim.exec_state(args[0]))["exit_code"] is None:
                await asyncio.sleep(0.005)
        assert state["exit_code"] == exit_code
    assert (await box.shim.state())["state"] == "running"


async def test_exec_with_a_terminal(boxes):
    box = await boxes.start(["sleep", "60"])
    body = {"cwd": "/", "args": ["sh", "-c", "test -t 1 && stty size"], "env": ["PATH=/bin"], "terminal": True}
    await box.shim.exec("t", {**body, "consoleSize": {"height": 5, "width": 6}})
    attachment = await box.shim.attach(exec_id="t")
    await box.shim.exec_start("t")
    assert (await collect(attachment))[0] == b"5 6\r\n"


async def test_an_execs_orphan_keeps_nobody_waiting_for_long(boxes):
    box = await boxes.start(["sleep", "60"])
    async with asyncio.timeout(8):
        code, out, _ = await box.run_exec("o", ["sh", "-c", "sleep 30 & echo said"])
    assert (code, out) == (0, b"said\n")


async def test_execs_end_with_the_container(boxes):
    box = await boxes.start(["sleep", "60"])
    await box.shim.exec("e", {"cwd": "/", "args": ["sleep", "60"], "env": ["PATH=/bin"]})
    await box.shim.exec_start("e")
    await box.shim.kill(signal.SIGKILL)
    await box.exit()
    async with asyncio.timeout(5):
        while (await box.shim.exec_state("e"))["running"]:
            await asyncio.sleep(0.005)
    assert (await box.shim.exec_state("e"))["exit_code"] == 137


async def test_kill_all_without_a_pid_namespace(boxes):
    spaces = [{"type": kind} for kind in ("network", "ipc", "uts", "mount", "cgroup")]
    box = await boxes.start(["sh", "-c", "sleep 60 & setsid sleep 60 & echo ready; wait"], linux={"namespaces": spaces})
    await box.logged("ready")
    pids = await box.shim.pids()
    assert len(pids) >= 3
    await box.shim.kill(signal.SIGKILL, everything=True)
    await box.exit()
    await box.shim.delete()
    await wait_until("the end of all", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


async def test_signals_by_exec_id(boxes):
    box = await boxes.start(["sleep", "60"])
    await box.shim.exec("e", {"cwd": "/", "args": ["sleep", "60"], "env": ["PATH=/bin"]})
    await box.shim.exec_start("e")
    await box.shim.kill(signal.SIGTERM, exec_id="e")
    async with asyncio.timeout(5):
        while (state := await box.shim.exec_state("e"))["running"]:
            await asyncio.sleep(0.005)
    assert state["exit_code"] == 143
    assert (await box.shim.state())["state"] == "running"


async def test_init_reaps_and_forwards(boxes):
    if not any(os.path.exists(path) for path in ("/usr/bin/tini-static", "/usr/bin/tini")):
        pytest.skip("no tini: apt-get install tini")
    box = await boxes.start(["sh", "-c", "trap 'exit 4' TERM; echo pid $$; while :; do sleep 0.05; done"], init=True)
    await box.logged("pid ")
    assert '"pid 1\\n"' not in box.log.read_text()
    _, out, _ = await box.run_exec("p", ["cat", "/proc/1/comm"])
    assert out.strip() == b"docker-init"
    await box.shim.kill(signal.SIGTERM)
    assert (await box.exit())["code"] == 4


async def test_exit_record_comes_before_the_news(boxes):
    box = await boxes.start(["sh", "-c", "exit 11"])
    event = await box.exit()
    record = exit_record(box.directory)
    assert record is not None
    assert (record["version"], record["id"], record["exit_code"]) == (1, box.directory.name, 11)
    assert record["started_at"] <= record["finished_at"] == event["at"]
    assert oct((box.directory / "exit.json").stat().st_mode & 0o777) == "0o600"
    assert await box.exit() == event, "whoever asks later is told too"
    assert (await box.shim.state())["exit"]["exit_code"] == 11


async def test_wrong_states_and_requests(boxes):
    shim, _, _ = await boxes.shim()
    assert shim.hello["state"] == "empty"
    for refused in (shim.start(), shim.kill(9), shim.pause(), shim.pids(), shim.attach(), shim.exec_state("x")):
        with pytest.raises(RuntimeFault) as caught:
            await refused
        assert caught.value.code == "bad-state"
    box = await boxes.start(["sleep", "60"])
    for refused in (box.shim.create(box.directory), box.shim.start(), box.shim.resume(), box.shim.delete()):
        with pytest.raises(RuntimeFault) as caught:
            await refused
        assert caught.value.code == "bad-state"
    with pytest.raises(RuntimeFault, match="is not the number of a signal"):
        await box.shim.kill(900)
    assert (await box.shim.state())["state"] == "running"


async def test_garbage_harms_nothing(boxes):
    box = await boxes.start(["sleep", "60"])
    for data in (b"\xff\xff\xff\xff", b"\0\0\0\x02[]", b"\0\0\0\x03nil", b"GET / HTTP/1.1\r\n\r\n", b"\0\0"):
        reader, writer = await asyncio.open_unix_connection(str(box.directory / "shim.sock"))
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()
    assert (await box.shim.state())["state"] == "running"


async def test_a_failed_create_leaves_nothing_and_may_be_repeated(boxes):
    shim, directory, _ = await boxes.shim()
    config = boxes.bundle(["true"], directory.name, mounts=[{"destination": "/x", "type": "nosuchfs"}])
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeFault, match="No such device") as caught:
        await shim.create(directory)
    assert caught.value.step == "mount_filesystem /x"
    group = Cgroup(config["linux"]["cgroupsPath"])
    async with asyncio.timeout(5):
        while group.exists():
            await asyncio.sleep(0.005)
    (directory / "config.json").write_text(json.dumps(boxes.bundle(["true"], directory.name)))
    await shim.create(directory)
    await shim.start()


async def test_bad_configs_are_named(boxes):
    shim, directory, _ = await boxes.shim()
    with pytest.raises(RuntimeFault, match="there is none at"):
        await shim.create(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(RuntimeFault, match="is not JSON"):
        await shim.create(directory)
    (directory / "config.json").write_text(json.dumps(boxes.bundle([], directory.name)))
    with pytest.raises(RuntimeFault, match=r"process\.args"):
        await shim.create(directory)


async def test_killed_shim_takes_its_container_along(boxes):
    for user in ({"uid": 0, "gid": 0}, {"uid": 1000, "gid": 1000}):
        box = await boxes.start([], process={"args": ["sh", "-c", "sleep 60 & sleep 60"], "user": user})
        started = process.start_time(box.init_pid)
        os.kill(box.shim_pid, signal.SIGKILL)
        await wait_dead(box.init_pid, started)
        with pytest.raises(ShimGone):
            await Shim.connect(box.directory)
        async with asyncio.timeout(5):
            while not sweep(box.directory):
                await asyncio.sleep(0.005)
        assert not box.cgroup.exists()
        assert exit_record(box.directory) is None


async def test_killed_shim_takes_a_waiting_container_along(boxes):
    box = await boxes.make(["sleep", "60"])
    started = process.start_time(box.init_pid)
    os.kill(box.shim_pid, signal.SIGKILL)
    await wait_dead(box.init_pid, started)


async def test_sweep_refuses_a_living_shim(boxes):
    box = await boxes.start(["sleep", "60"])
    with pytest.raises(RuntimeFault, match="lives"):
        sweep(box.directory)


async def test_a_shim_that_nobody_comes_for_ends(boxes, tmp_path):
    """The daemon that asked for it was killed before it could connect."""
    directory = tmp_path / "unclaimed"
    directory.mkdir()
    pid, started = await boxes.zygote.fork_shim("unclaimed", directory, boxes.parent)
    await wait_dead(pid, started, 15)
    assert not directory.exists()


async def test_zygotes_death_and_end_leave_shims_alone(boxes, tmp_path):
    for end in ("kill", "stop"):
        zygote = await Zygote.spawn(tmp_path / "own.sock", tmp_path / "own.log", boxes.parent)
        directory = tmp_path / end
        directory.mkdir(mode=0o700)
        pid, started = await zygote.fork_shim(f"own-{end}", directory, boxes.parent)
        config = boxes.bundle(["sh", "-c", "sleep 60; exit 3"], f"own-{end}")
        (directory / "config.json").write_text(json.dumps(config))
        shim = await Shim.connect(directory)
        init, init_started = await shim.create(directory)
        await shim.start()
        if end == "kill":
            os.kill(zygote.pid, signal.SIGKILL)
        else:
            await zygote.stop()
        async with asyncio.timeout(10):
            while zygote.alive():
                await asyncio.sleep(0.005)
        assert process.is_alive(init, init_started)
        with pytest.raises(ShimGone):
            await Zygote.connect(tmp_path / "own.sock")
        # A daemon that comes later adopts it.
        adopted = await Shim.connect(directory)
        assert (adopted.hello["state"], adopted.hello["init_pid"]) == ("running", init)
        assert adopted.hello["init_start_time"] == init_started
        await adopted.kill(signal.SIGKILL)
        async for event in adopted.events():
            assert event["code"] == 137
            break
        await adopted.delete()
        await wait_dead(pid, started)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


async def test_zygote_answers(boxes, tmp_path):
    await boxes.zygote.ping()
    with pytest.raises(RuntimeFault, match="No such file or directory"):
        await boxes.zygote.fork_shim("x", tmp_path / "nowhere")
    assert boxes.zygote.pid != os.getpid()


async def test_sockets_and_records_are_private(boxes):
    box = await boxes.start(["sleep", "60"])
    assert oct((box.directory / "shim.sock").stat().st_mode & 0o777) == "0o600"
    record = json.loads((box.directory / "shim.json").read_text())
    assert (record["pid"], record["cgroup"]) == (box.shim_pid, box.cgroup.path)
    assert process.is_alive(record["pid"], record["start_time"])
    shims = Cgroup(f"{boxes.parent}/shims")
    await wait_until("the shim in its own cgroup", lambda: box.shim_pid in shims.pids())
    assert box.init_pid in box.cgroup.pids()


async def test_delete_leaves_nothing(boxes):
    box = await boxes.start(["true"])
    started = process.start_time(box.shim_pid)
    await box.exit()
    await box.shim.delete()
    assert not box.cgroup.exists()
    assert sorted(path.name for path in box.directory.iterdir()) == ["box.log", "config.json", "exit.json"]
    await wait_dead(box.shim_pid, started)


async def test_a_long_path_is_no_hindrance(boxes, tmp_path):
    directory = tmp_path / ("d" * 100) / ("e" * 100)
    directory.mkdir(parents=True, mode=0o700)
    pid, started = await boxes.zygote.fork_shim("long", directory, boxes.parent)
    shim = await Shim.connect(directory)
    await shim.delete()
    await wait_dead(pid, started)


async def test_a_zygote_that_nobody_can_find_any_more_ends(boxes, tmp_path):
    """A daemon killed while its zygote starts leaves the next daemon to start another at the same place."""
    first = await Zygote.spawn(tmp_path / "z.sock", tmp_path / "log", boxes.parent)
    first.close()
    second = await Zygote.spawn(tmp_path / "z.sock", tmp_path / "log", boxes.parent)
    await wait_until("end of the first", lambda: not first.alive())
    assert second.alive()
    await second.stop()
    await wait_until("end of the second", lambda: not second.alive())
