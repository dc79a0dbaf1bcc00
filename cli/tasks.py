"""Tasks as a table: what ``service ps``, ``node ps`` and ``stack ps`` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cli.output import Listing, clipped, short_id, since
from covey.engine_api.light import Client


def _indented(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The history of a slot under its newest task."""
    above = ["", *(row["Name"] for row in rows)]
    return [{**row, "Name": f" \\_ {row['Name']}"} if row["Name"] == name else row for row, name in zip(rows, above)]


LISTING = Listing(
    {
        "ID": "ID",
        "NAME": "Name",
        "IMAGE": "Image",
        "NODE": "Node",
        "DESIRED STATE": "DesiredState",
        "CURRENT STATE": "CurrentState",
        "ERROR": "Error",
        "PORTS": "Ports",
    },
    tabular=_indented,
)
_ERROR_WIDTH = 50


def node_names(client: Client) -> dict[str, str]:
    """Node id → name, as people know nodes."""
    nodes = client.get("/nodes")
    return {
        node["ID"]: (node.get("Description") or {}).get("Hostname") or (node.get("Spec") or {}).get("Name") or node["ID"]
        for node in nodes
    }


def service_names(client: Client) -> dict[str, str]:
    """Service id → name."""
    return {service["ID"]: service["Spec"]["Name"] for service in client.get("/services")}


def task_name(task: Mapping[str, Any], services: Mapping[str, str]) -> str:
    """``web.3``, for global services ``web.<node id>``."""
    service = services.get(task.get("ServiceID", ""), task.get("ServiceID", ""))
    return f"{service}.{slot_name(task)}"


def slot_name(task: Mapping[str, Any]) -> str:
    """A task's slot as users see it; slots of jobs count from 0."""
    slot = task.get("Slot")
    return str(task.get("NodeID") or task["ID"] if slot is None else slot)


def ports_text(ports: Sequence[Mapping[str, Any]]) -> str:
    """``*:8080->80/tcp``."""
    return ",".join(
        f"{port.get('HostIP') or '*'}:{port['PublishedPort']}->{port['TargetPort']}/{port.get('Protocol', 'tcp')}"
        for port in ports
        if port.get("PublishedPort")
    )


def error_text(task: Mapping[str, Any]) -> str:
    """Why a task failed or waits; empty when nothing is wrong."""
    return str((task.get("Status") or {}).get("Err") or "")


def rows(
    tasks: Sequence[Mapping[str, Any]],
    services: Mapping[str, str],
    nodes: Mapping[str, str],
    *,
    whole: bool,
    resolve: bool = True,
) -> list[dict[str, str]]:
    """Rows by name, the newest of a slot first and its history under it."""
    newest_first = sorted(tasks, key=lambda task: str(task.get("CreatedAt") or ""), reverse=True)
    named = sorted(newest_first, key=lambda task: (services.get(task["ServiceID"], ""), task.get("Slot") or 0, _place(task)))
    out: list[dict[str, str]] = []
    for task in named:
        status = task.get("Status") or {}
        state = str(status.get("State", "")).capitalize()
        image = str(((task.get("Spec") or {}).get("ContainerSpec") or {}).get("Image") or "")
        node = task.get("NodeID") or ""
        error = error_text(task)
        out.append(
            {
                "ID": short_id(task["ID"], whole),
                "Name": task_name(task, services),
                "Image": image if whole else image.partition("@")[0],
                "Node": nodes.get(node, node) if resolve else node,
                "DesiredState": str(task.get("DesiredState", "")).capitalize(),
                "CurrentState": f"{state} {since(status.get('Timestamp')).lower()}".strip(),
                "Error": f'"{error if whole else clipped(error, _ERROR_WIDTH)}"' if error else "",
                "Ports": ports_text((status.get("PortStatus") or {}).get("Ports") or []),
            }
        )
    return out


def _place(task: Mapping[str, Any]) -> str:
    return "" if task.get("Slot") is not None else str(task.get("NodeID") or "")
