"""``cluster network``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.connection import client, filters
from cli.flags import Filter, Format, NoTrunc, Quiet, References
from cli.output import Listing, each, labels_text, short_id, show_objects, warn
from cli.words import pairs

app = typer.Typer()

LISTING = Listing({"NETWORK ID": "ID", "NAME": "Name", "DRIVER": "Driver", "SCOPE": "Scope"})
Many = Annotated[list[str] | None, typer.Option(show_default=False)]


@app.command("ls")
def list_networks(given: Filter = None, quiet: Quiet = False, no_trunc: NoTrunc = False, form: Format = None) -> None:
    """List the networks of this node and of the cluster."""
    with client() as api:
        found = api.get("/networks", {"filters": filters(given)})
    rows = [
        {
            "ID": short_id(one["Id"], no_trunc),
            "Name": one["Name"],
            "Driver": one["Driver"],
            "Scope": one["Scope"],
            "Internal": one.get("Internal", False),
            "IPv6": one.get("EnableIPv6", False),
            "Labels": labels_text(one.get("Labels")),
            "CreatedAt": one.get("Created", ""),
        }
        for one in sorted(found, key=lambda one: str(one["Name"]))
    ]
    LISTING.show(rows, quiet=quiet, form=form)


@app.command("inspect")
def inspect(
    networks: References,
    form: Format = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="With services and tasks")] = False,
) -> None:
    """Show all about networks."""
    with client() as api:
        show_objects([api.get(f"/networks/{name}", {"verbose": verbose or None}) for name in networks], form)


@app.command("create")
def create(
    name: str,
    driver: Annotated[str, typer.Option("--driver", "-d", help="bridge or overlay")] = "bridge",
    subnet: Many = None,
    gateway: Many = None,
    ip_range: Many = None,
    opt: Annotated[list[str] | None, typer.Option("--opt", "-o", help="A driver option, key=value", show_default=False)] = None,
    label: Many = None,
    scope: Annotated[str | None, typer.Option(help="local or swarm", show_default=False)] = None,
    internal: Annotated[bool, typer.Option("--internal", help="No way out")] = False,
    attachable: Annotated[bool, typer.Option("--attachable", help="Containers may join by hand")] = False,
    ipv6: Annotated[bool, typer.Option("--ipv6")] = False,
) -> None:
    """Make a network."""
    body: dict[str, Any] = {
        "Name": name,
        "Driver": driver,
        "Internal": internal,
        "Attachable": attachable,
        "EnableIPv6": ipv6,
        "Options": pairs(opt, "--opt"),
        "Labels": pairs(label, "--label"),
        "CheckDuplicate": True,
        "IPAM": {"Driver": "default", "Config": _pools(subnet or [], gateway or [], ip_range or [])},
    }
    body |= {"Scope": scope} if scope else {}
    with client() as api:
        made = api.post("/networks/create", json=body)
    if made.get("Warning"):
        warn(made["Warning"])
    print(made["Id"])


def _pools(subnets: list[str], gateways: list[str], ranges: list[str]) -> list[dict[str, str]]:
    """One pool a subnet; gateways and ranges go by position."""
    from covey.errors import InvalidArgument

    if len(gateways) > len(subnets) or len(ranges) > len(subnets):
        raise InvalidArgument("every --gateway and --ip-range needs its --subnet")
    pools = [{"Subnet": subnet} for subnet in subnets]
    for pool, gateway in zip(pools, gateways):
        pool["Gateway"] = gateway
    for pool, part in zip(pools, ranges):
        pool["IPRange"] = part
    return pools


@app.command("rm")
def remove(networks: References) -> None:
    """Remove networks."""
    with client() as api:
        if status := each(networks, lambda name: api.delete(f"/networks/{name}")):
            raise typer.Exit(status)


@app.command("prune")
def prune(given: Filter = None) -> None:
    """Remove networks that nothing uses."""
    with client() as api:
        for name in api.post("/networks/prune", {"filters": filters(given)}).get("NetworksDeleted") or ():
            print(name)
