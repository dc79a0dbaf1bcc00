"""The light client: hosts, import budget, words when nobody answers, reuse of connections."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from covey.engine_api.dial import DEFAULT_HOST, Host, host_from_environment
from covey.engine_api.light import Client
from covey.errors import InvalidArgument, NotFound, Unavailable

REPOSITORY = Path(__file__).parents[3]
HEAVY = ("asyncio", "ssl", "email", "http.client", "pydantic", "aiohttp", "msgspec", "msgpack", "dataclasses", "inspect")


def test_imports_nothing_heavy():
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import covey.engine_api.light; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("address", "tls", "name", "port", "prefix", "authority"),
    [
        ("tcp://m:2376/_node/w1", True, "m", 2376, "/_node/w1", "m:2376"),
        ("tcp://m:2376/_node/w1/", True, "m", 2376, "/_node/w1", "m:2376"),
        ("tcp://m", True, "m", 2376, "", "m:2376"),
        ("tcp://m", False, "m", 2375, "", "m:2375"),
        ("tcp://[::1]:99", False, "::1", 99, "", "[::1]:99"),
        ("tcp://[::1]", False, "::1", 2375, "", "[::1]:2375"),
        ("tcp://:99", False, "127.0.0.1", 99, "", "127.0.0.1:99"),
    ],
)
def test_tcp_hosts(address, tls, name, port, prefix, authority):
    host = Host(address, tls)
    assert (host.name, host.port, host.prefix, host.authority, host.tls) == (name, port, prefix, authority, tls)


@pytest.mark.parametrize("address", ["", "m:2375", "ftp://x", "tcp://", "tcp://m:port", "unix://"])
def test_bad_hosts(address):
    with pytest.raises(InvalidArgument, match="invalid host"):
        Host(address)


def test_environment():
    assert host_from_environment({}).address == DEFAULT_HOST
    assert host_from_environment({"DOCKER_HOST": "unix:///d", "COVEY_HOST": "unix:///c"}).socket_path == "/c"
    host = host_from_environment({"DOCKER_HOST": "tcp://m:1", "DOCKER_TLS_VERIFY": "1"})
    assert (host.tls, host.port) == (True, 1)


def test_nobody_answers(tmp_path):
    address = f"unix://{tmp_path}/absent"
    with pytest.raises(Unavailable) as error:
        Client(address, environ={}).get("/info")
    assert error.value.message.startswith(f"Cannot connect to the Covey daemon at {address}. Is `cluster daemon` running?")
    assert "\n" not in error.value.message


def test_missing_certificates_are_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        environ = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
        client = Client(f"tcp://127.0.0.1:{server.getsockname()[1]}", environ=environ)
        with pytest.raises(InvalidArgument, match=r"cannot read ca\.pem, cert\.pem and key\.pem in"):
            client.get("/info")


class Scripted:
    """A server that answers each connection's requests from a list, and keeps what it read."""

    def __init__(self, *connections):
        self.read = []
        self.closed = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.run, args=(connections,), daemon=True)
        self.thread.start()

    @property
    def address(self):
        return f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self, connections):
        for answers in connections:
            sock, _ = self.listener.accept()
            sock.settimeout(5)
            for answer in answers:
                self.read.append(sock.recv(65536).decode())
                sock.sendall(answer)
            sock.close()
            self.closed.set()
        self.listener.close()


def ok(body=b"{}", *fields):
    head = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def test_negotiates_once_and_keeps_the_connection_and_the_prefix():
    server = Scripted([ok(b"OK", b"Api-Version: 1.41"), ok(b'{"a":1}'), ok(b"[]")])
    with Client(server.address + "/_node/w1", environ={}) as client:
        assert client.get("/info") == {"a": 1}
        assert client.get("/nodes", {"filters": '{"role":["worker"]}', "none": None}) == []
        assert client.version == "1.41"
        assert not client.at_least("1.44")
    server.thread.join(5)
    lines = [text.partition("\r\n")[0] for text in server.read]
    assert lines == [
        "GET /_node/w1/_ping HTTP/1.1",
        "GET /_node/w1/v1.41/info HTTP/1.1",
        "GET /_node/w1/v1.41/nodes?filters=%7B%22role%22:%5B%22worker%22%5D%7D HTTP/1.1",
    ]


def test_a_connection_the_daemon_closed_is_not_used_again():
    server = Scripted([ok(b"1")], [ok(b"2")])
    with Client(server.address, version="1.52", environ={}) as client:
        assert client.post("/containers/x/start") == 1
        assert server.closed.wait(5)
        assert client.post("/containers/x/start") == 2


def test_cut_answers_and_plain_text_errors():
    server = Scripted(
        [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nab"],
        [b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone"],
        [b""],
    )
    client = Client(server.address, version="1.52", environ={})
    with pytest.raises(Unavailable, match="lost the connection"):
        client.get("/info")
    with pytest.raises(NotFound, match=r"^gone$"):
        client.get("/info")
    client.close()
    with pytest.raises(Unavailable, match="lost the connection"):
        client.get("/info")
