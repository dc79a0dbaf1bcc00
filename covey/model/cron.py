"""A job that runs by a schedule: what a spec says of it. Pure.

Ours, in the job's spec: ``Mode.Cron`` beside ``ReplicatedJob`` or ``GlobalJob``, or the labels ``covey.cron.…``, which survive
clients that know Docker's fields only, so that these show and update it as the job it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from covey.model.schedule import Schedule, parse_schedule

PREFIX = "covey.cron."
OVERLAPS = ("allow", "forbid", "replace")
_FIELDS = {
    "schedule": "Schedule",
    "timezone": "TimeZone",
    "overlap": "Overlap",
    "history": "History",
    "failed-history": "FailedHistory",
    "catch-up": "CatchUp",
}


class Cron(NamedTuple):
    """``overlap``: what becomes of a run that is due while another goes on: allow, forbid (it waits) or replace (it ends).
    ``history``, ``failed_history``: runs kept. ``catch_up``: how many runs that were missed are made up for."""

    schedule: Schedule
    zone: str = "UTC"
    overlap: str = "forbid"
    history: int = 3
    failed_history: int = 1
    catch_up: int = 1


def parse_cron(spec: Mapping[str, Any]) -> Cron | None:
    """Of a service spec; None for a service without a schedule. Raises ValueError that names the place."""
    labels = spec.get("Labels") or {}
    field = (spec.get("Mode") or {}).get("Cron")
    given: dict[str, str] = {key: str(labels[PREFIX + key]) for key in _FIELDS if PREFIX + key in labels}
    if unknown := sorted(key for key in labels if key.startswith(PREFIX) and key[len(PREFIX) :] not in _FIELDS):
        raise ValueError(f"label {unknown[0]} is unknown: known are {', '.join(PREFIX + key for key in _FIELDS)}")
    if isinstance(field, Mapping):
        if unknown := sorted(set(field) - set(_FIELDS.values())):
            raise ValueError(f"Mode.Cron.{unknown[0]} is unknown: known are {', '.join(_FIELDS.values())}")
        given |= {key: str(field[name]) for key, name in _FIELDS.items() if field.get(name) is not None}
    elif field is not None:
        raise ValueError("Mode.Cron must be an object with a Schedule")
    if not given and field is None:
        return None
    if "schedule" not in given:
        raise ValueError("a cron job needs a schedule: Mode.Cron.Schedule or the label covey.cron.schedule")
    if not {"ReplicatedJob", "GlobalJob"} & set(spec.get("Mode") or {}):
        raise ValueError("a schedule goes with a job: give Mode.ReplicatedJob or Mode.GlobalJob beside it")
    overlap = given.get("overlap") or "forbid"
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap {overlap!r} is none of {', '.join(OVERLAPS)}")
    return Cron(
        schedule=parse_schedule(given["schedule"]),
        zone=given.get("timezone") or "UTC",
        overlap=overlap,
        history=_natural(given, "history", 3),
        failed_history=_natural(given, "failed-history", 1),
        catch_up=_natural(given, "catch-up", 1),
    )


def _natural(given: Mapping[str, str], key: str, default: int) -> int:
    text = given.get(key, str(default))
    if not text.isdecimal():
        raise ValueError(f"{key} {text!r} is not a number, 0 or more")
    return int(text)
