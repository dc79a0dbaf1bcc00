"""Connections and streams on a loop, without a container: framing, back-pressure, half-close."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable

import pytest

from worker.runtime.errors import RuntimeFault
from worker.shim.connection import Connection
from worker.shim.loop import Loop
from worker.shim.streams import Streams

HIGH = 262144


class Rig:
    """A loop, the streams of an imaginary process, and client sockets."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.streams = Streams(self.loop, None)
        self.stdio = self.streams.make_pipes(stdin=True)
        self.streams.pump()
        self.requests: list[dict] = []
        self.closed: list[Connection] = []
        self._sockets: list[socket.socket] = []

    def connect(self, **attach: bool) -> tuple[socket.socket, Connection]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        connection = Connection(self.loop, theirs.detach(), self.perform, self.closed.append)
        self._sockets += [ours, theirs]
        if attach:
            outputs = tuple(n for n, name in ((1, "stdout"), (2, "stderr")) if attach.get(name))
            connection.become_attached(self.streams, stdin=attach.get("stdin", False), outputs=outputs)
        return ours, connection

    def perform(self, connection: Connection, request: dict) -> None:
        self.requests.append(request)
        if request.get("op") == "fail":
            connection.fail(RuntimeFault("bad-state", "no", "here"))
        elif request.get("op") != "wait":
            connection.reply({"echo": request})

    def turn(self, until: Callable[[], object], patience: float = 5.0) -> None:
        """Run the loop until the condition holds."""
        deadline = time.monotonic() + patience

        def check() -> None:
            if until() or time.monotonic() > deadline:
                self.loop.stop()
            else:
                self.loop.call_later(0.001, check)

        self.loop._running = True
        check()
        self.loop.run()
        assert until(), "the condition did not come to hold"

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self.streams.close()
        for fd in (self.stdio.stdin, self.stdio.stdout, self.stdio.stderr):
            try:
                os.close(fd)
            except (OSError, TypeError):
                pass


@pytest.fixture
def rig():
    made = Rig()
    yield made
    made.close()


def packed(body: object) -> bytes:
    data = json.dumps(body).encode()
    return struct.pack(">I", len(data)) + data


def receive(sock: socket.socket, into: bytearray) -> bytearray:
    try:
        while data := sock.recv(65536):
            into += data
    except (BlockingIOError, ConnectionResetError):
        pass
    return into


def answers(data: bytes) -> list[dict]:
    result = []
    while data:
        (length,) = struct.unpack_from(">I", data)
        result.append(json.loads(data[4 : 4 + length]))
        data = data[4 + length :]
    return result


def test_requests_one_byte_at_a_time_and_several_at_once(rig):
    client, _ = rig.connect()
    for byte in packed({"op": "a"}):
        client.send(bytes([byte]))
    client.send(packed({"op": "b"}) + packed({"op": "fail"}))
    got = bytearray()
    rig.turn(lambda: len(answers(bytes(receive(client, got)))) == 3)
    assert answers(bytes(got))[2] == {"error": {"code": "bad-state", "message": "no", "step": "here"}}
    assert [request["op"] for request in rig.requests] == ["a", "b", "fail"]


def test_a_request_waits_for_the_answer_before_it(rig):
    client, connection = rig.connect()
    client.send(packed({"op": "wait"}) + packed({"op": "after"}))
    rig.turn(lambda: rig.requests)
    assert [request["op"] for request in rig.requests] == ["wait"]
    connection.reply({})
    assert [request["op"] for request in rig.requests] == ["wait", "after"]


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b""])
def test_nonsense_and_end_close(rig, data):
    client, connection = rig.connect()
    client.send(data or packed({"op": "x"}))
    client.shutdown(socket.SHUT_WR)
    rig.turn(lambda: rig.closed == [connection])


