"""What a lab's cluster knows, as text: printed when something that should have come did not. Reads only; never raises."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from covey.errors import CoveyError
from covey.testing.lab_node import PROCESSES, LabNode

_LINES = 12
_EVENTS = 30


def report(nodes: Iterable[LabNode]) -> str:
    """Nodes, services, tasks, the last events and the ends of the logs."""
    return "\n".join(_lines(list(nodes)))


def _lines(nodes: list[LabNode]) -> Iterator[str]:
    for node in nodes:
        runs = [name for name in PROCESSES if node.runs(name)]
        yield f"machine {node.name} {node.address}: {'runs ' + ', '.join(runs) if node.alive else 'dead'}"
    manager = next((node for node in nodes if node.role == "manager" and node.alive), None)
    if manager is not None:
        for title, path, show in (
            ("nodes", "/nodes", _node),
            ("services", "/services", _service),
            ("tasks", "/tasks", _task),
        ):
            yield f"-- {title}"
            yield from _asked(manager, path, show)
        yield "-- events"
        yield from _events(manager)
    for node in nodes:
        for process in PROCESSES:
            if text := node.log(process, 4000):
                yield f"-- {node.name} {process}"
                yield from text.splitlines()[-_LINES:]


def _asked(manager: LabNode, path: str, show: Any) -> Iterator[str]:
    try:
        with manager.connect() as client:
            for found in client.get(path):
                yield "  " + show(found)
    except (CoveyError, OSError, KeyError, TypeError) as error:
        yield f"  {type(error).__name__}: {error}"


def _events(manager: LabNode) -> Iterator[str]:
    now = time.time()
    try:
        with manager.connect() as client:
            found = list(client.lines("GET", "/events", {"since": f"{now - 120:.3f}", "until": f"{now:.3f}"}))
        for event in found[-_EVENTS:]:
            actor = event.get("Actor", {})
            name = actor.get("Attributes", {}).get("name") or str(actor.get("ID", ""))[:12]
            yield f"  {event.get('Type')} {event.get('Action')} {name}"
    except (CoveyError, OSError, AttributeError) as error:
        yield f"  {type(error).__name__}: {error}"


def _node(node: dict[str, Any]) -> str:
    status = node["Status"]
    name = node.get("Description", {}).get("Hostname", node["ID"])
    return f"{name} {node['Spec'].get('Role')} {node['Spec'].get('Availability')} {status['State']} {status.get('Message', '')}"


def _service(service: dict[str, Any]) -> str:
    return f"{service['ID'][:12]} {service['Spec']['Name']} {service['Spec'].get('Mode')}"


def _task(task: dict[str, Any]) -> str:
    status = task["Status"]
    place = task.get("Slot") or task.get("NodeID", "")[:12]
    words = [task["ID"][:12], f"{task['ServiceID'][:12]}.{place}", f"on {task.get('NodeID', '')[:12] or 'no node'}"]
    words += [f"{task['DesiredState']} <- {status['State']}", status.get("Message", ""), status.get("Err", "")]
    return " ".join(word for word in words if word)
