"""What the runtime holds while it starts a process, and those inside would like: its program, descriptors, memory, sockets."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from worker.runtime.errors import RuntimeFault

from ..conftest import Boxes, wait_until
from .conftest import PYTHON, Default, outcome

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
PATH = {"env": ["PATH=/bin:/sbin"], "cwd": "/"}

_GRAB = """
import os, sys, time
mine = os.stat("/proc/self/exe").st_ino
print("ready", flush=True)
held, end = -1, time.monotonic() + 20
while held < 0 and time.monotonic() < end:
    for pid in os.listdir("/proc"):
        if pid.isdigit() and pid != "1" and int(pid) != os.getpid():
            try:
                fd = os.open(f"/proc/{pid}/exe", os.O_PATH)
            except OSError:
                continue
            if os.fstat(fd).st_ino == mine:
                os.close(fd)
            else:
                held = fd
words = "nothing to hold"
if held >= 0:
    # An interpreter is always busy somewhere; whether its mount may be written to shows in a change of nothing.
    try:
        os.chmod(f"/proc/self/fd/{held}", os.stat(f"/proc/self/fd/{held}").st_mode & 0o7777)
        words = "open"
    except OSError as error:
        words = error.strerror
while held >= 0 and len(sys.argv) > 1 and time.monotonic() < end:
    try:
        fd = os.open(f"/proc/self/fd/{held}", os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"overwritten")
        words = "open"
        break
    except OSError as error:
        words = error.strerror
        if words != "Text file busy":
            break
