"""``cluster service restart | stop | start | history``: what Docker's command does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from cli.connection import client
from cli.flags import Format, References
from cli.output import Listing, since
from cli.waiting import Detach, Quietly, Timeout, Wait

HISTORY = Listing({name.upper(): name for name in ("Version", "Created", "Image", "Replicas", "Changed")}, quiet="Version")


def register(app: typer.Typer) -> None:
    """Add the commands to those of ``cluster service``."""
    app.command("restart")(restart)
    app.command("stop")(stop)
    app.command("start")(start)
    app.command("history")(history)


def restart(services: References, detach: Detach = False, quiet: Quietly = False, timeout: Timeout = None) -> None:
    """Replace all tasks of services, as their update policies say."""
    _verb("restart", services, detach, quiet, timeout)


def stop(services: References, detach: Detach = False, quiet: Quietly = False, timeout: Timeout = None) -> None:
    """Stop all tasks of services. They keep their number of replicas for `start`."""
    _verb("stop", services, detach, quiet, timeout)


def start(services: References, detach: Detach = False, quiet: Quietly = False, timeout: Timeout = None) -> None:
    """Run services again that were stopped."""
    _verb("start", services, detach, quiet, timeout)


def _verb(verb: str, services: Sequence[str], detach: bool, quiet: bool, timeout: str | None) -> None:
    with client() as api:
        ids = [str(api.get(f"/services/{name}")["ID"]) for name in services]
        wait = Wait(api, ids, detach=detach, quiet=quiet, timeout=timeout)
        for name, service_id in zip(services, ids, strict=True):
            api.post(f"/covey/services/{service_id}/{verb}")
            print(name, flush=True)
        wait.end(ids)


def history(service: str, form: Format = None) -> None:
    """List the specs a service had, for `service rollback --to VERSION`."""
    with client() as api:
        found = api.get(f"/covey/services/{service}/history")
    before: Mapping[str, Any] = {}
    rows = []
    for one in found:
        rows.append(_row(one, before))
        before = one["Spec"]
    HISTORY.show(rows[::-1], form=form)


def _row(one: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    spec = one["Spec"]
    mode = spec.get("Mode") or {}
    container = (spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}
    return {
        "Version": f"{one['Version']}{' (current)' if one['Current'] else ''}",
        "Created": since(one["CreatedAt"]),
        "Image": str(container.get("Image") or "").partition("@")[0],
        "Replicas": (mode.get("Replicated") or {}).get("Replicas", "") if "Replicated" in mode else "",
        "Changed": ", ".join(changed(before, spec)[:4]) if before else "",
    }


def changed(before: Any, after: Any, path: str = "") -> list[str]:
    """Dotted paths of what differs, the last two names of each."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = [*before, *(key for key in after if key not in before)]
        return [found for key in keys for found in changed(before.get(key), after.get(key), f"{path}.{key}")]
    return [] if before == after else [".".join(path.strip(".").split(".")[-2:])]
