"""Ours beside Docker's service routes: the history of a service's specs, and the verbs restart, stop and start.

A verb is an update of the spec like any other: restart counts ForceUpdate up, stop and start set and remove a label, so that
clients which know neither see what is the case. The replica count stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from covey.clock import rfc3339
from covey.engine_api.answers import Answer, Empty
from covey.engine_api.call import Call
from covey.errors import Conflict, InvalidArgument, Unavailable
from covey.model import versions
from covey.model.objects import PastSpec, Service
from covey.model.spec import STOPPED_LABEL, read_service_spec
from manager.routes import service_changes
from manager.routes.door import Door, find_service
from manager.routes.service_shapes import show_spec

Spec = dict[str, Any]

ATTEMPTS = 5


class ServiceVerbs:
    """Handlers by route name in ``handlers``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handlers(self) -> dict[str, Any]:
        return {
            "covey_service_history": self.history,
            "covey_service_restart": self.restart,
            "covey_service_stop": self.stop,
            "covey_service_start": self.start,
        }

    async def history(self, call: Call) -> Answer:
        service = find_service(await self._door.view(), call.params["id"])
        shown = [_show(one) for one in service_changes.past_specs(self._door, service.id)]
        return [*shown, {**_show(versions.current(service)), "Current": True}]

    async def restart(self, call: Call) -> Answer:
        return await self._change(call, "restarted", restarted)

    async def stop(self, call: Call) -> Answer:
        return await self._change(call, "stopped", stopped)

    async def start(self, call: Call) -> Answer:
        return await self._change(call, "started", started)

    async def _change(self, call: Call, word: str, change: Callable[[Spec], Spec]) -> Answer:
        """Apply ``change`` to the spec as it is; what would change nothing is not written."""
        door = self._door
        for _ in range(ATTEMPTS):
            service = find_service(await door.view(), call.params["id"])
            _check_mode(service, word)
            spec = change(service.spec)
            if spec == service.spec:
                return Empty(200)
            try:
                await service_changes.put(door, service, versions.updated(service, spec, door.clock.now()))
            except Conflict:
                continue
            return Empty(200)
        raise Unavailable(f"service {call.params['id']} keeps changing and could not be {word}: try again")


def restarted(spec: Spec) -> Spec:
    """``spec`` whose tasks are all to be replaced."""
    template = spec.get("TaskTemplate") or {}
    return {**spec, "TaskTemplate": {**template, "ForceUpdate": int(template.get("ForceUpdate") or 0) + 1}}


def stopped(spec: Spec) -> Spec:
    """``spec`` of which nothing is to run."""
    return {**spec, "Labels": {**(spec.get("Labels") or {}), STOPPED_LABEL: "true"}}


def started(spec: Spec) -> Spec:
    """``spec`` that is to run again."""
    labels = spec.get("Labels") or {}
    return {**spec, "Labels": {key: labels[key] for key in labels if key != STOPPED_LABEL}} if STOPPED_LABEL in labels else spec


def _check_mode(service: Service, word: str) -> None:
    mode = read_service_spec(service.spec).mode
    if mode not in ("replicated", "global"):
        raise InvalidArgument(
            f"service {service.name} is a {mode}, which cannot be {word}: update it with --force to run it again"
        )


def _show(past: PastSpec) -> dict[str, Any]:
    return {"Version": past.generation, "CreatedAt": rfc3339(past.created_at), "Spec": show_spec(past.spec), "Current": False}
