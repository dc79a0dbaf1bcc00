"""Containers of the whole cluster, and whole nodes: calls are forwarded to the node over a connection it dials back.

It decides which node a reference belongs to; what the node answers passes through as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any, NamedTuple

from covey.engine_api.aio import Client
from covey.engine_api.answers import Answer, created
from covey.engine_api.call import Call
from covey.engine_api.http1 import Headers
from covey.engine_api.proxy import Connect, forward, node_path
from covey.engine_api.routes import ROUTES, path_of
from covey.errors import InvalidArgument, NotFound
from covey.ids import task_name
from covey.model.objects import Task
from covey.model.task_states import TaskState, is_terminal
from manager.routes.door import Door, find_node
from manager.routes.tasks import task_label
from scheduler.snapshot import Snapshot

#: A call that a manager has forwarded once comes back when its node does not know the container either.
FORWARDED = "Covey-Forwarded"

#: So many execs are remembered with their nodes; an exec is started right after it was made.
EXECS = 4096


class Located(NamedTuple):
    """Where a container is."""

    node_id: str
    container_id: str


def locate(snapshot: Snapshot, reference: str) -> Located:
    """Where the container is that users mean: by its id or the beginning of it, its name, its task's id, or ``web.3``.

    Raises NotFound in Docker's words, InvalidArgument when several fit equally.
    """
    by_id = [status for status in snapshot.statuses.values() if reference and status.container_id.startswith(reference)]
    if len(by_id) > 1:
        raise InvalidArgument(f"multiple IDs found with provided prefix: {reference}")
    if by_id:
        return Located(by_id[0].node_id, by_id[0].container_id)
    name = reference.removeprefix("/")
    named = [task for task in snapshot.tasks.values() if name in _names(task) and _container(snapshot, task)]
    if not named:
        raise NotFound(f"No such container: {reference}")
    newest = max(named, key=lambda task: (not is_terminal(snapshot.state(task)), task.attempt))
    return Located(newest.node_id, _container(snapshot, newest))


def _names(task: Task) -> tuple[str, ...]:
    return (task.id, task_name(task.service_name, task.place, task.id), task_label(task))


def _container(snapshot: Snapshot, task: Task) -> str:
    status = snapshot.statuses.get(task.id)
    return status.container_id if status is not None and status.state > TaskState.ASSIGNED else ""


class Containers:
    """Handlers by route name in ``handlers``: every merged container and exec call, and ``/_node``."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._execs: OrderedDict[str, str] = OrderedDict()

    def handlers(self) -> dict[str, Any]:
        forwarded = {
            route.name: self.container
            for route in ROUTES
            if route.path.startswith("/containers/{id}") and route.name != "exec_create"
        }
        execs = {route.name: self.exec for route in ROUTES if route.path.startswith("/exec/{id}")}
        return {**forwarded, **execs, "exec_create": self.exec_create, "node_forward": self.node}

    async def container(self, call: Call) -> Answer:
        node_id, container_id = await self._locate(call)
        return await forward(_marked(call), self._connect(node_id, call), _path(call, container_id))

    async def exec_create(self, call: Call) -> Answer:
        """As ``container``, but the answer is read: later calls name the exec only."""
        node_id, container_id = await self._locate(call)
        body = await call.json()
        client = Client(self._connect(node_id, call), version=call.version, name=f"node {node_id}")
        answer = await client.call("exec_create", {"id": container_id}, dict(call.query), json=body)
        self._execs[str(answer["Id"])] = node_id
        while len(self._execs) > EXECS:
            self._execs.popitem(last=False)
        return created(answer)

    async def exec(self, call: Call) -> Answer:
        node_id = self._execs.get(call.params["id"])
        if node_id is None or FORWARDED in call.headers:
            raise NotFound(f"No such exec instance: {call.params['id']}")
        return await forward(_marked(call), self._connect(node_id, call), _path(call, call.params["id"]))

    async def node(self, call: Call) -> Answer:
        """``/_node/<name>/…``: the whole Engine API of a node."""
        snapshot = await self._door.view()
        name = call.params["name"]
        view = find_node(snapshot, self._door.node_id if name == "self" else name)
        return await forward(call, self._connect(view.id, call), node_path(call))

    async def _locate(self, call: Call) -> Located:
        reference = call.params["id"]
        if FORWARDED in call.headers:
            raise NotFound(f"No such container: {reference}")
        return locate(await self._door.view(), reference)

    def _connect(self, node_id: str, call: Call) -> Connect:
        return lambda: self._door.dials.connect(node_id, f"{call.method} {call.path.partition('?')[0]}")


def _marked(call: Call) -> Call:
    return replace(call, headers=Headers([*call.headers.items(), (FORWARDED, "1")]))


def _path(call: Call, object_id: str) -> str:
    """The call's path with the whole id, as the node may not know what the user called it."""
    _, mark, query = call.path.partition("?")
    return f"/v{call.version}{path_of(call.route.name, {'id': object_id})}{mark}{query}"
