"""Tasks: list, inspect, and the story of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from covey.clock import rfc3339
from covey.engine_api.answers import Answer
from covey.engine_api.call import Call
from covey.errors import InvalidArgument, NotFound
from covey.model.objects import Task
from covey.model.task_states import TaskState, parse
from manager.routes.door import Door, find, find_node, find_service, matches_id, matches_labels, matches_name
from manager.routes.service_shapes import show_task
from scheduler.reconcile.slots import up_to_date
from scheduler.snapshot import Snapshot
from scheduler.story import story

FILTERS = ("desired-state", "id", "label", "name", "node", "service", "_up-to-date", "runtime")


class Tasks:
    """Handlers by route name in ``handlers``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handlers(self) -> dict[str, Any]:
        return {"task_list": self.list_all, "task_inspect": self.inspect, "covey_task_story": self.story}

    async def list_all(self, call: Call) -> Answer:
        filters = call.filters(FILTERS)
        snapshot = await self._door.view()
        wanted = _filter(snapshot, filters, self._door.node_id)
        tasks = self._candidates(snapshot, filters)
        shown = sorted((task for task in tasks if wanted(task)), key=lambda task: (task.created_at, task.id))
        return [show_task(snapshot, task) for task in shown]

    async def inspect(self, call: Call) -> Answer:
        snapshot = await self._door.view()
        return show_task(snapshot, find_task(snapshot, call.params["id"]))

    async def story(self, call: Call) -> Answer:
        snapshot = await self._door.view()
        task = find_task(snapshot, call.params["id"])
        slot = [other for other in snapshot.tasks_of(task.service_id) if other.slot_key == task.slot_key]
        view = snapshot.nodes.get(task.node_id)
        history = sorted((other for other in slot if other.id != task.id), key=lambda other: other.attempt)
        lines = story(task, snapshot.statuses.get(task.id), history, snapshot.statuses, view.hostname if view else "")
        told = [{"At": rfc3339(line.at) if line.at else "", "Who": line.who, "What": line.what} for line in lines]
        return {"ID": task.id, "Name": task_label(task), "State": snapshot.state(task).label, "Story": told}

    @staticmethod
    def _candidates(snapshot: Snapshot, filters: dict[str, list[str]]) -> list[Task]:
        """The tasks to look at: of the services that are asked for, when they are."""
        references = filters.get("service", [])
        if not references:
            return list(snapshot.tasks.values())
        services = {service_id for reference in references if (service_id := _service_id(snapshot, reference))}
        return [task for service_id in services for task in snapshot.tasks_of(service_id)]


def find_task(snapshot: Snapshot, reference: str) -> Task:
    """The task users mean by id or the beginning of an id."""
    return cast("Task", find(snapshot.tasks, "task", reference))


def task_label(task: Task) -> str:
    """How users call a task: ``web.3``, for global services ``web.<node id>``."""
    return f"{task.service_name or task.service_id}.{task.place}"


def _service_id(snapshot: Snapshot, reference: str) -> str:
    """The id of a service, which may be gone while its tasks are not; "" when nothing is called so."""
    if reference in snapshot.by_service:
        return reference
    try:
        return find_service(snapshot, reference).id
    except NotFound:
        return ""


def _node_id(snapshot: Snapshot, reference: str, own: str) -> str:
    try:
        return own if reference == "self" else find_node(snapshot, reference).id
    except NotFound:
        return reference


def _desired(labels: list[str]) -> set[TaskState]:
    states: set[TaskState] = set()
    for label in labels:
        try:
            states.add(parse(label))
        except KeyError:
            raise InvalidArgument(
                f"invalid task state filter: desired-state={label}: use running, shutdown or accepted"
            ) from None
    return states


def _filter(snapshot: Snapshot, filters: dict[str, list[str]], own: str) -> Callable[[Task], bool]:
    """The test that ``filters`` make, with references looked up once."""
    desired = _desired(filters.get("desired-state", []))
    nodes = {_node_id(snapshot, reference, own) for reference in filters.get("node", [])}
    fresh_only = any(word.lower() in ("true", "1") for word in filters.get("_up-to-date", []))

    def wanted(task: Task) -> bool:
        if fresh_only and not up_to_date(snapshot, task):
            return False
        return (
            (not desired or task.desired in desired)
            and (not nodes or task.node_id in nodes)
            and matches_id(task.id, filters.get("id", []))
            and matches_name(task_label(task), filters.get("name", []))
            and matches_labels(task.service_labels, filters.get("label", []))
        )

    return wanted
