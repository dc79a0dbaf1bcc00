"""``cluster lab``: a cluster of many nodes on this machine, broken on purpose. Thin: covey.testing does it.

The only file outside the tests that knows covey.testing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.flags import Format
from cli.output import Listing, show_objects
from covey.errors import InvalidArgument, Unavailable
from covey.testing import lab_commands
from covey.testing.lab_commands import DEFAULT
from covey.testing.lab_machine import LabError

app = typer.Typer()

LISTING = Listing(
    {"LAB": "Lab", "NODE": "Node", "ROLE": "Role", "ADDRESS": "Address", "STATE": "State", "RUNS": "Runs", "HOST": "Host"},
    quiet="Node",
)
Name = Annotated[str, typer.Option("--name", help="The lab's name")]
Node = Annotated[str, typer.Argument(show_default=False)]
Process = Annotated[
    str | None, typer.Argument(help="daemon, manager, etcd or zygote; the whole machine unless named", show_default=False)
]


@contextmanager
def _said() -> Iterator[None]:
    """A fault of the lab as one line."""
    try:
        yield
    except LabError as error:
        raise Unavailable(str(error)) from None


def _show(rows: list[dict[str, Any]], form: str | None = None) -> None:
    if form == "json":
        show_objects(rows, form)
        return
    shown = [
        {
            "Lab": row["lab"],
            "Node": row["node"],
            "Role": row["role"],
            "Address": row["address"],
            "State": row["state"] + (" (cut off)" if row["cut"] else ""),
            "Runs": ",".join(row["processes"]),
            "Host": row["docker_host"],
        }
        for row in rows
    ]
    LISTING.show(shown, form=form)


@app.command("up")
def up(
    nodes: Annotated[int, typer.Option("--nodes", "-n", help="How many machines")] = 4,
    managers: Annotated[int, typer.Option("--managers", "-m", help="How many of them are managers")] = 1,
    profile: Annotated[str, typer.Option(help="Timers of the daemons: default, or test")] = "default",
    name: Name = DEFAULT,
    form: Format = None,
) -> None:
    """Make a cluster; it stays until `lab down`."""
    with _said():
        rows = lab_commands.up(name, nodes, managers, profile)
    _show(rows, form)
    if not form and rows:
        print(f"\nTalk to it with: export COVEY_HOST={rows[0]['docker_host']}")


@app.command("down")
def down(name: Name = DEFAULT) -> None:
    """End a lab and clear away everything of it, also what a killed one left."""
    with _said():
        there = lab_commands.down(name)
    print(f"Lab {name} is gone." if there else f"There was no lab {name}.")


@app.command("ps")
def ps(
    name: Annotated[str | None, typer.Option("--name", help="One lab only", show_default=False)] = None, form: Format = None
) -> None:
    """List the machines of labs and what runs on them."""
    with _said():
        _show(lab_commands.ps(name), form)


@app.command("kill")
def kill(node: Node, process: Process = None, name: Name = DEFAULT) -> None:
    """SIGKILL a machine, or one process of it."""
    with _said():
        lab_commands.kill(name, node, process)


@app.command("start")
def start(node: Node, name: Name = DEFAULT) -> None:
    """Boot a dead machine, or start a living one's dead daemon."""
    with _said():
        lab_commands.start(name, node)


@app.command("pause")
def pause(
    node: Node,
    process: Process = None,
    seconds: Annotated[
        float | None, typer.Option("--for", help="Seconds; until `resume` unless given", show_default=False)
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="Its containers too")] = False,
    name: Name = DEFAULT,
) -> None:
    """SIGSTOP a machine's processes, or one of them."""
    if seconds is not None and seconds <= 0:
        raise InvalidArgument(f"--for {seconds:g}: give a number of seconds above 0")
    with _said():
        lab_commands.pause(name, node, seconds, process, whole)


@app.command("resume")
def resume(node: Node, name: Name = DEFAULT) -> None:
    """Continue what was paused."""
    with _said():
        lab_commands.resume(name, node)


@app.command("partition")
def partition(node: Node, name: Name = DEFAULT) -> None:
    """Lose every packet of a machine; inside it all goes on."""
    with _said():
        lab_commands.partition(name, node)


@app.command("heal")
def heal(node: Annotated[str | None, typer.Argument(show_default=False)] = None, name: Name = DEFAULT) -> None:
    """End a machine's partition, or all of them."""
    with _said():
        lab_commands.heal(name, node)


@app.command("load")
def load(
    archive: Annotated[Path, typer.Argument(help="A docker-archive", show_default=False)],
    nodes: Annotated[list[str] | None, typer.Argument(show_default=False)] = None,
    name: Name = DEFAULT,
) -> None:
    """Load an image archive on every machine, or on those named."""
    with _said():
        lab_commands.load(name, archive.read_bytes(), nodes or ())
