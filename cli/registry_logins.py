"""``cluster registry``: the logins to registries that the whole cluster pulls with; ``cluster login`` is a person's own.

It decides that a login is tried before it is given away; nothing is kept on this machine.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from cli.connection import client
from cli.flags import Format, Quiet
from cli.output import Listing, warn
from cli.registry import asked
from covey import credentials
from covey.credentials import Credentials

app = typer.Typer()

LISTING = Listing({"HOST": "Host", "USER": "Username", "KIND": "Kind", "SERVICE": "Service", "GIVEN": "GivenAt"}, quiet="Host")
Host = Annotated[str, typer.Argument(metavar="HOST", show_default=False, help="host[:port], docker.io for Docker Hub")]


@app.command("login")
def login(
    host: Host,
    username: Annotated[str | None, typer.Option("--username", "-u", show_default=False)] = None,
    password: Annotated[
        str | None, typer.Option("--password", "-p", help="Seen by others: rather use --password-stdin")
    ] = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin")] = False,
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Do not try it at the registry first")] = False,
) -> None:
    """Give the cluster a login to a registry, or a new password: every node's next pull uses it."""
    if password is not None:
        warn("a password on the command line is seen by other users of this machine: use --password-stdin")
    given = Credentials(*asked(username, password, password_stdin), server=credentials.server_key(credentials.host_of(host)))
    with client() as api:
        if not unchecked:
            api.post("/auth", json=given.to_api())
        api.post("/covey/logins", json=given.to_api())
    print(f"The cluster is logged in to {credentials.host_of(host)} as {given.username}")


@app.command("logout")
def logout(host: Host) -> None:
    """Forget the cluster's login to a registry; what services came with stays theirs."""
    with client() as api:
        api.delete(f"/covey/logins/{quote(credentials.host_of(host), safe='')}")
    print(f"The cluster has forgotten its login to {credentials.host_of(host)}")


@app.command("ls")
def list_logins(quiet: Quiet = False, form: Format = None) -> None:
    """List the logins, those of single services too; passwords are never shown."""
    with client() as api:
        rows = api.get("/covey/logins")
    LISTING.show(rows, quiet=quiet, form=form)
