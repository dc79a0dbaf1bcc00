"""Which system calls a container may make: the profile that its security options choose.

Pure but for reading the shipped profile, which is Docker's, as data (seccomp-default.json; origin moby, Apache-2.0). What
of a profile applies on this machine is worker.runtime.seccomp_compile's.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from pathlib import Path

from covey.errors import InvalidArgument

DEFAULT_FILE = Path(__file__).with_name("seccomp-default.json")


@cache
def default_text() -> str:
    """The shipped profile."""
    return DEFAULT_FILE.read_text(encoding="utf-8")


def chosen(security_options: Collection[str], privileged: bool) -> str | None:
    """The profile's JSON text that ``--security-opt`` and ``--privileged`` ask for; None is unconfined.

    The CLI sends the text of a profile's file, not its path. Raises InvalidArgument for other text.
    """
    wanted = ""
    for option in security_options:
        key, _, value = option.partition("=")
        if not value:
            key, _, value = option.partition(":")
        if key == "seccomp":
            wanted = value
    if wanted == "unconfined" or (privileged and not wanted):
        return None
    if wanted in ("", "builtin", "default"):
        return default_text()
    try:
        json.loads(wanted)
    except ValueError as error:
        raise InvalidArgument(f"Decoding seccomp profile failed: {error}: send the profile's JSON text") from None
    return wanted
