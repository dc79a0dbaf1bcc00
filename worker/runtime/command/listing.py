"""The verbs that only look: state, list and ps."""

from __future__ import annotations

import json
import sys
from typing import Any

from worker.runtime.command.arguments import Arguments, UsageError
from worker.runtime.command.report import CommandError, Log
from worker.runtime.command.store import Entry, Missing, Store

_COLUMNS = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")


def state(arguments: Arguments, log: Log) -> int:
    """The State of the specification, with what runc adds: rootfs, created, owner."""
    body = describe(Store(arguments.globals["root"]).find(arguments.operands["id"]))
    sys.stdout.write(json.dumps(body, indent=2) + "\n")
    return 0


def describe(entry: Entry) -> dict[str, Any]:
    """A container's State (spec runtime.md, "State"); pid is 0 when there is no process."""
    record, status = entry.record, entry.status()
    return {
        "ociVersion": record["ociVersion"],
        "id": record["id"],
        "pid": 0 if status in ("stopped", "creating") else record["pid"],
        "status": status,
        "bundle": record["bundle"],
        "rootfs": record["rootfs"],
        "created": record["created"],
        "annotations": record["annotations"],
        "owner": record["owner"],
    }


def list_(arguments: Arguments, log: Log) -> int:
    form = _form(arguments)
    store = Store(arguments.globals["root"])
    found = []
    for ident in store.ids():
        try:
            found.append(describe(store.find(ident)))
        except Missing:
            # Deleted meanwhile.
            continue
    if arguments.options["quiet"]:
        sys.stdout.write("".join(f"{body['id']}\n" for body in found))
        return 0
    if form == "json":
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    rows = [_COLUMNS] + [
        (body["id"], str(body["pid"]), body["status"], body["bundle"], body["created"], body["owner"]) for body in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        sys.stdout.write("   ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() + "\n")
    return 0


def ps(arguments: Arguments, log: Log) -> int:
    """Pids as JSON, or the lines of the machine's ps (with its options) that are of the container."""
    form = _form(arguments)
    entry = Store(arguments.globals["root"]).find(arguments.operands["id"])
    if entry.status() == "stopped":
        raise CommandError(f"container not running: {entry.ident!r} is stopped")
    pids = entry.group().pids()
    if form == "json":
        sys.stdout.write(json.dumps(pids) + "\n")
        return 0
    import subprocess

    options = arguments.operands["options"] or ["-ef"]
    try:
        found = subprocess.run(["ps", *options], stdout=subprocess.PIPE, check=True)
    except FileNotFoundError:
        raise CommandError("there is no ps on this machine: install procps, or use --format json") from None
    except subprocess.CalledProcessError as error:
        raise CommandError(f"ps {' '.join(options)} failed with {error.returncode}") from None
    head, *lines = found.stdout.decode("utf-8", "replace").splitlines()
    if "PID" not in head.split():
        raise CommandError(f"ps {' '.join(options)} shows no PID column, by which a container's lines are found")
    column = head.split().index("PID")
    wanted = {str(pid) for pid in pids}
    mine = [line for line in lines if line.split()[column : column + 1] and line.split()[column] in wanted]
    sys.stdout.write("\n".join([head, *mine]) + "\n")
    return 0


def _form(arguments: Arguments) -> str:
    form = arguments.options["format"] or "table"
    if form not in ("table", "json"):
        raise UsageError(f"--format {form!r} is unknown: use table or json")
    return str(form)
