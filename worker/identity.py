"""What a node remembers of the cluster it is part of: a small file beside its certificate. And how it gets one: joining.

It decides which of the addresses given is tried and what counts as ours; the CA decides who is let in.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from covey import tls
from covey.errors import CoveyError, InvalidArgument, Unavailable, from_status
from covey.wire.frames import FrameReader, ProtocolError, encode
from covey.wire.messages import VERSION, AnyMessage, Hello, JoinReply, JoinRequest, Refused, Welcome

CLUSTER_PORT = 2377
JOIN_TIMEOUT = 20.0
_LARGEST_REPLY = 1024 * 1024


class Membership(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The node's place in a cluster. ``address`` is where others reach it; ``managers`` are host:port."""

    version: int = 1
    node_id: str
    role: str
    cluster_id: str
    managers: tuple[str, ...]
    address: str = ""
    listen: str = ""


def load(path: Path) -> Membership | None:
    """The membership kept at ``path``; None when the node is in no cluster."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Membership)
    except FileNotFoundError:
        return None


def save(path: Path, membership: Membership) -> None:
    """Keep ``membership`` at ``path``, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with open(fresh, "wb") as file:
        file.write(msgspec.json.encode(membership))
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)


def with_port(address: str) -> str:
    """``address`` as host:port, the cluster port where none is given. Raises InvalidArgument when it is no address."""
    address = address.strip()
    if not address:
        raise InvalidArgument("an address of a manager is missing: give host:port")
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]") or (":" in host and not host.startswith("[")):
        return f"[{address}]:{CLUSTER_PORT}" if ":" in address and not address.startswith("[") else f"{address}:{CLUSTER_PORT}"
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"invalid address {address!r}: the port is a number from 1 to 65535")
    return address


async def join(addresses: Sequence[str], token_text: str, hostname: str, availability: str) -> tuple[tls.Identity, JoinReply]:
    """A certificate from the first manager that answers. Raises what the last one refused with."""
    token = tls.parse_token(token_text)
    if not addresses:
        raise InvalidArgument("at least one address of a manager is needed: cluster join --token … HOST:PORT")
    key_pem, request_pem = tls.make_key_and_request()
    request = JoinRequest(token=token_text, request_pem=request_pem, hostname=hostname, availability=availability)
    faults: list[str] = []
    for address in map(with_port, addresses):
        try:
            async with asyncio.timeout(JOIN_TIMEOUT):
                reply = await _ask(address, token, request)
        except (OSError, EOFError, TimeoutError, ProtocolError) as fault:
            faults.append(f"{address}: {fault or type(fault).__name__}")
            continue
        return tls.Identity(key_pem, reply.certificate_pem, reply.ca_pem), reply
    raise Unavailable(f"no manager answered ({'; '.join(faults)}); check the address and that port {CLUSTER_PORT} is open")


async def _ask(address: str, token: tls.Token, request: JoinRequest) -> JoinReply:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=tls.pinning_context())
    frames = FrameReader(_LARGEST_REPLY)
    try:
        writer.write(encode(Hello(version=VERSION, purpose="join")))
        welcome = await _next(reader, frames)
        if not isinstance(welcome, Welcome):
            raise ProtocolError(f"the manager sent {type(welcome).__name__} where Welcome was due")
        tls.check_pin(welcome.ca_pem, token, writer.get_extra_info("ssl_object").getpeercert(True))
        writer.write(encode(request))
        reply = await _next(reader, frames)
        if not isinstance(reply, JoinReply):
            raise ProtocolError(f"the manager sent {type(reply).__name__} where JoinReply was due")
        return reply
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _next(reader: asyncio.StreamReader, frames: FrameReader) -> AnyMessage:
    while True:
        data = await reader.read(64 * 1024)
        if not data:
            raise ConnectionError("the manager closed the connection")
        for message in frames.feed(data):
            if isinstance(message, Refused):
                raise _refusal(message)
            return message


def _refusal(refused: Refused) -> CoveyError:
    return from_status(refused.status, refused.message)