print("grabbed:", words, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("added", ["none", "ALL"])
async def test_a_container_cannot_overwrite_the_program_that_entered_it(covey: Default, own_root: Path, added: str):
    """CVE-2019-5736: an image's program that is a link to /proc/self/exe runs, inside, what the runtime runs from."""
    (own_root / "bin/evil").symlink_to("/proc/self/exe")
    interpreter = Path(sys.executable).resolve()
    before = hashlib.sha256(interpreter.read_bytes()).digest()
    host = {"CapAdd": ["ALL"]} if added == "ALL" else {}
    box = await covey.start([*PYTHON, _GRAB], host=host, root={"path": str(own_root)})
    await box.logged("ready")
    seen = False
    for number in range(20):
        if seen := "grabbed:" in box.log.read_text():
            break
        # The image has the modules that the interpreter needs to live for a while.
        environment = ["PATH=/bin", "PYTHONHOME=/py"]
        code, _, err = await box.run_exec(f"e{number}", ["/bin/evil", "-c", "import time; time.sleep(0.2)"], env=environment)
        assert code == 0, err
    words = box.log.read_text()
    outcome("CVE-2019-5736", f"Covey, capabilities added: {added}", "grabbed: open" in words, words.splitlines()[-1])
    assert seen, words
    assert "grabbed: Read-only file system" in words, words
    assert hashlib.sha256(interpreter.read_bytes()).digest() == before


async def test_a_program_that_enters_unprotected_is_overwritten(covey: Default, own_root: Path, tmp_path: Path):
    """The control of CVE-2019-5736: busybox's nsenter, a copy of it."""
    (own_root / "bin/busybox-evil").symlink_to("/proc/self/exe")
    # All that the entering process has, or the kernel keeps the one from looking at the other.
    grabber = await covey.start([*PYTHON, _GRAB, "write"], host={"CapAdd": ["ALL"]}, root={"path": str(own_root)})
    await grabber.logged("ready")
    victim = Path(shutil.copy(own_root / "bin/busybox", tmp_path / "busybox"))
    length = victim.stat().st_size
    enter = [str(victim), "nsenter", "-t", str(grabber.init_pid), "-p", "-m", "/bin/busybox-evil", "sleep", "1"]
    subprocess.run(enter, timeout=20, check=False)
    await grabber.logged("grabbed:")
    happened = victim.stat().st_size > length
    outcome("CVE-2019-5736", "a program that enters unprotected", happened, grabber.log.read_text().splitlines()[-1])
    assert happened


async def test_the_hosts_interpreter_is_held_read_only(boxes: Boxes):
    """CVE-2019-5736: whatever runs from it, before and after it entered a container."""
    interpreter = Path(sys.executable).resolve()
    waiting = await boxes.make(["true"])
    running = await boxes.start(["sleep", "60"])
    entering = await running.shim.exec("e", {**PATH, "args": ["true"]})
    for pid in (boxes.zygote.pid, waiting.shim_pid, waiting.init_pid, entering):
        held = Path(f"/proc/{pid}/exe")
        assert held.stat().st_ino == interpreter.stat().st_ino
        with pytest.raises(OSError, match="Read-only file system"):
            held.chmod(stat.S_IMODE(interpreter.stat().st_mode))


@pytest.mark.parametrize("number", range(3, 16))
async def test_no_directory_of_the_host_is_left_open(boxes: Boxes, number: int):
    """CVE-2024-21626: a working directory of /proc/self/fd/N reached the host through a descriptor left open."""
    running = await boxes.start(["sleep", "60"])
    look = ["sh", "-c", "ls -di ../../../../../.. ."]
    body = {**PATH, "cwd": f"/proc/self/fd/{number}", "args": look}
    root = os.stat("/").st_ino
    for start in ("container", "exec"):
        try:
            if start == "container":
                result = await boxes.run([], process=body)
                code, out = result.code, result.out
            else:
                code, raw, _ = await running.run_exec(start, look, cwd=body["cwd"])
                out = raw.decode()
        except RuntimeFault:
            continue
        assert code == 0, out
        assert str(root) not in re.findall(r"^\s*(\d+)", out, re.M), f"{start}: {out}"


async def test_a_descriptor_left_open_would_be_seen(boxes: Boxes):
    """The control of CVE-2024-21626: something that enters with the host's root open as 7."""
    running = await boxes.start(["sleep", "60"])
    leaked = os.open("/", os.O_PATH | os.O_DIRECTORY)
    script = f"cd /proc/self/fd/{leaked} && ls -di ."
    enter = ["nsenter", "-t", str(running.init_pid), "-p", "-m", "sh", "-c", script]
    done = subprocess.run(enter, pass_fds=[leaked], capture_output=True, text=True)
    os.close(leaked)
    happened = str(os.stat("/").st_ino) in done.stdout
    outcome("CVE-2024-21626", "nsenter with a descriptor left open", happened, done.stdout)
    assert happened


@pytest.mark.parametrize("program", ["/proc/self/fd/3", "/proc/self/fd/7", "/proc/1/fd/3"])
async def test_a_program_named_by_a_descriptor_of_the_runtime_is_not_found(boxes: Boxes, program: str):
    """CVE-2024-21626's second way: an exec of /proc/self/fd/N/../../../bin/sh."""
    running = await boxes.start(["sleep", "60"])
    for tail in ("", "/../../../../../../../bin/sh", "/bin/sh"):
        with pytest.raises(RuntimeFault) as caught:
            await boxes.run([program + tail])
        assert caught.value.code in ("not-found", "not-executable")
        ident = f"e{len(tail)}"
        await running.shim.exec(ident, {**PATH, "args": [program + tail, "-c", "true"]})
        with pytest.raises(RuntimeFault) as caught:
            await running.shim.exec_start(ident)
        assert caught.value.code in ("not-found", "not-executable")


async def test_a_container_has_three_descriptors(covey: Default):
    """Nothing of the host is inherited beyond 0, 1 and 2, whoever started it; nor by an exec."""
    program = (
        'kit.tell(fds=sorted(int(fd) for fd in os.listdir("/proc/self/fd")), '
        'first=sorted(int(fd) for fd in os.listdir("/proc/1/fd")))'
    )
    found = await covey.python(program)
    # 3 is the directory being listed.
    assert found == {"fds": [0, 1, 2, 3], "first": [0, 1, 2, 3]}
    running = await covey.start(["sleep", "60"])
    _, out, _ = await running.run_exec("e", ["sh", "-c", "ls /proc/1/fd; exec ls /proc/self/fd"])
    assert out.split() == [b"0", b"1", b"2", b"0", b"1", b"2", b"3"]


async def test_the_starting_process_is_closed_to_the_container(boxes: Boxes):
    """CVE-2016-9962: what enters a container may not be read by those in it before it has become its program."""
    running = await boxes.start(["sleep", "60"])
    entering = await running.shim.exec("e", {**PATH, "args": ["sleep", "60"]})
    each = "for f in exe cwd root fd/3; do readlink $p/$f || echo no; done"
    look = f"for p in /proc/[0-9]*; do n=${{p#/proc/}}; [ $n = 1 ] || [ $n = $$ ] || {each}; done"
    _, out, _ = await running.run_exec("look", ["sh", "-c", look])
    assert out.split() == [b"no"] * 4, out
    await running.shim.exec_start("e")
    await wait_until("the program", lambda: os.readlink(f"/proc/{entering}/exe").endswith("/bin/busybox"))
    _, out, _ = await running.run_exec("again", ["sh", "-c", look])
    outcome("CVE-2016-9962", "the same process as its program", out.split() != [b"no"] * 4, out.decode())
    assert b"/bin/busybox" in out


async def test_a_starting_process_cannot_be_traced(covey: Default):
    """CVE-2016-9962: ptrace and /proc/PID/mem of what is about to run, from root inside with CAP_SYS_PTRACE."""
    host = {"CapAdd": ["SYS_PTRACE"]}
    running = await covey.start(["sleep", "60"], host=host)
    await running.shim.exec("waiting", {**PATH, "args": ["true"]})
    program = """
import kit, os
for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
    if pid not in (1, os.getpid()):
        kit.tell(attach=kit.call(101, 16, pid, 0, 0), mem=kit.tried(os.open, f"/proc/{pid}/mem", os.O_RDWR),
                 maps=kit.tried(open, f"/proc/{pid}/environ"))
"""
    code, out, err = await running.run_exec("look", [*PYTHON, program])
    assert code == 0, err
    (line,) = out.splitlines()
    assert line == b'{"attach": -1, "mem": "Permission denied", "maps": "Permission denied"}', line


def _abstract_of(pids: set[int]) -> list[str]:
    """Abstract sockets (proc_pid_net... "@" names of /proc/net/unix) that one of ``pids`` has open."""
    inodes = set()
    for pid in pids:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}").removeprefix("socket:[").rstrip("]"))
            except OSError:
                continue
    entries = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [fields[7] for fields in entries if len(fields) > 7 and fields[7].startswith("@") and fields[6] in inodes]


async def test_no_socket_of_ours_has_an_abstract_name(covey: Default):
    """CVE-2020-15257: abstract sockets know no file permissions: a container with the host's network could connect."""
    running = await covey.start(["sleep", "60"])
    assert _abstract_of({covey.zygote.pid, running.shim_pid, running.init_pid, os.getpid()}) == []
    assert stat.S_IMODE((running.directory / "shim.sock").stat().st_mode) == 0o600
    name = f"covey-canary-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        assert _abstract_of({os.getpid()}) == [f"@{name}"]
        program = f"""
import socket
kit.tell(answer=kit.tried(socket.socket(socket.AF_UNIX).connect, {chr(0) + name!r}))
"""
        config = covey.bundle([], "x")
        shared = [one for one in config["linux"]["namespaces"] if one["type"] != "network"]
        own = await covey.python(program)
        host = await covey.python(program, linux={"namespaces": shared, "sysctl": {}})
    outcome("CVE-2020-15257", "an abstract socket, host network", host["answer"] == "ok")
    assert (own["answer"], host["answer"]) == ("Connection refused", "ok")
