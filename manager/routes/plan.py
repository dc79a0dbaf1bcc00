"""``POST /covey/plan``: what services would become if they were created, updated or removed as proposed. It writes nothing.

A proposal is refused as the change itself would be. The world is copied first, for it must not stand still while a plan for
people is made; what is made of it is decided in scheduler/preview.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from covey import names
from covey.engine_api.answers import Answer
from covey.engine_api.call import Call
from covey.engine_api.types.plan import AssumedFields, PlanRequest, Proposed
from covey.errors import Conflict, CoveyError, InvalidArgument
from covey.model.objects import Network, Service
from manager.routes.door import Door, find_service
from manager.routes.explain import show_explanation
from manager.routes.references import check_references
from manager.routes.services import Services
from scheduler.preview import course
from scheduler.preview.difference import Edit
from scheduler.preview.frozen import frozen
from scheduler.preview.preview import Outcome, Preview, Step, parts
from scheduler.snapshot import Snapshot

#: So long at a time, in seconds, before others have their turn.
SLICE = 0.01


class Plans:
    """Handlers by route name in ``handlers``; ``services`` say what a change would store."""

    def __init__(self, door: Door, services: Services) -> None:
        self._door = door
        self._services = services

    def handlers(self) -> dict[str, Any]:
        return {"covey_plan": self.plan}

    async def plan(self, call: Call) -> Answer:
        asked = await call.json(PlanRequest)
        if not asked.Services and not asked.Remove:
            raise InvalidArgument("nothing is proposed: name services in Services (with their Spec) or in Remove")
        snapshot = await self._door.view()
        networks = _networks(asked.Assume)
        proposal = self._proposal(snapshot, asked, networks)
        held = frozen(snapshot)
        looking = parts(held, proposal, self._door.clock.now(), self._door.settings, networks)
        began = self._door.clock.monotonic()
        while True:
            try:
                next(looking)
            except StopIteration as done:
                return show_preview(held, done.value)
            if self._door.clock.monotonic() - began > SLICE:
                await asyncio.sleep(0)
                began = self._door.clock.monotonic()

    def _proposal(self, snapshot: Snapshot, asked: PlanRequest, networks: list[Network]) -> dict[str, Service | None]:
        """The services as they would be stored, one after the other: removals first, as they make room and free ports."""
        proposal: dict[str, Service | None] = {}
        world = course.proposed(snapshot, {}, networks)

        def propose(service_id: str, service: Service | None, name: str) -> None:
            nonlocal world
            if service_id in proposal:
                raise InvalidArgument(f"service {name} is proposed twice: name it once, in Services or in Remove")
            proposal[service_id] = service
            world = course.proposed(world, {service_id: service})

        for reference in asked.Remove:
            service = find_service(snapshot, reference)
            propose(service.id, None, service.name)
        for each in asked.Services:
            held, raw = _meant(snapshot, each)
            name = str(raw.get("Name") or (held.name if held else ""))
            try:
                new = self._services.proposed(world, held, raw)
                known = _without_assumed(new.spec, asked.Assume)
                check_references(world, self._door.mirror, known)
            except CoveyError as error:
                raise type(error)(f"service {name}: {error.message}" if name else error.message) from None
            new = msgspec.structs.replace(new, version=snapshot.revision + 1)
            propose(new.id, new, name)
        return {**{key: one for key, one in proposal.items() if one}, **{key: one for key, one in proposal.items() if not one}}


def _meant(snapshot: Snapshot, proposed: Proposed) -> tuple[Service | None, dict[str, Any]]:
    """The service that is there, None for a new one, and the spec with its name."""
    if proposed.ID:
        known = find_service(snapshot, proposed.ID)
        return known, {**proposed.Spec, "Name": proposed.Spec.get("Name") or known.name}
    held = {service.name: service for service in snapshot.services.values()}
    name = proposed.Name or proposed.Spec.get("Name")
    if not name and proposed.Create:
        name = names.fresh(lambda fresh: fresh not in held)
    if not name:
        raise InvalidArgument("Services: a proposed service has no name: give ID, Name or Spec.Name")
    found = held.get(name)
    if found is not None and proposed.Create:
        raise Conflict(f"name conflicts with an existing object: service {name} already exists ({found.id})")
    return found, {**proposed.Spec, "Name": proposed.Spec.get("Name") or name}


def _networks(assumed: AssumedFields | None) -> list[Network]:
    """Networks that would be made before, under ids that say so."""
    found = []
    for body in assumed.Networks if assumed else ():
        if not isinstance(body.get("Name"), str) or not body["Name"]:
            raise InvalidArgument("Assume.Networks: a network has no Name: give the body of its creation")
        found.append(Network(id=f"planned-{body['Name']}", spec=dict(body)))
    return found


def _without_assumed(spec: Mapping[str, Any], assumed: AssumedFields | None) -> Mapping[str, Any]:
    """``spec`` without the secrets and configs that would be made before: they need not be there yet."""
    template = spec.get("TaskTemplate") or {}
    container = dict(template.get("ContainerSpec") or {})
    for field, key, ids in (
        ("Secrets", "SecretID", assumed.Secrets if assumed else ()),
        ("Configs", "ConfigID", assumed.Configs if assumed else ()),
    ):
        if container.get(field):
            container[field] = [entry for entry in container[field] if entry.get(key) not in ids]
    return {**spec, "TaskTemplate": {**template, "ContainerSpec": container}}


def show_preview(snapshot: Snapshot, preview: Preview) -> dict[str, Any]:
    """The answer; ``snapshot`` knows the nodes' names."""

    def hostname(node_id: str) -> str:
        view = snapshot.nodes.get(node_id)
        return view.hostname if view is not None else node_id

    return {
        "Revision": preview.revision,
        "Changes": bool(preview),
        "Complete": preview.complete,
        "Services": [_show_outcome(snapshot, outcome, hostname) for outcome in preview.outcomes],
        "Displaced": [
            {
                "TaskID": task.task_id,
                "Name": f"{task.service_name}.{hostname(task.place)}",
                "Node": hostname(task.node_id),
                "Cause": task.cause,
            }
            for task in preview.displaced
        ],
    }