def test_output_rests_for_the_slow_and_goes_on(rig):
    slow, _ = rig.connect(stdout=True)
    quick, _ = rig.connect(stdout=True)
    os.set_blocking(rig.stdio.stdout, False)
    sent, got_quick, got_slow = 0, bytearray(), bytearray()
    chunk = bytes(65536)

    def feed() -> None:
        nonlocal sent
        try:
            while sent < 4_000_000:
                sent += os.write(rig.stdio.stdout, chunk)
        except BlockingIOError:
            pass

    last = -1

    def stalled() -> bool:
        nonlocal last
        feed()
        receive(quick, got_quick)
        before, last = last, sent
        return before == sent > HIGH

    rig.turn(stalled)
    assert sent < 4_000_000, "the slow one has read nothing, so not all can have been taken"

    def finished() -> bool:
        feed()
        receive(quick, got_quick)
        receive(slow, got_slow)
        return sent >= 4_000_000 and len(got_slow) == len(got_quick) >= sent

    rig.turn(finished)


@pytest.mark.parametrize("short", range(0, 17, 2))
def test_full_to_the_byte_is_relieved(rig, short):
    """An attacher that is full by its frame's header alone still says when it has room again."""
    client, connection = rig.connect(stdout=True)
    got = bytearray()
    filler = bytes(4096)
    while not connection.pending:
        connection.push(1, filler)
    while len(connection._outbox) + len(filler) + 8 < HIGH - 4096:
        connection.push(1, filler)
    connection.push(1, bytes(HIGH - len(connection._outbox) - short))
    os.write(rig.stdio.stdout, b"last")
    rig.turn(lambda: receive(client, got).endswith(b"last"))
    os.write(rig.stdio.stdout, b"more")
    rig.turn(lambda: receive(client, got).endswith(b"more"))


def test_input_in_pieces_and_half_close(rig):
    client, _ = rig.connect(stdin=True)
    os.set_blocking(rig.stdio.stdin, False)
    stream = struct.pack(">BxxxI", 0, 5) + b"hello" + struct.pack(">BxxxI", 7, 3) + b"odd" + struct.pack(">BxxxI", 0, 0)
    for byte in stream:
        client.send(bytes([byte]))
    read = bytearray()

    def eof() -> bool:
        try:
            data = os.read(rig.stdio.stdin, 100)
        except BlockingIOError:
            return False
        read.extend(data)
        return not data

    rig.turn(eof)
    assert read == b"hello"


def test_input_of_one_who_may_not_is_ignored(rig):
    client, _ = rig.connect(stdout=True)
    client.send(struct.pack(">BxxxI", 0, 2) + b"no" + struct.pack(">BxxxI", 0, 0))
    os.set_blocking(rig.stdio.stdin, False)
    rig.turn(lambda: rig.loop.call_later(0, lambda: None))
    with pytest.raises(BlockingIOError):
        os.read(rig.stdio.stdin, 10)


def test_attachers_end_after_the_process_and_not_with_its_pipes(rig):
    client, connection = rig.connect(stdout=True, stderr=True)
    os.write(rig.stdio.stdout, b"x")
    rig.streams.release(rig.stdio)
    got = bytearray()
    rig.turn(lambda: b"x" in receive(client, got))
    assert rig.closed == []
    rig.streams.drain()
    rig.streams.process_ended()
    assert rig.closed == [connection]
    _, late_connection = rig.connect(stdout=True)
    assert rig.closed[-1] is late_connection


def test_a_process_that_never_reads_does_not_swallow_memory(rig):
    client, _ = rig.connect(stdin=True)
    sent = 0
    client.send(struct.pack(">BxxxI", 0, 0xFFFFFFFF))
    last = -1

    def stalled() -> bool:
        nonlocal sent, last
        try:
            while True:
                sent += client.send(bytes(65536))
        except BlockingIOError:
            pass
        before, last = last, sent
        return before == sent

    rig.turn(stalled)
    assert sent < 4 * HIGH
