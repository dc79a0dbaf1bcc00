"""The JSON objects that options name by file."""

from __future__ import annotations

import json
import sys
from typing import Any

from worker.runtime.command.report import CommandError


def json_object(option: str, source: str, form: str, *, stdin: bool = False) -> dict[str, Any]:
    """What is in file ``source``, with ``stdin`` in ours for "-". Raises CommandError, which says ``form``: what it must be."""
    try:
        if stdin and source == "-":
            body = json.loads(sys.stdin.buffer.read())
        else:
            with open(source, "rb") as file:
                body = json.load(file)
    except OSError as error:
        raise CommandError(f"{option} {source}: {error.strerror}") from None
    except ValueError as error:
        raise CommandError(f"{option} {source} is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise CommandError(f"{option} {source} must be {form}")
    return body
