"""What is changed and watched of a container that lives: update, stats, diff, export."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.connection import client
from cli.flags import Flag, Format, with_flags
from cli.output import Listing, binary_size, size, warn
from cli.run_flags import LIMITS, RESTART

app = typer.Typer()

UPDATE = (*LIMITS, Flag("--blkio-weight", int, "Weight of its block I/O, 10 to 1000"), RESTART)
STATS = Listing(
    {
        "CONTAINER ID": "ID",
        "NAME": "Name",
        "CPU %": "CPUPerc",
        "MEM USAGE / LIMIT": "MemUsage",
        "MEM %": "MemPerc",
        "NET I/O": "NetIO",
        "BLOCK I/O": "BlockIO",
        "PIDS": "PIDs",
    }
)
_KINDS = {0: "C", 1: "A", 2: "D"}
_CLEAR = "\033[H\033[2J"


def update_body(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The body of an update. Raises InvalidArgument by option, also when nothing is to be changed."""
    from cli.run_spec import limits, restart_policy
    from covey.errors import InvalidArgument

    body = limits(flags)
    if flags["blkio_weight"] is not None:
        body["BlkioWeight"] = flags["blkio_weight"]
    if flags["restart"]:
        body["RestartPolicy"] = restart_policy(flags["restart"])
    if not body:
        raise InvalidArgument("nothing to change: give at least one of the options that 'cluster update --help' lists")
    return body


@app.command("update")
@with_flags(UPDATE)
def update(containers: list[str], **flags: Any) -> None:
    """Change limits and the restart policy of containers, running or not."""
    from cli.output import each

    body = update_body(flags)
    with client() as api:

        def act(name: str) -> None:
            for warning in (api.post(f"/containers/{name}/update", json=body) or {}).get("Warnings") or ():
                warn(warning)

        if status := each(containers, act):
            raise typer.Exit(status)


@app.command("stats")
def stats(
    containers: Annotated[list[str] | None, typer.Argument(show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Those that have ended too")] = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Once, not again and again")] = False,
    form: Format = None,
) -> None:
    """Show what containers use: CPU, memory, network, block I/O, processes."""
    with client() as api:
        before: dict[str, Any] = {}
        while True:
            names = containers or [one["Id"] for one in api.get("/containers/json", {"all": everything or None})]
            now = {name: api.get(f"/containers/{name}/stats", {"stream": False, "one-shot": True}) for name in names}
            if before:
                if not no_stream and form is None and sys.stdout.isatty():
                    sys.stdout.write(_CLEAR)
                STATS.show([stats_row(before.get(name), one) for name, one in now.items()], form=form)
                sys.stdout.flush()
                if no_stream:
                    return
            elif not now and no_stream:
                STATS.show([], form=form)
                return
            before = now
            time.sleep(1.0)


def stats_row(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> dict[str, str]:
    """A row as Docker counts it: CPU against the machine's since ``before``, memory without what can be dropped."""
    memory = now.get("memory_stats") or {}
    used = max(0, (memory.get("usage") or 0) - _droppable(memory))
    limit = memory.get("limit") or 0
    networks = (now.get("networks") or {}).values()
    moved = {"read": 0, "write": 0}
    for one in (now.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ():
        if one["op"].lower() in moved:
            moved[one["op"].lower()] += one["value"]
    return {
        "ID": str(now.get("id") or "")[:12],
        "Container": str(now.get("id") or "")[:12],
        "Name": str(now.get("name") or "").removeprefix("/"),
        "CPUPerc": f"{_cpu_percent(before, now):.2f}%",
        "MemUsage": f"{binary_size(used)} / {binary_size(limit)}",
        "MemPerc": f"{100 * used / limit if limit else 0:.2f}%",
        "NetIO": f"{size(sum(net['rx_bytes'] for net in networks))} / {size(sum(net['tx_bytes'] for net in networks))}",
        "BlockIO": f"{size(moved['read'])} / {size(moved['write'])}",
        "PIDs": str((now.get("pids_stats") or {}).get("current") or 0),
    }


def _droppable(memory: Mapping[str, Any]) -> int:
    """Page cache that the kernel may drop: cgroup v1's and v2's name for it."""
    counters = memory.get("stats") or {}
    return int(counters.get("total_inactive_file") or counters.get("inactive_file") or 0)


def _cpu_percent(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> float:
    if not before:
        return 0.0
    one, other = now.get("cpu_stats") or {}, before.get("cpu_stats") or {}
    own = (one.get("cpu_usage") or {}).get("total_usage", 0) - (other.get("cpu_usage") or {}).get("total_usage", 0)
    machine = (one.get("system_cpu_usage") or 0) - (other.get("system_cpu_usage") or 0)
    return 100.0 * own / machine * (one.get("online_cpus") or 1) if own > 0 and machine > 0 else 0.0


@app.command("diff")
def diff(container: str) -> None:
    """Show what a container changed in its file system: A added, C changed, D deleted."""
    with client() as api:
        for change in api.get(f"/containers/{container}/changes") or ():
            print(_KINDS[change["Kind"]], change["Path"])


@app.command("export")
def export(
    container: str,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file", show_default=False)] = None,
) -> None:
    """Write a container's file system as a tar."""
    from covey.errors import InvalidArgument

    if output is None and sys.stdout.isatty():
        raise InvalidArgument("a tar is nothing for a terminal: use --output FILE, or redirect")
    with client() as api, api.stream("GET", f"/containers/{container}/export") as response:
        if output is None:
            for chunk in response:
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return
        # A file that is half a tar must not look like one.
        part = output.with_name(f"{output.name}.part")
        try:
            with open(part, "wb") as file:
                for chunk in response:
                    file.write(chunk)
            part.replace(output)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
