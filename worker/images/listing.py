"""Which images a list or prune request means: the filters of the Engine API.

Pure: images, filters and now in, images out.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping, Sequence

from covey.clock import parse_rfc3339
from covey.errors import InvalidArgument
from worker.images.image import Image

Filters = Mapping[str, Sequence[str]]
_LIST_FILTERS = {"before", "dangling", "label", "label!", "reference", "since", "until"}
_PRUNE_FILTERS = {"dangling", "label", "label!", "until"}
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|us|µs|ns|m|s))+")
_DURATION_PIECE = re.compile(r"(\d+(?:\.\d+)?)(h|ms|us|µs|ns|m|s)")


def select(images: Sequence[Image], filters: Filters, resolve: Callable[[str], Image], now: float) -> list[Image]:
    """The images ``GET /images/json`` lists; a ``reference`` filter also narrows the names each one shows."""
    _check_known(filters, _LIST_FILTERS)
    chosen = [image for image in images if _matches(image, filters, now)]
    for name in filters.get("before", ()):
        limit = created_at(resolve(name))
        chosen = [image for image in chosen if created_at(image) < limit]
    for name in filters.get("since", ()):
        limit = created_at(resolve(name))
        chosen = [image for image in chosen if created_at(image) > limit]
    return chosen


def prunable(images: Sequence[Image], filters: Filters, now: float) -> list[Image]:
    """The images a prune may delete if no container uses them: dangling ones unless ``dangling`` is false."""
    _check_known(filters, _PRUNE_FILTERS)
    only_dangling = _boolean("dangling", filters["dangling"][0]) if filters.get("dangling") else True
    rest = {key: values for key, values in filters.items() if key != "dangling"}
    return [image for image in images if not (only_dangling and image.repo_tags) and _matches(image, rest, now)]


def created_at(image: Image) -> float:
    """Seconds since the epoch; 0 when the image does not say."""
    try:
        return parse_rfc3339(image.created) if image.created else 0.0
    except ValueError:
        return 0.0


def moment(text: str, now: float) -> float:
    """A time as the API takes it: Unix seconds, a date or RFC 3339 time (UTC), or a Go duration before ``now``."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if _DURATION.fullmatch(text):
        return now - sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PIECE.findall(text))
    try:
        if "T" in text and (text.endswith("Z") or re.search(r"[+-]\d\d:\d\d$", text)):
            return parse_rfc3339(text)
        return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()
    except ValueError:
        raise InvalidArgument(f"invalid filter 'until={text}': not a time or duration") from None


def name_matches(pattern: str, name: str) -> bool:
    """Whether a shell pattern, in which ``*`` and ``?`` stop at ``/``, matches a familiar name with or without tag."""
    expression = _glob(pattern)
    bare = name.partition("@")[0]
    head, colon, tail = bare.rpartition(":")
    repository = head if colon and "/" not in tail else bare
    return bool(expression.fullmatch(name) or expression.fullmatch(repository))


def label_matches(wanted: str, labels: Mapping[str, str]) -> bool:
    """``key`` or ``key=value``."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def _matches(image: Image, filters: Filters, now: float) -> bool:
    labels = filters.get("label", ())
    unwanted = filters.get("label!", ())
    if not all(label_matches(label, image.labels) for label in labels):
        return False
    if any(label_matches(label, image.labels) for label in unwanted):
        return False
    if filters.get("dangling") and _boolean("dangling", filters["dangling"][0]) == bool(image.repo_tags):
        return False
    if any(created_at(image) >= moment(text, now) for text in filters.get("until", ())):
        return False
    patterns = filters.get("reference", ())
    names = image.repo_tags + image.repo_digests
    return not patterns or any(name_matches(pattern, name) for pattern in patterns for name in names)


def _check_known(filters: Filters, known: set[str]) -> None:
    for key in filters:
        if key not in known:
            raise InvalidArgument(f"invalid filter '{key}'; known are {', '.join(sorted(known))}")


def _boolean(key: str, text: str) -> bool:
    if text.lower() in ("1", "true", "t"):
        return True
    if text.lower() in ("0", "false", "f"):
        return False
    raise InvalidArgument(f"invalid filter '{key}={text}': not true or false")


def _glob(pattern: str) -> re.Pattern[str]:
    parts = []
    rest = pattern
    while rest:
        character, rest = rest[0], rest[1:]
        if character == "*":
            parts.append("[^/]*")
        elif character == "?":
            parts.append("[^/]")
        elif character == "[" and "]" in rest[1:]:
            inner, _, rest = rest.partition("]")
            parts.append(f"[{'^' if inner[0] in '^!' else ''}{re.escape(inner.lstrip('^!')).replace(chr(92) + '-', '-')}]")
        else:
            parts.append(re.escape(character))
    try:
        return re.compile("".join(parts))
    except re.error:
        raise InvalidArgument(f"invalid filter 'reference={pattern}': bad pattern") from None
