"""What lists and inspections look like: tables, JSON, templates, ids, ages and sizes as Docker users know them.

It must not know where the objects come from.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Row = Mapping[str, Any]


def short_id(text: str, whole: bool = False) -> str:
    """The first 12 digits of an id, without the digest's name."""
    return text if whole else text.removeprefix("sha256:")[:12]


_AGES = ((60, 1, "second"), (3600, 60, "minute"), (48 * 3600, 3600, "hour"), (14 * 86400, 86400, "day"))
_LONG_AGES = ((60 * 86400, 7 * 86400, "week"), (2 * 365 * 86400, 30 * 86400, "month"), (float("inf"), 365 * 86400, "year"))


def age(seconds: float) -> str:
    """``4 minutes``, in Docker's steps."""
    if seconds < 1:
        return "Less than a second"
    if 60 <= seconds < 120:
        return "About a minute"
    if 3600 <= seconds < 7200:
        return "About an hour"
    for limit, unit, name in (*_AGES, *_LONG_AGES):
        if seconds < limit:
            count = int(seconds // unit)
            return f"{count} {name}{'' if count == 1 else 's'}"
    raise AssertionError("the table of ages has no end")


def moment(text: str | int | float | None) -> datetime | None:
    """An RFC 3339 time of the API or seconds since 1970; None for none."""
    if isinstance(text, (int, float)):
        return datetime.fromtimestamp(text, UTC)
    if not text or text.startswith("0001-01-01"):
        return None
    try:
        # fromisoformat takes microseconds at most, the API gives nanoseconds.
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    except ValueError:
        return None


def since(text: str | int | float | None, now: datetime | None = None) -> str:
    """``4 minutes ago``; empty for no time."""
    at = moment(text)
    return f"{age(((now or datetime.now(UTC)) - at).total_seconds())} ago" if at else ""


def size(count: float) -> str:
    """``12.3MB`` by powers of 1000, three digits, as image sizes are shown."""
    return _scaled(count, 1000, ("B", "kB", "MB", "GB", "TB", "PB"), 3)


def binary_size(count: float) -> str:
    """``1.952GiB`` by powers of 1024, four digits, as memory is shown."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), 4)


def _scaled(count: float, base: int, units: Sequence[str], digits: int) -> str:
    place = 0
    while count >= base and place < len(units) - 1:
        count /= base
        place += 1
    return f"{count:.{digits}g}{units[place]}" if round(count) < 1000 else f"{count:.0f}{units[place]}"


def clipped(text: str, width: int) -> str:
    """``text`` cut to ``width`` with an ellipsis."""
    return text if len(text) <= width else text[: width - 1] + "…"


def labels_text(labels: Mapping[str, Any] | None) -> str:
    """``a=1,b=2``."""
    return ",".join(f"{key}={value}" for key, value in (labels or {}).items())


def clean(text: str) -> str:
    """``text`` without control characters, so that nothing a container or node says can steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" if letter != "\n" else " " for letter in text)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Columns padded as wide as they need, three spaces apart."""
    cells = [[clean(str(cell)) for cell in row] for row in rows]
    lines = [list(head), *cells]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return "\n".join("   ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


class Listing:
    """How one noun's list is shown. ``columns``: head → the row's field; rows hold every field a template may name.

    ``tabular`` makes of the rows what a table shows a person; other forms give them as they are.
    """

    def __init__(
        self,
        columns: Mapping[str, str],
        quiet: str = "ID",
        titles: Mapping[str, str] | None = None,
        tabular: Callable[[Sequence[Row]], Sequence[Row]] = lambda rows: rows,
    ) -> None:
        self._columns = columns
        self._tabular = tabular
        self._quiet = quiet
        self._titles = {**{name: title for title, name in columns.items()}, **(titles or {})}

    def show(self, rows: Sequence[Row], *, quiet: bool = False, form: str | None = None) -> None:
        """Print ``rows``: the ids only, a table, JSON lines, or a template a row."""
        if quiet and not form:
            lines = "\n".join(str(row[self._quiet]) for row in rows)
        elif not form or form == "table":
            shown = self._tabular(rows)
            lines = table(list(self._columns), [[row.get(name, "") for name in self._columns.values()] for row in shown])
        elif form == "json" or form.replace(" ", "") == "{{json.}}":
            lines = "\n".join(json.dumps(dict(row), ensure_ascii=False) for row in rows)
        else:
            lines = self._template(form, rows)
        if lines:
            print(lines)

    def _template(self, form: str, rows: Sequence[Row]) -> str:
        from cli.templates import Template

        if form.startswith("table "):
            template = Template(form.removeprefix("table "), strict=True)
            head = [self._titles.get(name, name.upper()) for name in template.fields]
            return table(head, [template.render_fields(row) for row in self._tabular(rows)])
        template = Template(form, strict=True)
        return "\n".join(template.render(row) for row in rows)


def show_objects(objects: Sequence[Any], form: str | None) -> None:
    """An inspection: a JSON list, JSON lines (``json``), or a template an object."""
    if not form:
        print(json.dumps(list(objects), indent=4, ensure_ascii=False))
        return
    if form == "json":
        for item in objects:
            print(json.dumps(item, ensure_ascii=False, separators=(",", ":")))
        return
    from cli.templates import Template

    template = Template(form)
    for item in objects:
        print(template.render(item))


def warn(text: str) -> None:
    """A warning on stderr."""
    print(f"cluster: warning: {text}", file=sys.stderr)


def each(references: Sequence[str], act: Callable[[str], Any]) -> int:
    """Do something to every object named, going on after errors; prints each name that went well. The exit status."""
    from covey.errors import CoveyError, Unavailable

    status = 0
    for reference in references:
        try:
            act(reference)
        except CoveyError as error:
            if isinstance(error, Unavailable) and len(references) == 1:
                raise
            print(f"cluster: {error.message}", file=sys.stderr)
            status = 1
        else:
            print(reference)
    return status