def _show_outcome(snapshot: Snapshot, outcome: Outcome, hostname: Callable[[str], str]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "ID": outcome.service_id if outcome.service_id in snapshot.services else "",
        "Name": outcome.name,
        "Action": outcome.action,
        "Diff": [_show_edit(edit) for edit in outcome.edits],
        "Tasks": {
            "Create": outcome.count("create"),
            "Replace": outcome.count("replace"),
            "InPlace": outcome.count("keep"),
            "Destroy": outcome.count("destroy"),
            "Waiting": outcome.waiting,
        },
        "Order": outcome.order,
        "Parallelism": outcome.parallelism,
        "Batches": max((step.batch for step in outcome.steps), default=0),
        "Steps": [_show_step(outcome, step, hostname) for step in outcome.steps],
    }
    if outcome.explained is not None:
        shown["Explained"] = show_explanation(snapshot, outcome.explained, outcome.advice)
    return shown


def _show_edit(edit: Edit) -> dict[str, Any]:
    shown: dict[str, Any] = {"Path": edit.path, "Kind": edit.kind}
    if edit.kind != "added":
        shown["Old"] = edit.old
    if edit.kind != "removed":
        shown["New"] = edit.new
    return shown


def _show_step(outcome: Outcome, step: Step, hostname: Callable[[str], str]) -> dict[str, Any]:
    named = {
        "TaskID": step.task_id,
        "From": hostname(step.from_node),
        "To": hostname(step.to_node),
        "Batch": step.batch,
        "After": round(step.after, 3),
        "Message": step.message,
        "Cause": step.cause,
    }
    place = str(step.slot - outcome.job) if step.slot else hostname(step.node_id)
    return {"Action": step.action, "Name": f"{outcome.name}.{place}", **{key: value for key, value in named.items() if value}}
