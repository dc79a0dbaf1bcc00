"""Where the registry listens: plain HTTP on a loopback address, which Docker and its kin trust without being told.

It decides who may connect, and puts the registry's parts together; who else should pull from it is another registry's user.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from covey.clock import Clock
from covey.errors import Conflict, InvalidArgument
from worker.blobs.traffic import Traffic
from worker.blobs.upload import Uploads
from worker.containers.events import EventBus
from worker.images.image import Image
from worker.images.reference import Reference
from worker.images.store import ImageStore
from worker.registry.pending import Pending
from worker.registry.server import Registry


def address(given: str) -> tuple[str, int]:
    """(host, port) of ``[HOST:]PORT``, 127.0.0.1 unless given. Raises InvalidArgument for any but loopback."""
    host, _, port = given.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"--registry {given!r}: give a port, or host:port")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise InvalidArgument(f"--registry {given}: whoever reaches it can replace images, so only on a loopback address")
    return host, int(port)


@asynccontextmanager
async def serving(given: str, images: ImageStore, events: EventBus, clock: Clock) -> AsyncIterator[None]:
    """The registry answers at ``given``. Raises InvalidArgument, Conflict."""
    host, port = address(given)

    def stored(name: Reference, image: Image) -> None:
        events.publish("image", "pull", image.id, {"name": name.familiar})

    with Pending(images.root.parent / "registry", images.content, clock) as pending:
        registry = Registry(images, Uploads(images.content, Traffic(), clock), pending, stored)
        try:
            sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            raise Conflict(f"cannot listen on {given}: {error.strerror}: choose another --registry") from None
        runner = web.ServerRunner(web.Server(registry.serve, access_log=None), shutdown_timeout=0.5)
        await runner.setup()
        try:
            await web.SockSite(runner, sock).start()
            yield
        finally:
            await runner.cleanup()
            sock.close()
