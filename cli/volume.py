"""``cluster volume``: this node's volumes."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.connection import client, filters
from cli.flags import Filter, Format, Quiet, References
from cli.output import Listing, each, labels_text, show_objects, warn
from cli.words import pairs

app = typer.Typer()

LISTING = Listing({"DRIVER": "Driver", "VOLUME NAME": "Name"}, quiet="Name")
Many = Annotated[list[str] | None, typer.Option(show_default=False)]


@app.command("ls")
def list_volumes(given: Filter = None, quiet: Quiet = False, form: Format = None) -> None:
    """List the volumes."""
    with client() as api:
        found = api.get("/volumes", {"filters": filters(given)})
    for text in found.get("Warnings") or ():
        warn(text)
    rows = [
        {
            "Driver": one["Driver"],
            "Name": one["Name"],
            "Scope": one.get("Scope", "local"),
            "Mountpoint": one.get("Mountpoint", ""),
            "Labels": labels_text(one.get("Labels")),
        }
        for one in sorted(found.get("Volumes") or (), key=lambda one: str(one["Name"]))
    ]
    LISTING.show(rows, quiet=quiet, form=form)


@app.command("inspect")
def inspect(volumes: References, form: Format = None) -> None:
    """Show all about volumes."""
    with client() as api:
        show_objects([api.get(f"/volumes/{name}") for name in volumes], form)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(show_default=False)] = "",
    driver: Annotated[str, typer.Option("--driver", "-d")] = "local",
    opt: Annotated[list[str] | None, typer.Option("--opt", "-o", help="A driver option, key=value", show_default=False)] = None,
    label: Many = None,
) -> None:
    """Make a volume, with a name of its own unless one is given."""
    body = {"Driver": driver, "DriverOpts": pairs(opt, "--opt"), "Labels": pairs(label, "--label")}
    with client() as api:
        print(api.post("/volumes/create", json={**body, "Name": name} if name else body)["Name"])


@app.command("rm")
def remove(
    volumes: References, force: Annotated[bool, typer.Option("--force", "-f", help="No error if there is none")] = False
) -> None:
    """Remove volumes."""
    with client() as api:
        if status := each(volumes, lambda name: api.delete(f"/volumes/{name}", {"force": force or None})):
            raise typer.Exit(status)


@app.command("prune")
def prune(given: Filter = None) -> None:
    """Remove volumes that no container uses."""
    with client() as api:
        for name in api.post("/volumes/prune", {"filters": filters(given)}).get("VolumesDeleted") or ():
            print(name)
