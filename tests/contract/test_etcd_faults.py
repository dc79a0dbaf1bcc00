"""What the etcd store does when etcd, or the way to it, breaks. Real etcd, real signals."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import ipaddress
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from covey.etcd import EtcdChild
from manager.store.etcd.connection import Access, LoginRefused, Timing
from manager.store.etcd.store import EtcdStore
from manager.store.etcd.watch import progress_is_ordered
from manager.store.interface import (
    Compacted,
    LeaseLost,
    OutcomeUnknown,
    Put,
    StoreUnavailable,
    Watch,
    WatchEvent,
    absent,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.root]

Collect = Callable[[Watch, int], Awaitable[list[WatchEvent]]]
Until = Callable[[str, Callable[[], object]], Awaitable[None]]
Server = Any

NOWHERE = "127.0.0.1:1"


async def put(store: EtcdStore, key: str, value: bytes = b"") -> int:
    return (await store.txn([], [Put(key, value)])).revision


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = {thread.name for thread in threading.enumerate() if thread.name.startswith("etcd lease")}
    yield
    left = {thread.name for thread in threading.enumerate() if thread.name.startswith("etcd lease")} - before
    assert not left


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_watch_goes_on_after_etcd_died(
    own_etcd: Server, quick: Timing, collect: Collect, until: Until, how: int
) -> None:
    async with EtcdStore([own_etcd.child.endpoint()], timing=quick) as store:
        start = await put(store, "/w/0")
        async with store.watch(["/w/"], start) as watch:
            await collect(watch, 1)
            waiting = asyncio.create_task(collect(watch, 4))
            await put(store, "/w/1")
            await asyncio.to_thread(own_etcd.end, how)
            await asyncio.to_thread(own_etcd.start)
            for i in (2, 3, 4):
                await put(store, f"/w/{i}")
            assert [event.item.key for event in await waiting] == ["/w/1", "/w/2", "/w/3", "/w/4"]
        assert not store.statistics()["watches"]
    await until("no task of the store is left", lambda: asyncio.all_tasks() == {asyncio.current_task()})


class DeafWay:
    """A relay to etcd's socket that, once ``deaf``, carries requests there but no answers back."""

    def __init__(self, path: str, target: str) -> None:
        self.path, self.target, self.deaf = path, target, False
        self._pumps: list[asyncio.Task[None]] = []
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> DeafWay:
        await self._group.__aenter__()
        self._server = await asyncio.start_unix_server(self._relay, self.path)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await self._group.__aexit__(None, None, None)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self.target)
        self._pumps += [
            self._group.create_task(self._pump(reader, back, answers=False)),
            self._group.create_task(self._pump(there, writer, answers=True)),
        ]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool) -> None:
        try:
            while data := await reader.read(65536):
                if not (answers and self.deaf):
                    writer.write(data)
        finally:
            writer.close()


async def test_a_silent_watch_is_noticed_and_moved(own_etcd: Server, quick: Timing, collect: Collect) -> None:
    direct = own_etcd.child.endpoint()
    async with DeafWay(f"{own_etcd.directory}/relay", own_etcd.child.socket_path()) as way:
        endpoints = [f"unix:{way.path}", direct]
        async with EtcdStore(endpoints, timing=quick) as store, EtcdStore([direct], timing=quick) as other:
            start = await put(store, "/w/0")
            async with store.watch(["/w/"], start) as watch:
                await collect(watch, 1)
                way.deaf = True
                await put(other, "/w/1")
                assert [event.item.key for event in await collect(watch, 1)] == ["/w/1"]
                assert store.statistics()["watches"][0]["stalls"] == 1
            assert store.statistics()["endpoint"] == direct


async def test_an_etcd_that_stood_still_is_not_given_up(own_etcd: Server, quick: Timing, collect: Collect) -> None:
    async with EtcdStore([own_etcd.child.endpoint()], timing=quick) as store:
        start = await put(store, "/w/0")
        async with store.watch(["/w/"], start) as watch:
            await collect(watch, 1)
            waiting = asyncio.create_task(collect(watch, 1))
            own_etcd.process.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(1.5 * quick.stall)
            finally:
                own_etcd.process.send_signal(signal.SIGCONT)
            await put(store, "/w/1")
            assert [event.item.key for event in await waiting] == ["/w/1"]


