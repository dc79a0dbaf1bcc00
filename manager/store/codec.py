"""Stored bytes to objects and back: MessagePack ``[schema, kind, body]``, the body a map of the struct's fields.

It decides how a value says what it is, so that a release reads the values of the one before; it knows no keys. A field
that is new has a default and a field that is gone is ignored, so SCHEMA rises only when a value's meaning changes; then
UPGRADES says how the former body becomes the present one, and the golden files of the former stay in tests/contract.
Tasks of one service version that are read share their spec in memory: nobody changes it, and there may be very many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from covey.errors import Internal
from covey.model.objects import KINDS, Stored, Task

SCHEMA = 1

UPGRADES: dict[int, Callable[[str, dict[str, Any]], dict[str, Any]]] = {}
"""Former schema → (kind, body) → the body one schema later."""


class Unreadable(Internal):
    """A value that this release cannot read."""


class _Envelope(msgspec.Struct, array_like=True, frozen=True):
    schema: int
    kind: str
    body: msgspec.Raw


SHARED = 4096
"""Specs of so many service versions are remembered; then all are forgotten at once, which costs some memory, no more."""

_specs: dict[tuple[str, int], Task] = {}
"""Service and spec version → a task that was read, whose spec and labels the next ones share if they are equal."""

_ENCODER = msgspec.msgpack.Encoder()
_ENVELOPES = msgspec.msgpack.Decoder(_Envelope)
_BODIES: dict[str, msgspec.msgpack.Decoder[Any]] = {kind: msgspec.msgpack.Decoder(struct) for kind, struct in KINDS.items()}


def encode(item: Stored) -> bytes:
    """The bytes to store. ``version`` is the key's mod_revision and not part of them."""
    bare = msgspec.structs.replace(item, version=0) if item.version else item
    return _ENCODER.encode(_Envelope(SCHEMA, item.kind, msgspec.Raw(_ENCODER.encode(bare))))


def decode(value: bytes, version: int) -> Stored:
    """The object in ``value``, its ``version`` the key's mod_revision. Raises Unreadable."""
    try:
        envelope = _ENVELOPES.decode(value)
    except msgspec.MsgspecError as error:
        raise Unreadable(
            f"stored value at revision {version} is not [schema, kind, body] ({error}): was it written by hand?"
        ) from None
    bodies = _BODIES.get(envelope.kind)
    if bodies is None or envelope.schema > SCHEMA:
        raise Unreadable(
            f"stored {envelope.kind} at revision {version} has schema {envelope.schema}, this release reads up to {SCHEMA} "
            "and does not know newer kinds: it was written by a newer one, upgrade this manager"
        )
    try:
        body = envelope.body if envelope.schema == SCHEMA else _upgraded(envelope)
        item: Stored = bodies.decode(body)
    except msgspec.MsgspecError as error:
        raise Unreadable(f"stored {envelope.kind} at revision {version} is not one ({error}): restore or remove it") from None
    msgspec.structs.force_setattr(item, "version", version)
    if isinstance(item, Task):
        _share(item)
    return item


def _share(task: Task) -> None:
    name = (task.service_id, task.spec_version)
    former = _specs.get(name)
    if former is not None and former.spec == task.spec and former.service_labels == task.service_labels:
        msgspec.structs.force_setattr(task, "spec", former.spec)
        msgspec.structs.force_setattr(task, "service_labels", former.service_labels)
        return
    if len(_specs) >= SHARED:
        _specs.clear()
    _specs[name] = task


def _upgraded(envelope: _Envelope) -> bytes:
    body = msgspec.msgpack.decode(envelope.body)
    for schema in range(envelope.schema, SCHEMA):
        if schema not in UPGRADES:
            raise Unreadable(
                f"stored {envelope.kind} has schema {envelope.schema}, too old for this release (schema {SCHEMA}): "
                "run the release between the two once"
            )
        body = UPGRADES[schema](envelope.kind, body)
    return _ENCODER.encode(body)
