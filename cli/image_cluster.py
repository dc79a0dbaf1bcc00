"""Images on all nodes of the cluster: bring one to them, clear them up, list them. The manager's word for who has what is law.

It decides how it looks and what ends the process; the bytes travel between the nodes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from cli.connection import client
from cli.output import clean, size
from covey.engine_api.light import Client
from covey.errors import CoveyError, InvalidArgument

AllNodes = Annotated[bool, typer.Option("--all-nodes", help="On every node of the cluster")]

_LOADED = "Loaded image: "


def noted(lines: Iterable[Any], names: list[str]) -> Iterator[Any]:
    """The lines of a load as they come; the names that were loaded are added to ``names``."""
    for line in lines:
        text = str(line.get("stream") or "")
        if text.startswith(_LOADED):
            names.append(text.removeprefix(_LOADED).strip())
        yield line


def distribute(
    name: Annotated[str, typer.Argument(show_default=False)],
    node: Annotated[list[str] | None, typer.Option("--node", help="Only to this node; may be given several times")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress")] = False,
) -> None:
    """Bring an image that some node has to all nodes, or to some."""
    with client() as api:
        status = _bring(api, {"Name": name, "Nodes": list(node or ())}, quiet)
    if status:
        raise typer.Exit(status)


def distribute_loaded(api: Client, names: Iterable[str], quiet: bool) -> None:
    """Bring what was loaded on this node just now to all others. Raises typer.Exit when a node does not have it after."""
    status = 0
    chosen = list(names)
    if not chosen:
        raise InvalidArgument("the archive names no image: nothing can be brought to the other nodes by its name")
    for name in chosen:
        image_id = api.get(f"/images/{name}/json")["Id"]
        status = _bring(api, {"Name": name, "Id": image_id}, quiet) or status
    if status:
        raise typer.Exit(status)


def _bring(api: Client, request: dict[str, Any], quiet: bool) -> int:
    from cli.progress import Display

    display = Display(quiet)
    under_way: dict[str, str] = {}
    outcome: dict[str, Any] = {}
    for line in api.lines("POST", "/covey/images/distribute", json=request):
        if "Received" in line:
            outcome = line
            continue
        node, status = str(line.get("node")), str(line.get("status"))
        if status == "Receiving":
            under_way[node] = _receiving(line.get("progressDetail") or {})
            display.paint([f"  {one}: {words}" for one, words in sorted(under_way.items())])
            continue
        under_way.pop(node, None)
        if status == "Received":
            display.line(f"{node}: has {request['Name']}")
    display.clear()
    failed = outcome.get("Failed")
    if failed is None:
        print("cluster: the manager broke off: which nodes have the image is not known; run it again", file=sys.stderr)
        return 1
    for node, why in sorted(failed.items()):
        print(f"cluster: {node} does not have {request['Name']}: {clean(str(why))}", file=sys.stderr)
    return 1 if failed else 0


def _receiving(detail: dict[str, Any]) -> str:
    current, total = int(detail.get("current") or 0), int(detail.get("total") or 0)
    return f"{current * 100 // total} % of {size(total)}" if total else f"{size(current)}"


def on_each_node(api: Client, method: str, path: str, query: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(node's name, its answer) of each node; a CoveyError as the answer of one that gives none."""
    nodes = sorted(api.get("/nodes"), key=lambda node: str(node["Description"].get("Hostname")))
    for node in nodes:
        target = f"/_node/{node['ID']}{path}"
        answer: Any
        try:
            answer = api.get(target, query) if method == "GET" else api.post(target, query)
        except CoveyError as error:
            answer = error
        yield str(node["Description"].get("Hostname") or node["ID"]), answer


def prune_everywhere(api: Client, query: dict[str, Any]) -> int:
    """Prune on every node; the exit status."""
    status, freed = 0, 0
    for node, done in on_each_node(api, "POST", "/images/prune", query):
        if isinstance(done, CoveyError):
            print(f"cluster: {node}: {clean(done.message)}", file=sys.stderr)
            status = 1
            continue
        for line in done.get("ImagesDeleted") or ():
            for verb, what in line.items():
                print(f"{node}: {verb}: {what}")
        freed += int(done.get("SpaceReclaimed") or 0)
    print(f"Total reclaimed space: {size(freed)}")
    return status


def images_everywhere(api: Client, query: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """(node's name, its images); of a node that does not answer a warning, and none."""
    for node, found in on_each_node(api, "GET", "/images/json", query):
        if isinstance(found, CoveyError):
            print(f"cluster: {node}: {clean(found.message)}", file=sys.stderr)
        yield node, [] if isinstance(found, CoveyError) else found