async def test_a_txn_without_answer_is_of_unknown_outcome(own_etcd: Server, quick: Timing) -> None:
    timing = dataclasses.replace(quick, attempt=0.5, total=1.0)
    direct = own_etcd.child.endpoint()
    async with DeafWay(f"{own_etcd.directory}/relay", own_etcd.child.socket_path()) as way:
        async with EtcdStore([f"unix:{way.path}"], timing=timing) as store, EtcdStore([direct]) as other:
            await put(store, "/a", b"1")
            way.deaf = True
            with pytest.raises(OutcomeUnknown, match="read, then decide"):
                await store.txn([], [Put("/a", b"2")])
            with pytest.raises(StoreUnavailable, match="does not answer Range since"):
                await store.get("/a")
            item = await other.get("/a")
            assert item is not None
            assert (item.value, item.version) == (b"2", 2), "sent once, applied once, though nobody heard"
            assert store.statistics()["unknown_outcomes"] == 1


async def test_nobody_home(quick: Timing) -> None:
    timing = dataclasses.replace(quick, connect=0.2, total=0.4)
    async with EtcdStore([NOWHERE], timing=timing) as store:
        known = r"etcd at 127\.0\.0\.1:1 does not answer Txn since .*Z .*check that it runs"
        with pytest.raises(StoreUnavailable, match=known):
            await store.txn([], [Put("/a", b"")])
        assert store.statistics()["down_since"] is not None


async def test_a_dead_endpoint_costs_one_turn(own_etcd: Server, quick: Timing, collect: Collect) -> None:
    async with EtcdStore([NOWHERE, own_etcd.child.endpoint()], timing=quick) as store:
        began = time.monotonic()
        start = await put(store, "/w/0")
        assert time.monotonic() - began < quick.connect
        assert store.statistics()["endpoint"] == own_etcd.child.endpoint()
        async with store.watch(["/w/"], start) as watch:
            await collect(watch, 1)
        lease = await store.grant(1)
        async with store.keep_alive(lease):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(lease.lost.wait(), 1.5)
        failures = store.statistics()["endpoints"][NOWHERE]
        await asyncio.gather(*(put(store, f"/w/{i}") for i in range(20)))
        assert store.statistics()["endpoints"][NOWHERE] == failures, "the living one is kept"


async def test_calls_find_the_other_endpoint_when_theirs_dies(own_etcd: Server, shared_etcd: Server, quick: Timing) -> None:
    async with EtcdStore([own_etcd.child.endpoint(), shared_etcd.child.endpoint()], timing=quick) as store:
        await store.revision()
        own_etcd.end()
        await asyncio.gather(*(store.get("/a") for _ in range(8)))
        assert store.statistics()["endpoint"] == shared_etcd.child.endpoint()


async def test_compaction_during_an_outage(own_etcd: Server, quick: Timing, collect: Collect) -> None:
    endpoint = own_etcd.child.endpoint()
    async with EtcdStore([endpoint], timing=quick) as store, EtcdStore([endpoint], timing=quick) as other:
        start = await put(store, "/w/0")
        async with store.watch(["/w/"], start) as watch:
            await collect(watch, 1)
            own_etcd.end()
            own_etcd.start()
            for i in range(5):
                last = await put(other, "/w/x", bytes((i,)))
            await other.compact(last)
            with pytest.raises(Compacted) as caught:
                await asyncio.wait_for(watch.__anext__(), 15)
            assert caught.value.revision == last


async def test_a_store_that_went_back_in_time(own_etcd: Server, quick: Timing, collect: Collect) -> None:
    async with EtcdStore([own_etcd.child.endpoint()], timing=quick) as store:
        for i in range(5):
            last = await put(store, f"/w/{i}")
        async with store.watch(["/w/"], last) as watch:
            await collect(watch, 1)
            own_etcd.end()
            shutil.rmtree(Path(own_etcd.directory, "data"))
            own_etcd.start()
            with pytest.raises(Compacted, match=r"restored from a copy|another cluster"):
                await asyncio.wait_for(watch.__anext__(), 15)


async def test_a_busy_loop_does_not_cost_the_lease(shared_etcd: Server, quick: Timing) -> None:
    async with EtcdStore([shared_etcd.child.endpoint()], timing=quick) as store:
        lease = await store.grant(1)
        await store.txn([absent("/l")], [Put("/l", b"", lease.id)])
        async with store.keep_alive(lease):
            time.sleep(2.5)
            assert await store.get("/l") is not None
            assert not lease.lost.is_set()
            (counts,) = store.statistics()["leases"].values()
            assert counts["renewals"] >= 5
        await store.revoke(lease)


