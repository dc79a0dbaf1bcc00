"""The daemon a command talks to: what ``-H`` said, else the environment."""

from __future__ import annotations

import json
from collections.abc import Iterable

import click

from covey.engine_api.light import Client
from covey.errors import InvalidArgument


def client() -> Client:
    """A client of the daemon the user named with ``-H``, COVEY_HOST or DOCKER_HOST."""
    context = click.get_current_context(silent=True)
    return Client(context.find_root().params.get("host") if context else None)


def filters(given: Iterable[str] | None, **more: str) -> str | None:
    """``--filter key=value`` options as the API's filters parameter, with further filters; None when there are none."""
    found: dict[str, list[str]] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not key.strip() or not equals:
            raise InvalidArgument(f"invalid filter {text!r}: write --filter key=value")
        found.setdefault(key.strip().lower(), []).append(value.strip())
    for key, value in more.items():
        found.setdefault(key, []).append(value)
    return json.dumps({key: dict.fromkeys(values, True) for key, values in found.items()}) if found else None
