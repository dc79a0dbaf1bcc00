"""The cluster's logins to registries: give, list, forget. No answer holds a secret.

They are told to nodes at the moment of a pull (manager.logins); whether a registry takes one, whoever gives it has asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from covey import credentials
from covey.clock import rfc3339
from covey.engine_api.answers import Answer, Empty
from covey.engine_api.call import Call
from covey.errors import InvalidArgument, NotFound
from covey.model.objects import ClusterLogin, ServiceLogin
from manager.logins import login
from manager.routes.door import Door
from manager.store.codec import encode
from manager.store.interface import Delete, Put


class Logins:
    """Handlers by route name in ``handlers``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handlers(self) -> dict[str, Any]:
        return {
            "covey_login_list": self.list_all,
            "covey_login_create": self.create,
            "covey_login_delete": self.delete,
        }

    async def list_all(self, call: Call) -> Answer:
        snapshot = await self._door.view()
        held = self._held()
        shown = [_show(held[host].login, "") for host in sorted(held)]
        services = cast("Mapping[str, ServiceLogin]", self._door.mirror.objects("service_login"))
        named = {one.id: one.name for one in snapshot.services.values()}
        own = [(named.get(one.id, one.id), one.current) for one in services.values() if one.current is not None]
        return shown + [_show(current, name) for name, current in sorted(own, key=lambda pair: pair[0])]

    async def create(self, call: Call) -> Answer:
        """An AuthConfig, as ``POST /auth`` takes it."""
        found = credentials.from_api(await call.json())
        host = _host(found.server)
        if not found:
            raise InvalidArgument(f"the login to {host} has neither a user name nor a token")
        item = ClusterLogin(id=host, login=login(found, host, self._door.clock.now()))
        await self._door.commit([], [Put(self._door.keys.key("login", host), encode(item))])
        return Empty(204)

    async def delete(self, call: Call) -> Answer:
        host = _host(call.params["id"])
        await self._door.view()
        if host not in self._held():
            raise NotFound(f"the cluster has no login to {host}: see `cluster registry ls`")
        await self._door.commit([], [Delete(self._door.keys.key("login", host))])
        return Empty(204)

    def _held(self) -> Mapping[str, ClusterLogin]:
        return cast("Mapping[str, ClusterLogin]", self._door.mirror.objects("login"))


def _host(server: str) -> str:
    host = credentials.host_of(server)
    if not host or "@" in host or any(letter.isspace() for letter in host):
        raise InvalidArgument("serveraddress names no registry: give host[:port]")
    return host


def _show(one: Any, service: str) -> dict[str, Any]:
    kind = "password" if one.password else "identity token" if one.identity_token else "registry token"
    return {"Host": one.host, "Username": one.username, "Kind": kind, "Service": service, "GivenAt": rfc3339(one.given_at)}
