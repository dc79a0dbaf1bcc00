"""``cluster node``: the machines of the cluster."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.connection import client, filters
from cli.flags import Filter, Format, NoTrunc, Quiet, References
from cli.output import Listing, each, show_objects
from covey.engine_api.light import Client
from covey.errors import InvalidArgument, NotFound

app = typer.Typer()

LISTING = Listing(
    {
        "ID": "Shown",
        "HOSTNAME": "Hostname",
        "STATUS": "Status",
        "AVAILABILITY": "Availability",
        "MANAGER STATUS": "ManagerStatus",
        "ENGINE VERSION": "EngineVersion",
    }
)


@app.command("ls")
def list_nodes(given: Filter = None, quiet: Quiet = False, form: Format = None) -> None:
    """List the nodes."""
    with client() as api:
        nodes = api.get("/nodes", {"filters": filters(given)})
        own = "" if quiet else ((api.get("/info") or {}).get("Swarm") or {}).get("NodeID", "")
    rows = [_row(node, own) for node in sorted(nodes, key=lambda node: _hostname(node))]
    if form == "json":
        for row in rows:
            row.pop("Shown")
    LISTING.show(rows, quiet=quiet, form=form)


def _hostname(node: Any) -> str:
    return str((node.get("Description") or {}).get("Hostname") or "")


def _row(node: Any, own: str) -> dict[str, Any]:
    manager = node.get("ManagerStatus") or {}
    reach = "Leader" if manager.get("Leader") else str(manager.get("Reachability") or "").capitalize()
    mark = " *" if node["ID"] == own else ""
    return {
        "ID": node["ID"],
        "Shown": node["ID"] + mark,
        "Self": bool(mark),
        "Hostname": _hostname(node),
        "Status": str((node.get("Status") or {}).get("State", "")).capitalize(),
        "Availability": str((node.get("Spec") or {}).get("Availability", "")).capitalize(),
        "ManagerStatus": reach,
        "EngineVersion": ((node.get("Description") or {}).get("Engine") or {}).get("EngineVersion", ""),
        "Address": (node.get("Status") or {}).get("Addr", ""),
    }


@app.command("inspect")
def inspect(nodes: References, form: Format = None) -> None:
    """Show all about nodes; ``self`` is this one."""
    with client() as api:
        show_objects([api.get(f"/nodes/{_id(api, name)}") for name in nodes], form)


def _id(api: Client, reference: str) -> str:
    if reference != "self":
        return reference
    own = ((api.get("/info") or {}).get("Swarm") or {}).get("NodeID", "")
    if not own:
        raise NotFound("this node is not part of a cluster: make one with `cluster init` or join one with `cluster join`")
    return str(own)


Labels = Annotated[list[str] | None, typer.Option("--label-add", help="Add or change a label, key=value", show_default=False)]
Gone = Annotated[list[str] | None, typer.Option("--label-rm", help="Remove a label", show_default=False)]


@app.command("update")
def update(
    node: str,
    availability: Annotated[str | None, typer.Option(help="active, pause or drain", show_default=False)] = None,
    role: Annotated[str | None, typer.Option(help="worker or manager", show_default=False)] = None,
    label_add: Labels = None,
    label_rm: Gone = None,
) -> None:
    """Change a node's availability, role or labels."""
    if availability is not None and availability not in ("active", "pause", "drain"):
        raise InvalidArgument(f"--availability {availability!r} is none of active, pause, drain")
    if role is not None and role not in ("worker", "manager"):
        raise InvalidArgument(f"--role {role!r} is neither worker nor manager")
    with client() as api:
        found = api.get(f"/nodes/{_id(api, node)}")
        spec = dict(found["Spec"])
        labels = dict(spec.get("Labels") or {})
        for text in label_add or ():
            key, _, value = text.partition("=")
            labels[key] = value
        for key in label_rm or ():
            if key not in labels:
                raise InvalidArgument(f"node {node} has no label {key!r}: it has {', '.join(labels) or 'none'}")
            del labels[key]
        spec |= {"Labels": labels}
        spec |= {"Availability": availability} if availability else {}
        spec |= {"Role": role} if role else {}
        api.post(f"/nodes/{found['ID']}/update", {"version": found["Version"]["Index"]}, spec)
    print(node)


@app.command("drain")
def drain(
    node: str,
    parallelism: Annotated[int, typer.Option(help="How many tasks move at a time; 0 is all")] = 1,
    order: Annotated[
        str | None, typer.Option(help="start-first or stop-first; each service's own unless given", show_default=False)
    ] = None,
    deadline: Annotated[
        str | None, typer.Option(help="Then what is left moves at once, jobs included, as 10m", show_default=False)
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait until it is empty")] = False,
    timeout: Annotated[str | None, typer.Option(help="How long to wait, as 2m", show_default=False)] = None,
) -> None:
    """Empty a node step by step: a task leaves once there is room for it elsewhere."""
    from cli import drain as moving

    how = moving.policy(order, parallelism, deadline)
    with client() as api:
        moving.drain(api, api.get(f"/nodes/{_id(api, node)}"), how, detach=detach, timeout=timeout)


@app.command("ps")
def tasks(
    nodes: Annotated[list[str] | None, typer.Argument(show_default=False)] = None,
    given: Filter = None,
    quiet: Quiet = False,
    no_trunc: NoTrunc = False,
    form: Format = None,
) -> None:
    """List the tasks of nodes, of this one unless named."""
    from cli import tasks as shown

    with client() as api:
        wanted = [api.get(f"/nodes/{_id(api, name)}")["ID"] for name in nodes or ["self"]]
        found = [task for node in wanted for task in api.get("/tasks", {"filters": filters(given, node=node)})]
        rows = shown.rows(found, shown.service_names(api), shown.node_names(api), whole=no_trunc or quiet)
    shown.LISTING.show(rows, quiet=quiet, form=form)


@app.command("rm")
def remove(
    nodes: References, force: Annotated[bool, typer.Option("--force", "-f", help="Even if it is not down")] = False
) -> None:
    """Remove nodes that are down or have left."""
    with client() as api:
        if status := each(nodes, lambda node: api.delete(f"/nodes/{node}", {"force": force})):
            raise typer.Exit(status)


def _change(names: list[str], change: dict[str, str]) -> None:
    with client() as api:

        def act(name: str) -> None:
            found = api.get(f"/nodes/{_id(api, name)}")
            api.post(f"/nodes/{found['ID']}/update", {"version": found["Version"]["Index"]}, {**found["Spec"], **change})

        if status := each(names, act):
            raise typer.Exit(status)


@app.command("promote")
def promote(nodes: References) -> None:
    """Make nodes managers."""
    _change(nodes, {"Role": "manager"})


@app.command("demote")
def demote(nodes: References) -> None:
    """Make nodes workers."""
    _change(nodes, {"Role": "worker"})
