"""64 MiB through attach, exec and logs, each way, with and without a terminal: nothing lost, nothing out of order.

Over the real HTTP API with a hijacked connection; the plain forms also with the docker command. What is sent is made of
numbered blocks, so its digest changes when two of them change places.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .conftest import Node, wait_until
from .states_and_verbs import API, Caller

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

MIB = 1 << 20
SIZE = 64 * MIB
BLOCK = 64 * 1024
FRAME = struct.Struct(">BxxxI")
RAW = "stty raw -echo; printf READY; "


def blocks(size: int, *, lines: bool = False) -> Iterator[bytes]:
    """Numbered blocks, ``size`` bytes in all; ``lines``: of text in lines of 1 KiB."""
    noise = hashlib.shake_256(b"covey").digest(BLOCK)
    for number in range(size // BLOCK):
        if lines:
            text = (noise[:511].hex() + "\n")[:-1]
            yield b"".join(f"{number:08d}{line:04d}{text}"[:1023].encode() + b"\n" for line in range(BLOCK // 1024))
        else:
            yield number.to_bytes(8, "big") + noise[8:]


def digest(size: int, *, lines: bool = False) -> str:
    found = hashlib.sha256()
    for block in blocks(size, lines=lines):
        found.update(block)
    return found.hexdigest()


class Hijacked:
    """One connection that has become a stream; ``tty``: bare bytes, else frames."""

    def __init__(self, node: Node, path: str, body: Any, tty: bool) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(node.socket))
        data = json.dumps(body).encode()
        head = f"POST {API}{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self.socket.sendall(head.encode() + data)
        self._file = self.socket.makefile("rb")
        status = self._file.readline()
        while self._file.readline() != b"\r\n":
            pass
        assert b" 101 " in status, status + self._file.read(500)
        self._tty = tty

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """(stream, data) to the end."""
        while True:
            if self._tty:
                data = self._file.read1(BLOCK)
                if not data:
                    return
                yield 1, data
                continue
            head = self._file.read(FRAME.size)
            if not head:
                return
            stream, length = FRAME.unpack(head)
            yield stream, self._file.read(length)

    def expect(self, text: bytes) -> None:
        assert self._file.read(len(text)) == text

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@contextmanager
def feeding(stream: Hijacked, size: int, *, half_close: bool, lines: bool = False) -> Iterator[None]:
    """The blocks go in beside what is read; then perhaps the end of input."""

    def feed() -> None:
        for block in blocks(size, lines=lines):
            stream.socket.sendall(block)
        if half_close:
            stream.socket.shutdown(socket.SHUT_WR)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    yield
    feeder.join(30)
    assert not feeder.is_alive(), "the input was not taken"


def received(stream: Hijacked) -> tuple[int, str, bytes]:
    """(bytes of stdout, their digest, stderr)."""
    found, count, errors = hashlib.sha256(), 0, b""
    for number, data in stream.pieces():
        if number == 1:
            found.update(data)
            count += len(data)
        else:
            errors += data
    return count, found.hexdigest(), errors


def created(node: Node, command: list[str], *, tty: bool = False, driver: str = "none") -> str:
    body = {
        "Image": "busybox", "Cmd": command, "OpenStdin": True, "StdinOnce": True, "Tty": tty,
        "HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": driver}},
    }  # fmt: skip
    return str(Caller(node.socket).must("POST", "/containers/create", body)["Id"])


def attached(node: Node, ident: str, *, tty: bool) -> Hijacked:
    """Attached before the start, so that nothing is missed."""
    stream = Hijacked(node, f"/containers/{ident}/attach?stream=1&stdin=1&stdout=1&stderr=1", {}, tty)
    Caller(node.socket).must("POST", f"/containers/{ident}/start")
    return stream


def executed(node: Node, ident: str, command: list[str], *, tty: bool) -> tuple[str, Hijacked]:
    streams = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Tty": tty, "Cmd": command}
    exec_id = str(Caller(node.socket).must("POST", f"/containers/{ident}/exec", streams)["Id"])
    return exec_id, Hijacked(node, f"/exec/{exec_id}/start", {"Detach": False, "Tty": tty}, tty)


def exit_code(node: Node, ident: str) -> int:
    return int(Caller(node.socket).must("POST", f"/containers/{ident}/wait")["StatusCode"])


def test_attach_both_ways(node: Node) -> None:
    ident = created(node, ["cat"])
    stream = attached(node, ident, tty=False)
    with feeding(stream, SIZE, half_close=True):
        assert received(stream) == (SIZE, digest(SIZE), b"")
    stream.close()
    assert exit_code(node, ident) == 0, "the half-close reached cat"


def test_attach_both_ways_with_a_terminal(node: Node) -> None:
    ident = created(node, ["sh", "-c", f"{RAW} head -c {SIZE}"], tty=True)
    stream = attached(node, ident, tty=True)
    stream.expect(b"READY")
    with feeding(stream, SIZE, half_close=False):
        assert received(stream)[:2] == (SIZE, digest(SIZE))
    stream.close()
    assert exit_code(node, ident) == 0


def test_exec_both_ways(node: Node) -> None:
    ident = node.run("busybox", "sleep", "100")
    exec_id, stream = executed(node, ident, ["cat"], tty=False)
    with feeding(stream, SIZE, half_close=True):
        assert received(stream) == (SIZE, digest(SIZE), b"")
    stream.close()
    found = Caller(node.socket).must("GET", f"/exec/{exec_id}/json")
    assert (found["Running"], found["ExitCode"]) == (False, 0)


def test_exec_both_ways_with_a_terminal(node: Node) -> None:
    ident = node.run("busybox", "sleep", "100")
    exec_id, stream = executed(node, ident, ["sh", "-c", f"{RAW} head -c {SIZE}"], tty=True)
    stream.expect(b"READY")
    with feeding(stream, SIZE, half_close=False):
        assert received(stream)[:2] == (SIZE, digest(SIZE))
    stream.close()
    assert Caller(node.socket).must("GET", f"/exec/{exec_id}/json")["ExitCode"] == 0


def test_both_outputs_at_once_stay_apart(node: Node) -> None:
    ident = created(
        node, ["sh", "-c", "dd if=/dev/zero bs=64k count=256 2>/dev/null & dd if=/dev/zero bs=64k count=256 >&2; wait"]
    )
    stream = attached(node, ident, tty=False)
    counts = {1: 0, 2: 0}
    for number, data in stream.pieces():
        counts[number] += len(data) if not data.strip(b"\0") else 0
    stream.close()
    assert counts == {1: 16 * MIB, 2: 16 * MIB}


@pytest.mark.parametrize("driver", ["json-file", "local"])
@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "terminal"])
def test_logs(node: Node, driver: str, tty: bool) -> None:
    command = ["sh", "-c", f"{RAW} head -c {SIZE}"] if tty else ["cat"]
    ident = created(node, command, tty=tty, driver=driver)
    stream = attached(node, ident, tty=tty)
    if tty:
        stream.expect(b"READY")
    with feeding(stream, SIZE, half_close=not tty, lines=True):
        assert received(stream)[:2] == (SIZE, digest(SIZE, lines=True))
    stream.close()
    assert exit_code(node, ident) == 0
    command = ["docker", "-H", f"unix://{node.socket}", "logs", ident]
    logged = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
    logged = logged.removeprefix(b"READY") if tty else logged
    assert (len(logged), hashlib.sha256(logged).hexdigest()) == (SIZE, digest(SIZE, lines=True))


def test_the_docker_command(node: Node) -> None:
    """run -i, exec -i and start -ai: input to its end, all output."""
    docker = ["docker", "-H", f"unix://{node.socket}"]
    data = b"".join(blocks(16 * MIB))

    def through(*words: str) -> None:
        done = subprocess.run([*docker, *words], input=data, capture_output=True, timeout=60, check=False)
        assert (done.returncode, len(done.stdout), done.stdout == data, done.stderr) == (0, len(data), True, b""), words

    through("run", "--rm", "-i", "--log-driver", "none", "busybox", "cat")
    through("exec", "-i", node.run("busybox", "sleep", "100"), "cat")
    node.docker("create", "-i", "--name", "later", "--log-driver", "none", "busybox", "cat")
    through("start", "-ai", "later")


def test_half_close_reaches_a_process_that_has_read_nothing_yet(node: Node) -> None:
    ident = created(node, ["sh", "-c", "sleep 0.3; wc -c"])
    stream = attached(node, ident, tty=False)
    stream.socket.sendall(b"12345")
    stream.socket.shutdown(socket.SHUT_WR)
    assert b"".join(data for _, data in stream.pieces()).strip() == b"5"
    stream.close()
    assert exit_code(node, ident) == 0


def test_output_without_a_reader_does_not_stop_the_container(node: Node) -> None:
    """An attacher that reads nothing holds its container up, as a terminal would; once it is gone it goes on."""
    ident = created(node, ["sh", "-c", "dd if=/dev/zero bs=64k count=256 2>/dev/null; echo over >&2"])
    stream = attached(node, ident, tty=False)
    stream.close()
    assert exit_code(node, ident) == 0


def test_detach_keys_leave_the_container_running(node: Node) -> None:
    ident = created(node, ["sh", "-c", f"{RAW} cat"], tty=True)
    stream = attached(node, ident, tty=True)
    stream.expect(b"READY")
    stream.socket.sendall(b"before")
    stream.expect(b"before")
    stream.socket.sendall(b"\x10")
    stream.socket.sendall(b"\x11")
    assert b"".join(data for _, data in stream.pieces()) == b""
    stream.close()
    wait_until(lambda: node.state(ident)["Running"], "it runs on")
