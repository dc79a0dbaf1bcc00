"""``cluster run`` and ``exec`` against a scripted daemon: streams both ways, half-close, exit codes, a terminal."""

import asyncio
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from covey.engine_api.answers import Stream, Taken, created
from covey.engine_api.framing import MULTIPLEXED, RAW, encode
from covey.errors import InvalidArgument, NotFound


class Box:
    """One container that echoes stdin in capitals on stdout, says ``err`` on stderr, and ends with ``code``."""

    def __init__(self, daemon):
        self.code, self.refuse, self.tty = 0, None, False
        self.started, self.ended = asyncio.Event(), asyncio.Event()
        self.sizes, self.signals = [], []
        daemon.handlers.update(
            container_create=self.create,
            container_attach=self.attach,
            container_wait=self.wait,
            container_start=self.start,
            container_resize=self.resize,
            container_kill=self.kill,
            container_delete=lambda call: None,
            exec_create=lambda call, body: created({"Id": "e1"}),
            exec_start=self.exec_start,
            exec_inspect=lambda call: {"ExitCode": self.code},
            exec_resize=self.resize,
        )

    def create(self, call, body):
        if body["Image"] == "none":
            raise NotFound("No such image: none:latest")
        self.tty = body["Tty"]
        return created({"Id": "c" * 64, "Warnings": ["mind the gap"] if body["Image"] == "warn" else []})

    def start(self, call):
        if self.refuse:
            self.started.set()
            raise InvalidArgument(self.refuse)
        self.started.set()

    def kill(self, call):
        self.signals.append(call.query["signal"])
        self.code = 143
        self.ended.set()

    def resize(self, call):
        self.sizes.append((call.query["h"], call.query["w"]))

    async def attach(self, call):
        kind = RAW if self.tty else MULTIPLEXED
        reader, writer = await call.take(101, {"Content-Type": kind})
        await self.started.wait()
        if self.refuse:
            writer.close()
            return Taken()
        await self.echo(reader, writer, call.boolean("stdin"))
        return Taken()

    async def exec_start(self, call, body):
        self.tty = body["Tty"]
        reader, writer = await call.take(101, {"Content-Type": RAW})
        await self.echo(reader, writer, True)
        return Taken()

    async def echo(self, reader, writer, stdin):
        frame = (lambda stream, data: data) if self.tty else encode
        writer.write(frame(2, b"err\r\n" if self.tty else b"err\n"))
        if not stdin and self.code == 99:
            await self.ended.wait()
        while stdin and (data := await reader.read(65536)):
            writer.write(frame(1, data.upper()))
            await writer.drain()
            if self.tty and b"q" in data:
                break
        writer.write(frame(1, b"end\n"))
        await writer.drain()
        self.ended.set()

    def wait(self, call):
        async def chunks():
            yield b""
            await self.ended.wait()
            yield b'{"StatusCode":%d}' % self.code

        return Stream(chunks())


@pytest.fixture
def box(daemon):
    return Box(daemon)


def run(daemon, *argv, stdin=b"", timeout=30):
    line = [sys.executable, "-m", "cli.main", "-H", f"unix://{daemon.path}", *argv]
    return subprocess.run(line, input=stdin, capture_output=True, timeout=timeout, check=False)


def test_output_goes_where_it_belongs_and_the_exit_code_is_the_containers(daemon, box):
    box.code = 7
    done = run(daemon, "run", "--rm", "i")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"end\n", b"err\n")
    waited = next(query for name, _, query, _ in daemon.calls if name == "container_wait")
    assert waited == {"condition": "removed"}
    names = [name for name, *_ in daemon.calls if name != "system_ping"]
    assert names == ["container_create", "container_attach", "container_wait", "container_start"]


def test_stdin_larger_than_every_buffer_goes_through_and_its_end_too(daemon, box):
    data = b"a" * (3 << 20)
    assert run(daemon, "run", "-i", "i", stdin=data).stdout == data.upper() + b"end\n"


def test_exec(daemon, box):
    box.code = 3
    done = run(daemon, "exec", "-i", "c", "cat", stdin=b"hi\n")
    assert (done.returncode, done.stdout) == (3, b"HI\nend\n")


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        ('exec: "x": executable file not found in $PATH: unknown', 127),
        ('exec: "/etc": permission denied: unknown', 126),
        ("no space left on device", 125),
    ],
)
def test_what_cannot_start_has_dockers_exit_codes(daemon, box, refusal, code):
    box.refuse = refusal
    done = run(daemon, "run", "--rm", "i")
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.decode() == f"cluster: {refusal}\n"
    assert "container_delete" in [name for name, *_ in daemon.calls]


def test_what_cannot_be_created_is_125_and_a_warning_is_said(daemon, box):
    done = run(daemon, "run", "none")
    assert done.returncode == 125
    assert b"cluster image load" in done.stderr
    assert b"cluster: warning: mind the gap" in run(daemon, "run", "-d", "warn").stderr


def test_signals_are_passed_on_without_a_terminal(daemon, box):
    box.code = 99
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "-H", f"unix://{daemon.path}", "run", "i"], stderr=subprocess.PIPE
    )
    assert process.stderr.readline() == b"err\n"
    process.terminate()
    assert process.wait(20) == 143
    process.stderr.close()
    assert box.signals == ["SIGTERM"]


def test_a_terminal_is_raw_and_its_size_is_told(daemon, box):
    pid, master = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "cli.main", "-H", f"unix://{daemon.path}", "run", "-it", "i"])
    try:
        seen = b""

        def read_until(word):
            nonlocal seen
            deadline = time.monotonic() + 20
            while word not in seen:
                assert select.select([master], [], [], max(0, deadline - time.monotonic()))[0], seen
                seen += os.read(master, 4096)

        read_until(b"err\r\n")
        # ctrl-c is a byte for the container, not a signal; and nothing is echoed on this side.
        os.write(master, b"\x03xq")
        read_until(b"\x03XQ")
        read_until(b"end")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = 0
        assert b"xq" not in seen
        assert len(box.sizes) == 1
    finally:
        if pid:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        os.close(master)


def test_the_detach_keys_leave_it_running(daemon, box):
    pid, master = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "cli.main", "-H", f"unix://{daemon.path}", "run", "-it", "i"])
    seen = b""
    try:
        deadline = time.monotonic() + 20
        while b"err" not in seen:
            assert select.select([master], [], [], max(0, deadline - time.monotonic()))[0], seen
            seen += os.read(master, 4096)
        os.write(master, b"\x10\x11")
        while b"it runs on" not in seen:
            assert select.select([master], [], [], max(0, deadline - time.monotonic()))[0], seen
            seen += os.read(master, 4096)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        os.close(master)
