"""``cluster node drain`` and ``cluster rebalance``: asks for moves, and waits until they are made."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from cli.connection import client, filters
from cli.output import Listing, clean
from cli.waiting import seconds
from covey.engine_api.light import Client
from covey.errors import InvalidArgument

app = typer.Typer()

POLL = 0.3
LISTING = Listing({"TASK": "Name", "FROM": "From", "TO": "To", "WHY": "Why"})


def policy(order: str | None, parallelism: int, deadline: str | None) -> dict[str, Any]:
    """The ``Drain`` of a node's spec."""
    from cli.stack.units import nanoseconds

    if order not in (None, "start-first", "stop-first"):
        raise InvalidArgument(f"--order {order!r} is neither start-first nor stop-first")
    return {
        "Parallelism": parallelism,
        **({"Order": order} if order else {}),
        **({"Deadline": nanoseconds(deadline, "--deadline")} if deadline else {}),
    }


def drain(api: Client, node: Mapping[str, Any], how: Mapping[str, Any], *, detach: bool, timeout: str | None) -> None:
    """Empty a node and say how it goes. Raises typer.Exit when the time is over before it is empty."""
    spec = {**node["Spec"], "Availability": "drain", "Drain": how}
    api.post(f"/nodes/{node['ID']}/update", {"version": node["Version"]["Index"]}, spec)
    name = str((node.get("Description") or {}).get("Hostname") or node["ID"])
    if detach:
        print(name)
        return
    _wait(lambda: _left(api, node["ID"]), f"node {name}", "left", timeout)
    print(f"node {name} is drained", flush=True)


def _left(api: Client, node_id: str) -> list[str]:
    """Tasks that still are on a node."""
    tasks = api.get("/tasks", {"filters": filters([], node=node_id)})
    return [task["ID"] for task in tasks if task["Status"]["State"] in _THERE]


_THERE = ("assigned", "accepted", "preparing", "ready", "starting", "running")


def _wait(left: Callable[[], list[str]], whose: str, word: str, timeout: str | None) -> None:
    limit, begun, told = seconds(timeout), time.monotonic(), -1
    while tasks := left():
        if len(tasks) != told:
            told = len(tasks)
            print(f"{clean(whose)}: {told} task{'s' if told > 1 else ''} {word}", flush=True)
        if limit is not None and time.monotonic() - begun > limit:
            print(f"cluster: {told} tasks are {word} after {limit:g} s; the cluster goes on", file=sys.stderr)
            raise typer.Exit(1)
        time.sleep(POLL)


@app.command("rebalance")
def rebalance(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be moved")] = False,
    most: Annotated[int, typer.Option("--max", help="How many tasks at the most")] = 10,
    parallelism: Annotated[int, typer.Option(help="How many at a time; 0 is all")] = 1,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait until they have moved")] = False,
    timeout: Annotated[str | None, typer.Option(help="How long to wait, as 2m", show_default=False)] = None,
) -> None:
    """Move replicas that stand together to nodes that have fewer of them."""
    from cli.tasks import node_names

    with client() as api:
        answer = api.post("/covey/rebalance", json={"DryRun": dry_run, "Max": most, "Parallelism": parallelism})
        moves = answer["Moves"]
        if not moves:
            print("Nothing would stand better elsewhere.")
            return
        names = node_names(api)
        rows = [{**move, "From": names.get(move["From"], ""), "To": names.get(move["To"], "")} for move in moves]
        LISTING.show(rows, quiet=False, form=None)
        if not (dry_run or detach):
            ids = [move["TaskID"] for move in moves]
            _wait(lambda: [one for one in ids if _runs(api, one)], "rebalance", "to move", timeout)


def _runs(api: Client, task_id: str) -> bool:
    found = api.get("/tasks", {"filters": filters([], id=task_id)})
    return any(task["Status"]["State"] in _THERE for task in found)
