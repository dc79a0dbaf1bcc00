"""Keeping a lease alive from a thread of its own, on a connection of its own.

So a pass that holds the event loop, or a busy store connection, never costs the leader its lease. A loop that has not
turned for ``LOOP_DEAD`` seconds is not busy but broken, and its lease is let go. It decides when a lease counts as lost.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from manager.store.etcd.connection import Access, Connection, Target, channel_options, credentials
from manager.store.etcd.stubs import Code, grpc, pb, services
from manager.store.interface import Lease

RENEWALS_PER_TTL = 3
LOOP_DEAD = 30.0
RETRY = 0.1


class Keeper:
    """Renews one lease until stopped or lost; then sets ``lease.lost``."""

    def __init__(self, connection: Connection, lease: Lease) -> None:
        at = connection.endpoints.index(connection.current)
        self._targets = connection.targets[at:] + connection.targets[:at]
        self._access = connection.access
        self.lease = lease
        self._loop = asyncio.get_running_loop()
        self._loop_seen = time.monotonic()
        self._stopped = threading.Event()
        self._pending: Any = None
        self._thread = threading.Thread(target=self._run, name=f"etcd lease {lease.id:x}", daemon=True)
        self.renewals = 0
        self.failures = 0

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; does not touch the lease."""
        self._stopped.set()
        if self._pending is not None:
            self._pending.cancel()
        await asyncio.to_thread(self._thread.join)

    def statistics(self) -> dict[str, Any]:
        return {"renewals": self.renewals, "failures": self.failures, "lost": self.lease.lost.is_set()}

    def _run(self) -> None:
        turn = 0
        channel = _channel(self._targets[turn], self._access)
        sure_until = time.monotonic() + self.lease.ttl
        wait = 0.0
        while not self._stopped.wait(wait):
            sent = time.monotonic()
            if sent >= sure_until or sent - self._loop_seen > LOOP_DEAD:
                break
            left = self._renew(channel, max(0.05, min(self.lease.ttl / RENEWALS_PER_TTL, sure_until - sent)))
            if left is None:
                self.failures += 1
                channel.close()
                turn = (turn + 1) % len(self._targets)
                channel = _channel(self._targets[turn], self._access)
                wait = min(RETRY, self.lease.ttl / 10)
                continue
            if left <= 0:
                break
            self.renewals += 1
            sure_until = sent + left
            self._tell(self._mark)
            wait = left / RENEWALS_PER_TTL
        channel.close()
        if not self._stopped.is_set():
            self._tell(self.lease.lost.set)

    def _renew(self, channel: Any, timeout: float) -> float | None:
        """Seconds the lease now has, 0 when it is gone, None when nobody answered."""
        request = pb.LeaseKeepAliveRequest(ID=self.lease.id)
        stub = services.LeaseStub(channel)
        try:
            self._pending = stub.LeaseKeepAlive(iter((request,)), timeout=timeout)
            return float(next(self._pending).TTL)
        except grpc.RpcError as error:
            return 0.0 if error.code() is Code.NOT_FOUND else None
        except StopIteration:
            return None
        finally:
            if self._pending is not None:
                self._pending.cancel()

    def _mark(self) -> None:
        self._loop_seen = time.monotonic()

    def _tell(self, what: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:
            self._stopped.set()


def _channel(target: Target, access: Access) -> Any:
    options, tls = channel_options(target), credentials(target, access)
    if tls is None:
        return grpc.insecure_channel(target.address, options=options)
    return grpc.secure_channel(target.address, tls, options=options)
