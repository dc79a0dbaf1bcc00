"""The login a service comes with: X-Registry-Auth of create and update, written in the service's own transaction.

It decides how the header is read and that a login is for its own registry only; what becomes of it is manager.logins'.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from covey import credentials
from covey.engine_api.call import Call
from covey.errors import InvalidArgument
from covey.model.login import RegistryLogin
from covey.model.objects import ServiceLogin
from manager import logins
from manager.routes.door import Door
from manager.store.codec import encode
from manager.store.interface import Delete, Operation, Put

HEADER = "X-Registry-Auth"


def given(call: Call, spec: Mapping[str, Any], now: float) -> RegistryLogin | None:
    """The login that came along, to the registry of the spec's image. InvalidArgument for one to another registry."""
    found = credentials.from_header(call.headers.get(HEADER, ""))
    image = logins.image_of(spec.get("TaskTemplate") or {})
    if not found or not image:
        return None
    host = credentials.host_of(credentials.domain_of(image))
    if found.server and credentials.host_of(found.server) != host:
        raise InvalidArgument(
            f"the login in {HEADER} is for {credentials.host_of(found.server)} and the image {image} is of {host}: "
            f"log in to {host}"
        )
    return logins.login(found, host, now)


def created(door: Door, service_id: str, found: RegistryLogin | None) -> list[Operation]:
    """What is written beside a new service."""
    if found is None:
        return []
    return [Put(door.keys.key("service_login", service_id), encode(ServiceLogin(id=service_id, current=found)))]


def updated(door: Door, service_id: str, call: Call, spec: Mapping[str, Any], now: float) -> list[Operation]:
    """What is written beside a changed service."""
    held = cast("ServiceLogin | None", door.mirror.objects("service_login").get(service_id))
    said = bool(call.headers.get(HEADER, "").strip())
    new = logins.after_update(held, service_id, given(call, spec, now), said, call.text("registryAuthFrom"))
    key = door.keys.key("service_login", service_id)
    if new == held:
        return []
    return [Put(key, encode(new)) if new is not None else Delete(key)]
