"""``/services/{id}/logs`` and ``/tasks/{id}/logs``: which containers' logs are meant. Reading and merging is manager.logs'."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from covey.engine_api.aio import Client
from covey.engine_api.answers import Answer, Stream
from covey.engine_api.call import Call
from covey.engine_api.framing import content_type
from covey.errors import InvalidArgument
from covey.model.objects import Task
from manager.logs import LogQuery, Source, followed, merged
from manager.routes.door import Door, find_service
from manager.routes.tasks import find_task
from scheduler.snapshot import Snapshot


class Logs:
    """Handlers by route name in ``handlers``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handlers(self) -> dict[str, Any]:
        return {"service_logs": self.service, "task_logs": self.task}

    async def service(self, call: Call) -> Answer:
        query = _read_query(call)
        snapshot = await self._door.view()
        service = find_service(snapshot, call.params["id"])
        raw = _tty(service.spec.get("TaskTemplate") or {})
        return self._answer(call, query, snapshot, service.id, "", raw)

    async def task(self, call: Call) -> Answer:
        query = _read_query(call)
        snapshot = await self._door.view()
        task = find_task(snapshot, call.params["id"])
        return self._answer(call, query, snapshot, task.service_id, task.id, _tty(task.spec))

    def _answer(self, call: Call, query: LogQuery, snapshot: Snapshot, service_id: str, task_id: str, raw: bool) -> Answer:
        if query.follow:
            chunks = followed(self._appearing(service_id, task_id), self._reach, query, raw)
        else:
            chunks = merged(list(_sources(snapshot, service_id, task_id)), self._reach, query, raw)
        return Stream(chunks, content_type(call.version, raw))

    def _reach(self, node_id: str) -> Client:
        return Client(lambda: self._door.dials.connect(node_id, "logs"), name=f"node {node_id}")

    async def _appearing(self, service_id: str, task_id: str) -> AsyncIterator[Source]:
        """The containers there are, and those that come; of one task, its only one."""
        seen: set[str] = set()
        with self._door.mirror.changes(["task_status"]) as changed:
            while True:
                for source in list(_sources(self._door.mirror.snapshot(), service_id, task_id)):
                    if source.container_id not in seen:
                        seen.add(source.container_id)
                        yield source
                if task_id and seen:
                    return
                await changed.wait()


def _read_query(call: Call) -> LogQuery:
    query = LogQuery(
        stdout=call.boolean("stdout"),
        stderr=call.boolean("stderr"),
        follow=call.boolean("follow"),
        timestamps=call.boolean("timestamps"),
        details=call.boolean("details"),
        tail=call.text("tail", "all"),
        since=call.text("since"),
        until=call.text("until"),
    )
    if not (query.stdout or query.stderr):
        raise InvalidArgument("Bad parameters: you must choose at least one stream (stdout, stderr)")
    return query


def _tty(template: dict[str, Any]) -> bool:
    return bool((template.get("ContainerSpec") or {}).get("TTY"))


def _sources(snapshot: Snapshot, service_id: str, task_id: str) -> Iterable[Source]:
    """The containers of a service's tasks, or of one task."""
    tasks: Iterable[Task] = snapshot.tasks_of(service_id)
    for task in tasks:
        status = snapshot.statuses.get(task.id)
        if status is None or not status.container_id or task_id not in ("", task.id):
            continue
        details = {
            "com.docker.swarm.node.id": status.node_id,
            "com.docker.swarm.service.id": task.service_id,
            "com.docker.swarm.task.id": task.id,
        }
        yield Source(status.node_id, status.container_id, task.id, details, _tty(task.spec))
