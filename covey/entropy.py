"""Random ids and secrets. Only doors (API routes, the CA, the engine) import it: a decision is never random."""

from __future__ import annotations

import secrets

from covey.ids import base36


def object_id() -> str:
    """A fresh 25-character id of a service, node, network, secret or cluster, as SwarmKit shapes them."""
    return base36(int.from_bytes(secrets.token_bytes(16)), 25)


def container_id() -> str:
    """A fresh id of a container, exec or image-less object: 64 hexadecimal digits.

    Never all digits in its first 12, so that a short id is not taken for a number.
    """
    while True:
        fresh = secrets.token_hex(32)
        if not fresh[:12].isdigit():
            return fresh


def token_secret() -> str:
    """The secret half of a join token: 25 base36 digits (128 bits)."""
    return base36(int.from_bytes(secrets.token_bytes(16)), 25)
