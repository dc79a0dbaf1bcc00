"""``--plan``: what a command would do, for people to read or as JSON, and the exit status for scripts.

0: nothing to do, 1: there are changes, 255: no plan could be made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
import typer

from cli.output import clean, clipped, show_objects, table
from cli.rehearsal import Rehearsal
from covey.errors import CoveyError, InvalidArgument

FAILED = 255
#: So many tasks of a service are listed, and nodes of a table; JSON has them all.
LISTED = 40
_WIDTH = 120
_NOT_ON = 5

_SIGNS = {"create": "+", "update": "~", "remove": "-", "none": "=", "replace": "~", "destroy": "-"}
_SIGNS |= {"added": "+", "removed": "-", "changed": "~"}
_COUNTS = (("Create", "to create"), ("Replace", "to replace"), ("InPlace", "left in place"), ("Destroy", "to destroy"))


@contextmanager
def planning(form: str | None) -> Iterator[Rehearsal]:
    """Within it a command is rehearsed; then the plan is shown and the command ends (typer.Exit)."""
    with failing():
        if form not in (None, "", "json"):
            raise InvalidArgument(f"--format {form!r}: a plan is shown for people, or as json")
        context = click.get_current_context(silent=True)
        with Rehearsal(context.find_root().params.get("host") if context else None) as api:
            yield api
            answer = api.plan()
    if form == "json":
        show_objects([answer], "json")
    else:
        print("\n".join(lines(answer)))
    raise typer.Exit(1 if answer["Changes"] else 0)


@contextmanager
def failing() -> Iterator[None]:
    """Errors end the command with 255: 1 is an answer here."""
    from cli.main import in_our_words

    try:
        yield
    except CoveyError as error:
        print(f"cluster: {in_our_words(error.message)}", file=sys.stderr)
        raise typer.Exit(FAILED) from None
    except OSError as error:
        print(f"cluster: {error.filename}: {error.strerror}" if error.filename else f"cluster: {error}", file=sys.stderr)
        raise typer.Exit(FAILED) from None


def lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """The plan as people read it."""
    for kind in ("Networks", "Secrets", "Configs"):
        yield from (f"+ {kind.lower()[:-1]} {clean(name)}: create" for name in answer.get(kind) or ())
    for service in answer["Services"]:
        yield from _service(service)
    for task in answer.get("Displaced") or ():
        yield f"! task {clean(task['Name'])} on {clean(task['Node'])} would be stopped: {clean(task['Cause'])}"
    if not answer["Complete"]:
        yield "The change is too large to be followed to its end: what is shown is how it begins."
    if not answer["Changes"]:
        yield "Nothing to do."
    elif answer["Revision"]:
        yield f"Planned at revision {answer['Revision']}; nothing has been changed."
    else:
        yield "Nothing has been changed."


def _service(service: Mapping[str, Any]) -> Iterator[str]:
    action = service["Action"]
    word = "up to date" if action == "none" else action
    yield f"{_SIGNS[action]} service {clean(service['Name'])}: {word}{_rollout(service)}"
    if action != "remove":
        yield from (f"    {_edit(edit)}" for edit in service["Diff"])
    counts = service["Tasks"]
    said = [f"{counts[name]} {words}" for name, words in _COUNTS if counts[name]]
    if counts["Waiting"]:
        said.append(f"{counts['Waiting']} without a node")
    if action != "none":
        yield f"    tasks: {', '.join(said) or 'none'}"
        yield from _steps([step for step in service["Steps"] if step["Action"] != "keep"])
    explained = service.get("Explained")
    if explained and not counts["Waiting"]:
        yield from _elsewhere(explained["Nodes"])
    if explained and counts["Waiting"]:
        yield "    nodes:"
        yield from (f"      {line}" for line in nodes(explained["Nodes"]).splitlines())
        yield from (f"    {line}" for line in advice(explained))


def _elsewhere(verdicts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Why not on the other nodes."""
    refused = [one for one in verdicts if not one["Fits"]]
    yield from (f"    not on {clean(one['Hostname'])}: {clean(one['Reason'])}" for one in refused[:_NOT_ON])
    if len(refused) > _NOT_ON:
        yield f"    … nor on {len(refused) - _NOT_ON} more nodes"


def _rollout(service: Mapping[str, Any]) -> str:
    if not service["Batches"]:
        return ""
    each = service["Parallelism"]
    pace = f"{each} at a time" if each else "all at once"
    number = service["Batches"]
    return f" ({service['Order']}, {pace}, {number} {'batch' if number == 1 else 'batches'})"


def _edit(edit: Mapping[str, Any]) -> str:
    old, new = _value(edit.get("Old")), _value(edit.get("New"))
    said = {"added": new, "removed": old}.get(edit["Kind"], f"{old} → {new}")
    return f"{_SIGNS[edit['Kind']]} {clean(edit['Path'])}: {said}"


def _value(value: Any) -> str:
    return clipped(clean(json.dumps(value, ensure_ascii=False)), _WIDTH)


def _steps(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [_step(step) for step in steps[:LISTED]]
    if rows:
        yield from (f"    {line}" for line in table([""] * len(rows[0]), rows).splitlines()[1:])
    if len(steps) > LISTED:
        yield f"    … and {len(steps) - LISTED} more (--format json lists them all)"


def _step(step: Mapping[str, Any]) -> tuple[str, ...]:
    place = step.get("From") or ""
    if step["Action"] != "destroy":
        goal = step.get("To") or "(waits)"
        place = f"{place} → {goal}" if place else f"→ {goal}"
    batch = f"batch {step['Batch']}" if step.get("Batch") else ""
    if step.get("After"):
        batch += f" after {step['After']:g} s"
    return (f"{_SIGNS[step['Action']]} {step['Name']}", place, batch, str(step.get("Message") or ""))


def nodes(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """The table of an explanation: who is ranked how, and who is refused why."""
    rows = [
        (
            one["Hostname"],
            one.get("Rank", "-"),
            f"{one['Score']:.3f}" if one["Fits"] else "",
            one["Replicas"],
            one.get("Reason") or ("fits" if one["Fits"] else ""),
            one.get("Remedy") or "",
        )
        for one in verdicts[:LISTED]
    ]
    shown = table(("NODE", "RANK", "SCORE", "REPLICAS", "VERDICT", "REMEDY"), rows)
    more = len(verdicts) - LISTED
    return shown + (f"\n… and {more} more nodes (--format json lists them all)" if more > 0 else "")


def advice(explained: Mapping[str, Any]) -> Iterator[str]:
    """What would make it fit."""
    if explained.get("Advice"):
        yield "it would find a node if you"
        yield from (f"  - {clean(text)}" for text in explained["Advice"])
