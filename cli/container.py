"""Containers of a node: ps, logs, start, stop, kill, rm and their like. What runs interactively is in cli.run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from cli import container_live
from cli.connection import client, filters
from cli.flags import Filter, Format, NoTrunc, Quiet, References
from cli.output import Listing, clipped, each, labels_text, show_objects, since
from covey.engine_api.light import Client

app = typer.Typer()
app.registered_commands += container_live.app.registered_commands

LISTING = Listing(
    {
        "CONTAINER ID": "ID",
        "IMAGE": "Image",
        "COMMAND": "Command",
        "CREATED": "RunningFor",
        "STATUS": "Status",
        "PORTS": "Ports",
        "NAMES": "Names",
    }
)
_COMMAND_WIDTH = 20


@app.command("ps")
def ps(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that have ended too")] = False,
    given: Filter = None,
    last: Annotated[int, typer.Option("--last", "-n", help="The last that were created")] = -1,
    latest: Annotated[bool, typer.Option("--latest", "-l", help="The last one that was created")] = False,
    quiet: Quiet = False,
    no_trunc: NoTrunc = False,
    size: Annotated[bool, typer.Option("--size", "-s", help="With sizes")] = False,
    form: Format = None,
) -> None:
    """List this node's containers."""
    limit = 1 if latest else last if last > 0 else None
    query = {"all": everything or None, "limit": limit, "size": size or None, "filters": filters(given)}
    with client() as api:
        found = api.get("/containers/json", query)
    LISTING.show([_row(one, no_trunc) for one in found], quiet=quiet, form=form)


app.command("ls", help="List this node's containers.")(ps)


