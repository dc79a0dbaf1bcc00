"""``cluster events``, ``info`` and ``version``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from cli.connection import client, filters
from cli.flags import Filter, Format
from cli.output import binary_size, clean, show_objects
from covey.errors import CoveyError

app = typer.Typer()


@app.command("events")
def events(
    given: Filter = None,
    since: Annotated[str | None, typer.Option(help="From this time on: 10m, or a time", show_default=False)] = None,
    until: Annotated[str | None, typer.Option(help="Up to this time, then end", show_default=False)] = None,
    form: Format = None,
) -> None:
    """Show what happens, as it happens, until interrupted."""
    from cli.moments import timestamp

    query = {"filters": filters(given), "since": timestamp(since), "until": timestamp(until)}
    template = None
    if form and form != "json":
        from cli.templates import Template

        template = Template(form)
    with client() as api:
        for event in api.lines("GET", "/events", query):
            if template is not None:
                print(template.render(event), flush=True)
            else:
                print(json.dumps(event, ensure_ascii=False) if form else _line(event), flush=True)


def _line(event: Mapping[str, Any]) -> str:
    """``2026-01-02T03:04:05.678 container start 0123… (image=busybox)``."""
    from datetime import datetime

    nano = int(event.get("timeNano") or int(event.get("time") or 0) * 10**9)
    at = datetime.fromtimestamp(nano / 1e9).astimezone().isoformat(timespec="microseconds")
    actor = event.get("Actor") or {}
    words = ", ".join(f"{key}={value}" for key, value in sorted((actor.get("Attributes") or {}).items()))
    return clean(f"{at} {event.get('Type')} {event.get('Action')} {actor.get('ID', '')}" + (f" ({words})" if words else ""))


@app.command("version")
def version(form: Format = None) -> None:
    """Show the versions of client and daemon."""
    from importlib.metadata import version as release

    from covey.engine_api.versions import API_VERSION

    with client() as api:
        found: dict[str, Any] = {"Client": {"Version": release("covey"), "ApiVersion": API_VERSION}, "Server": None}
        fault = None
        try:
            found["Client"]["ApiVersion"] = api.version
            found["Server"] = api.get("/version")
        except CoveyError as error:
            fault = error
    if form:
        show_objects([found], form)
    else:
        for side, facts in found.items():
            if facts:
                print(f"{side}:")
                for key in ("Version", "ApiVersion", "MinAPIVersion", "Os", "Arch", "KernelVersion"):
                    if facts.get(key):
                        print(f" {key + ':':<16}{facts[key]}")
    if fault is not None:
        raise fault


_INFO = (
    ("Server Version", "ServerVersion"),
    ("Storage Driver", "Driver"),
    ("Logging Driver", "LoggingDriver"),
    ("Cgroup Driver", "CgroupDriver"),
    ("Cgroup Version", "CgroupVersion"),
    ("Kernel Version", "KernelVersion"),
    ("Operating System", "OperatingSystem"),
    ("Architecture", "Architecture"),
    ("CPUs", "NCPU"),
    ("Name", "Name"),
    ("ID", "ID"),
    ("Root Dir", "DockerRootDir"),
)


@app.command("info")
def info(form: Format = None) -> None:
    """Show this node and its part in the cluster."""
    with client() as api:
        found = api.get("/info")
    if form:
        show_objects([found], form)
        return
    print(f"Containers: {found.get('Containers', 0)}")
    for state in ("Running", "Paused", "Stopped"):
        print(f" {state}: {found.get(f'Containers{state}', 0)}")
    print(f"Images: {found.get('Images', 0)}")
    for title, key in _INFO:
        if found.get(key) not in (None, ""):
            print(clean(f"{title}: {found[key]}"))
    print(f"Total Memory: {binary_size(found.get('MemTotal', 0))}")
    _swarm(found.get("Swarm") or {})
    for text in found.get("Warnings") or ():
        print(f"WARNING: {clean(text)}")


def _swarm(swarm: Mapping[str, Any]) -> None:
    print(f"Cluster: {swarm.get('LocalNodeState') or 'inactive'}")
    if swarm.get("LocalNodeState") in (None, "", "inactive"):
        return
    print(f" NodeID: {swarm.get('NodeID')}")
    print(f" Is Manager: {str(bool(swarm.get('ControlAvailable'))).lower()}")
    if swarm.get("Error"):
        print(clean(f" Error: {swarm['Error']}"))
    if swarm.get("ControlAvailable"):
        print(f" ClusterID: {(swarm.get('Cluster') or {}).get('ID', '')}")
        print(f" Managers: {swarm.get('Managers', 0)}")
        print(f" Nodes: {swarm.get('Nodes', 0)}")
    print(f" Node Address: {swarm.get('NodeAddr', '')}")
    for one in swarm.get("RemoteManagers") or ():
        print(f" Manager Address: {one.get('Addr')}")
