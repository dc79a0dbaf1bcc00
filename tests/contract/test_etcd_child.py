"""covey.etcd: the directory, the command line and the health of an etcd of our own."""

from __future__ import annotations

import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from covey.errors import InvalidArgument
from covey.etcd import CLIENT_SOCKET, PEER_SOCKET, EtcdChild
from manager.store.etcd.connection import Access, Target, parse_target


def test_by_default_nothing_listens_on_the_network() -> None:
    child = EtcdChild("/var/lib/covey/etcd")
    urls = [item.split("=", 1)[1] for item in child.argv() if "-urls" in item]
    assert len(urls) == 4
    assert all(url.startswith("unix://") for url in urls)
    assert child.endpoint() == "unix:/var/lib/covey/etcd/client:1"


def test_with_a_port_it_is_on_loopback() -> None:
    child = EtcdChild("/x", client_port=2379, peer_port=2380)
    assert child.endpoint() == "127.0.0.1:2379"
    assert [item for item in child.argv() if "-urls" in item and "http://127.0.0.1:23" not in item] == []


def test_too_deep_a_directory_is_said() -> None:
    with pytest.raises(ValueError, match="shorter --data-root"):
        EtcdChild("/" + "d" * 100).endpoint()


def test_prepare_locks_the_directory_and_removes_dead_sockets_only(tmp_path: Path) -> None:
    child = EtcdChild(str(tmp_path / "etcd"))
    child.prepare()
    assert stat.S_IMODE((tmp_path / "etcd").stat().st_mode) == 0o700
    dead, alive = tmp_path / "etcd" / PEER_SOCKET, tmp_path / "etcd" / CLIENT_SOCKET
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(alive))
        listener.listen()
        child.prepare()
        assert not dead.exists()
        assert alive.exists()


def test_trouble_is_told(tmp_path: Path) -> None:
    child = EtcdChild(str(tmp_path))
    assert "FileNotFoundError" in child.trouble()
    with pytest.raises(TimeoutError, match=r"is not ready after 0\.1 s .*see its log"):
        child.wait_ready(0.1)
    with pytest.raises(TimeoutError, match="has ended"):
        child.wait_ready(10, alive=lambda: False)


def sockets_of(pid: int) -> set[str]:
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
    return {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}


def tcp_sockets() -> set[str]:
    lines = [line for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {line.split()[9] for line in lines}


@pytest.mark.root
def test_a_real_one(own_etcd: Any) -> None:
    child: EtcdChild = own_etcd.child
    assert child.trouble() == ""
    assert not (sockets_of(own_etcd.process.pid) & tcp_sockets())
    own_etcd.process.send_signal(signal.SIGSTOP)
    try:
        assert "imed" in child.trouble(0.2)
    finally:
        own_etcd.process.send_signal(signal.SIGCONT)
    own_etcd.end()
    assert "ConnectionRefused" in child.trouble()


def test_endpoints_as_people_write_them() -> None:
    tls = Access(ca=b"pem")
    table = {
        ("127.0.0.1:2379", None): Target("127.0.0.1:2379", False),
        ("etcd.example", None): Target("etcd.example:2379", False),
        ("[::1]", None): Target("[::1]:2379", False),
        ("[::1]:4001", None): Target("[::1]:4001", False),
        ("http://a:1/", None): Target("a:1", False),
        ("a:1", tls): Target("a:1", True),
        ("http://a:1", tls): Target("a:1", False),
        ("https://a", tls): Target("a:2379", True),
        ("unix:/x/client:1", tls): Target("unix:/x/client:1", False),
        ("unix:///x/client:1", None): Target("unix:/x/client:1", False),
    }
    for (text, access), target in table.items():
        assert parse_target(text, access or Access()) == target, text
    for bad in ("", "a:b", "ftp://a:1", "https://a:1", "a/b", ":1"):
        with pytest.raises(InvalidArgument, match="etcd endpoint"):
            parse_target(bad)