def _row(one: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    names = [str(name).removeprefix("/") for name in one.get("Names") or ()]
    command = str(one.get("Command") or "")
    image = str(one.get("Image") or "")
    return {
        "ID": one["Id"] if whole else one["Id"][:12],
        "Image": image if whole or not image.startswith("sha256:") else image[7:19],
        "Command": f'"{command if whole else clipped(command, _COMMAND_WIDTH)}"',
        "CreatedAt": one.get("Created"),
        "RunningFor": since(one.get("Created")),
        "Status": one.get("Status", ""),
        "State": one.get("State", ""),
        "Ports": port_text(one.get("Ports") or []),
        "Names": ",".join(names),
        "Labels": labels_text(one.get("Labels")),
        "Networks": ",".join((one.get("NetworkSettings") or {}).get("Networks") or {}),
    }


def port_text(ports: list[dict[str, Any]]) -> str:
    """``0.0.0.0:8080->80/tcp, 90/tcp``."""
    out = []
    for port in sorted(ports, key=lambda port: (port.get("PrivatePort", 0), port.get("Type", ""), port.get("IP", ""))):
        inside = f"{port.get('PrivatePort')}/{port.get('Type', 'tcp')}"
        address = str(port.get("IP") or "0.0.0.0")
        address = f"[{address}]" if ":" in address else address
        out.append(f"{address}:{port['PublicPort']}->{inside}" if port.get("PublicPort") else inside)
    return ", ".join(dict.fromkeys(out))


@app.command("logs")
def logs(
    container: str,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as output comes")] = False,
    tail: Annotated[str, typer.Option("--tail", "-n", help="How many lines from the end")] = "all",
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t")] = False,
    since_: Annotated[str | None, typer.Option("--since", help="10m, or a time", show_default=False)] = None,
    until: Annotated[str | None, typer.Option("--until", help="10m, or a time", show_default=False)] = None,
    details: Annotated[bool, typer.Option("--details")] = False,
) -> None:
    """Show a container's output."""
    from cli.moments import timestamp
    from cli.streams import show_frames

    query = {
        "stdout": True,
        "stderr": True,
        "follow": follow or None,
        "tail": tail,
        "timestamps": timestamps or None,
        "since": timestamp(since_),
        "until": timestamp(until),
        "details": details or None,
    }
    with client() as api:
        tty = bool((api.get(f"/containers/{container}/json").get("Config") or {}).get("Tty"))
        with api.stream("GET", f"/containers/{container}/logs", query) as response:
            show_frames(response, tty)


@app.command("inspect")
def inspect(containers: References, form: Format = None) -> None:
    """Show all about containers."""
    with client() as api:
        show_objects([api.get(f"/containers/{name}/json") for name in containers], form)


def _each(containers: list[str], act: Callable[[Client, str], Any]) -> None:
    with client() as api:
        if status := each(containers, lambda name: act(api, name)):
            raise typer.Exit(status)


@app.command("start")
def start(
    containers: References,
    attach: Annotated[bool, typer.Option("--attach", "-a", help="Show its output until it ends")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Give it stdin")] = False,
) -> None:
    """Start containers."""
    if not attach and not interactive:
        _each(containers, lambda api, name: api.post(f"/containers/{name}/start"))
        return
    from cli.run import start_attached
    from covey.errors import InvalidArgument

    if len(containers) > 1:
        raise InvalidArgument("start --attach takes one container")
    with client() as api:
        raise typer.Exit(start_attached(api, containers[0], stdin=interactive))


Time = Annotated[int | None, typer.Option("--time", "-t", "--timeout", help="Seconds until it is killed", show_default=False)]
Signal = Annotated[str | None, typer.Option("--signal", "-s", help="Which signal", show_default=False)]


@app.command("stop")
def stop(containers: References, time: Time = None, signal: Signal = None) -> None:
    """Stop containers: their stop signal, then SIGKILL."""
    _each(containers, lambda api, name: api.post(f"/containers/{name}/stop", {"t": time, "signal": signal}))


@app.command("restart")
def restart(containers: References, time: Time = None, signal: Signal = None) -> None:
    """Stop containers and start them again."""
    _each(containers, lambda api, name: api.post(f"/containers/{name}/restart", {"t": time, "signal": signal}))


@app.command("kill")
def kill(containers: References, signal: Signal = "KILL") -> None:
    """Send a signal to containers."""
    _each(containers, lambda api, name: api.post(f"/containers/{name}/kill", {"signal": signal}))


@app.command("pause")
def pause(containers: References) -> None:
    """Freeze all processes of containers."""
    _each(containers, lambda api, name: api.post(f"/containers/{name}/pause"))


@app.command("unpause")
def unpause(containers: References) -> None:
    """Let frozen containers go on."""
    _each(containers, lambda api, name: api.post(f"/containers/{name}/unpause"))


@app.command("rm")
def rm(
    containers: References,
    force: Annotated[bool, typer.Option("--force", "-f", help="Kill it if it runs")] = False,
    volumes: Annotated[bool, typer.Option("--volumes", "-v", help="With its anonymous volumes")] = False,
) -> None:
    """Remove containers."""
    query = {"force": force or None, "v": volumes or None}
    _each(containers, lambda api, name: api.delete(f"/containers/{name}", query))


@app.command("rename")
def rename(container: str, name: str) -> None:
    """Give a container another name."""
    with client() as api:
        api.post(f"/containers/{container}/rename", {"name": name})


@app.command("wait")
def wait(containers: References) -> None:
    """Wait until containers end and print their exit codes."""
    with client() as api:
        for name in containers:
            print(api.post(f"/containers/{name}/wait")["StatusCode"], flush=True)


@app.command("top")
def top(container: str, arguments: Annotated[list[str] | None, typer.Argument(show_default=False)] = None) -> None:
    """Show a container's processes."""
    from cli.output import table

    with client() as api:
        found = api.get(f"/containers/{container}/top", {"ps_args": " ".join(arguments or ()) or None})
    print(table(found["Titles"], found["Processes"]))


@app.command("prune")
def prune(given: Filter = None) -> None:
    """Remove all containers that have ended."""
    with client() as api:
        for name in api.post("/containers/prune", {"filters": filters(given)}).get("ContainersDeleted") or ():
            print(name)