async def test_without_etcd_a_lease_counts_as_lost_in_time(own_etcd: Server, quick: Timing) -> None:
    async with EtcdStore([own_etcd.child.endpoint()], timing=quick) as store:
        lease = await store.grant(1)
        async with store.keep_alive(lease):
            own_etcd.end()
            began = time.monotonic()
            await asyncio.wait_for(lease.lost.wait(), 10)
            assert time.monotonic() - began <= lease.ttl + 1.5


async def test_a_lease_that_ended_behind_our_back(shared_etcd: Server, quick: Timing) -> None:
    endpoint = shared_etcd.child.endpoint()
    async with EtcdStore([endpoint], timing=quick) as store, EtcdStore([endpoint], timing=quick) as other:
        lease = await store.grant(1)
        async with store.keep_alive(lease):
            await other.revoke(lease)
            lease.lost.clear()
            await asyncio.wait_for(lease.lost.wait(), 5)
        with pytest.raises(LeaseLost):
            await store.renew(lease)


async def test_which_servers_keep_progress_in_order() -> None:
    table = {"3.4.23": False, "3.4.25": True, "3.5.7": False, "3.5.16": True, "3.6.0": True, "3.3.9": False, "": False}
    assert {version: progress_is_ordered(version) for version in table} == table


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_certificates(directory: Path) -> dict[str, bytes]:
    """A CA and one certificate that serves as server's and client's, as PEM by file name."""
    now = datetime.datetime.now(datetime.UTC)

    def make(name: str, issuer: str, key: Any, signer: Any, *extra: tuple[Any, bool]) -> bytes:
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]),
            subject_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(hours=1),
            not_valid_after=now + datetime.timedelta(hours=1),
        )
        for extension, critical in extra:
            builder = builder.add_extension(extension, critical)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    local = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    files = {
        "ca.pem": make("test ca", "test ca", ca_key, ca_key, (x509.BasicConstraints(True, None), True)),
        "cert.pem": make("test node", "test ca", key, ca_key, (local, False)),
        "key.pem": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return files


async def test_tls_with_client_certificates_and_a_login(tmp_path: Path, quick: Timing, collect: Collect) -> None:
    files = write_certificates(tmp_path)
    port = free_port()
    child = EtcdChild(str(tmp_path), client_port=port)
    argv = [item.replace("http://", "https://") if "client-urls" in item else item for item in child.argv()]
    argv += [f"--trusted-ca-file={tmp_path}/ca.pem", f"--cert-file={tmp_path}/cert.pem", f"--key-file={tmp_path}/key.pem"]
    argv += ["--client-cert-auth"]
    log = (tmp_path / "log").open("wb")
    process = await asyncio.create_subprocess_exec(*argv, cwd=tmp_path, env={**os.environ, **child.environment()}, stderr=log)
    try:
        access = Access(ca=files["ca.pem"], certificate=files["cert.pem"], key=files["key.pem"])
        async with EtcdStore([f"127.0.0.1:{port}"], access, quick) as store:
            await put(store, "/w/0")
            await enable_auth(store, "correct")
        bare = dataclasses.replace(quick, connect=0.5, total=0.5)
        async with EtcdStore([f"https://127.0.0.1:{port}"], Access(ca=files["ca.pem"]), bare) as store:
            with pytest.raises(StoreUnavailable):
                await store.get("/w/0")
        wrong = dataclasses.replace(access, user="root", password="wrong")
        async with EtcdStore([f"127.0.0.1:{port}"], wrong, quick) as store:
            with pytest.raises(LoginRefused, match="check the store's user and password"):
                await store.get("/w/0")
        right = dataclasses.replace(access, user="root", password="correct")
        async with EtcdStore([f"127.0.0.1:{port}"], right, quick) as store:
            start = await put(store, "/w/1")
            store._connection.current.token = (("token", "stale.1"),)
            async with store.watch(["/w/"], start) as watch:
                assert [event.item.key for event in await collect(watch, 1)] == ["/w/1"]
            assert await store.get("/w/1") is not None
            lease = await store.grant(1)
            async with store.keep_alive(lease):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(lease.lost.wait(), 1.5)
    finally:
        process.kill()
        await process.wait()
        log.close()


async def enable_auth(store: EtcdStore, password: str) -> None:
    from manager.store.etcd.stubs import pb

    call = store._connection.call
    await call("auth", "UserAdd", pb.AuthUserAddRequest(name="root", password=password))
    await call("auth", "UserGrantRole", pb.AuthUserGrantRoleRequest(user="root", role="root"))
    await call("auth", "AuthEnable", pb.AuthEnableRequest())
