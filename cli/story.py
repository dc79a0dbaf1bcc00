"""``cluster story TASK``: a task's life, each line with who moved it and why."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.connection import client
from cli.output import clean, moment, show_objects
from covey.engine_api.light import Client

app = typer.Typer()


@app.command("story")
def story(
    task: Annotated[str, typer.Argument(help="A task's id or its beginning, or its name such as web.3", show_default=False)],
    form: Annotated[str | None, typer.Option("--format", help="json, or a template", show_default=False)] = None,
) -> None:
    """Tell a task's life from cradle to grave."""
    with client() as api:
        told = api.get(f"/covey/tasks/{task_id(api, task)}/story")
    if form:
        show_objects([told], form)
        return
    print(f"{told.get('Name', '')}  {told['ID']}  {told.get('State', '')}")
    for line in told.get("Story") or ():
        at = moment(line.get("At"))
        when = at.astimezone().strftime("%H:%M:%S.%f")[:-3] if at else " " * 12
        print(f"  {when}  {clean(str(line.get('Who', ''))):<8}  {clean(str(line.get('What', '')))}")


def task_id(api: Client, reference: str) -> str:
    """The id of a task called by name (``web.3``): the newest of its slot."""
    name, dot, slot = reference.rpartition(".")
    if not dot or not name:
        return reference
    from cli.connection import filters

    tasks = api.get("/tasks", {"filters": filters([], service=name)})
    fitting = [one for one in tasks if slot in (str(one.get("Slot") or ""), one.get("NodeID"), one["ID"])]
    newest = max(fitting, key=lambda one: str(one.get("CreatedAt")), default=None)
    return str(newest["ID"]) if newest else reference
