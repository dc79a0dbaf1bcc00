"""What users write in options: key=value pairs, comma lists, addresses, environment. Pure, but for files that are named.

Durations, sizes and CPUs are read by cli.stack.units, which compose files share.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from covey.errors import InvalidArgument


def pairs(given: Iterable[str] | None, option: str) -> dict[str, str]:
    """``key=value`` texts as a mapping; a key alone has the empty value."""
    found: dict[str, str] = {}
    for text in given or ():
        key, _, value = text.partition("=")
        if not key:
            raise InvalidArgument(f"{option} {text!r} is not of the form key=value")
        found[key] = value
    return found


def fields(text: str, option: str) -> list[tuple[str, str | None]]:
    """``type=bind,source=/a,readonly`` as pairs in order, read as CSV so that values may be quoted; keys in lower case."""
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise InvalidArgument(f"{option} {text!r}: {error}") from None
    out: list[tuple[str, str | None]] = []
    for word in rows[0] if rows else []:
        key, equals, value = word.partition("=")
        out.append((key.strip().lower(), value if equals else None))
    return out


def environment(
    given: Iterable[str] | None, files: Iterable[str] | None, variables: Mapping[str, str] | None = None
) -> list[str]:
    """``--env-file`` lines, then ``--env`` over them, as KEY=value; a KEY alone takes the caller's value or is left out."""
    variables = os.environ if variables is None else variables
    found: dict[str, str] = {}
    texts = [line for path in files or () for line in _lines(path)]
    for text in [*texts, *(given or ())]:
        key, equals, value = text.partition("=")
        if not key or key != key.strip():
            raise InvalidArgument(f"--env {text!r} is not of the form KEY=value")
        if equals:
            found[key] = value
        elif key in variables:
            found[key] = variables[key]
    return [f"{key}={value}" for key, value in found.items()]


def _lines(path: str) -> list[str]:
    """The lines of an env file as Docker reads one: quotes are part of the value."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidArgument(f"cannot read env file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"env file {path}: not UTF-8 text") from None
    return [line.lstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def host_entries(given: Iterable[str] | None, option: str = "--host") -> list[str]:
    """``name:address`` texts as ``address name``, the form of ContainerSpec.Hosts."""
    out = []
    for text in given or ():
        name, separator, address = text.partition("=" if "=" in text else ":")
        if not separator or not name or not address:
            raise InvalidArgument(f"{option} {text!r} is not of the form host:address")
        out.append(f"{address.strip('[]')} {name}")
    return out
