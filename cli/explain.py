"""``cluster explain TASK``: why a task is where it is or waits, node by node. Exit status 0: it has a node, 1: it waits."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.connection import client
from cli.output import clean, show_objects

app = typer.Typer()


@app.command("explain")
def explain(
    task: Annotated[str, typer.Argument(help="A task's id or its beginning, or its name such as web.3", show_default=False)],
    form: Annotated[str | None, typer.Option("--format", help="json, or a template", show_default=False)] = None,
) -> None:
    """Show why a task is on its node, or why it waits and what would help."""
    from cli.plan import advice, failing, nodes
    from cli.story import task_id

    with failing(), client() as api:
        told = api.get(f"/covey/tasks/{task_id(api, task)}/explain")
        if form:
            show_objects([told], form)
    if not form:
        print(f"{clean(told['Name'])}  {told['ID']}  {told['State']}")
        print(clean(_verdict(told)))
        print(nodes(told["Nodes"]))
        print("\n".join(advice(told)), end="\n" if told.get("Advice") else "")
    raise typer.Exit(1 if told["Waits"] else 0)


def _verdict(told: dict[str, object]) -> str:
    message, waiting = str(told["Message"]), str(told.get("TaskMessage") or "")
    if not told["NodeID"]:
        return f"It waits: {message}"
    if told["State"] in ("new", "pending"):
        # A node has room: if it waits all the same, something else holds it up, and the leader has said what.
        return (f"It waits: {waiting}; " if told["Waits"] else "") + f"it would go to {told['Node']} ({told['Strategy']})"
    return f"It is on {told['Node']} ({told['Strategy']}); the nodes as they would be ranked now:"
