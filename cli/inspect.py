"""``cluster inspect``: whatever kind of object the name belongs to."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cli.connection import client
from cli.flags import Format, References
from cli.output import show_objects
from covey.engine_api.light import Client
from covey.errors import InvalidArgument, NotAcceptable, NotFound, NotImplementedYet, Unavailable

app = typer.Typer()

#: Kind → the path of its inspect call, in the order in which they are tried.
KINDS = {
    "container": "/containers/{}/json",
    "image": "/images/{}/json",
    "network": "/networks/{}",
    "volume": "/volumes/{}",
    "service": "/services/{}",
    "task": "/tasks/{}",
    "node": "/nodes/{}",
    "secret": "/secrets/{}",
    "config": "/configs/{}",
}
#: What a kind may answer that only means "not here": no such object, or no cluster to ask.
_ELSEWHERE = (NotFound, NotImplementedYet, NotAcceptable, InvalidArgument)


def find(api: Client, reference: str, kind: str | None = None) -> Any:
    """The first object of that name. Raises NotFound when no kind has one."""
    for path in [KINDS[kind]] if kind else KINDS.values():
        try:
            return api.get(path.format(reference))
        except _ELSEWHERE:
            continue
        except Unavailable as error:
            if "manager" not in error.message and "swarm" not in error.message:
                raise
    raise NotFound(f"no such object: {reference}" if kind is None else f"no such {kind}: {reference}")


@app.command("inspect")
def inspect(
    names: References,
    form: Format = None,
    kind: Annotated[str | None, typer.Option("--type", help=", ".join(KINDS), show_default=False)] = None,
) -> None:
    """Show all about objects of any kind."""
    if kind is not None and kind not in KINDS:
        raise InvalidArgument(f"--type {kind!r} is none of {', '.join(KINDS)}")
    found, status = [], 0
    with client() as api:
        for name in names:
            try:
                found.append(find(api, name, kind))
            except NotFound as error:
                print(f"cluster: {error.message}", file=sys.stderr)
                status = 1
    show_objects(found, form)
    if status:
        raise typer.Exit(status)
