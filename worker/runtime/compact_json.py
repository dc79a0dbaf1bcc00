"""JSON for processes that are many: the standard library's C scanner and encoder without the Python around them.

A shim is a fork of the zygote, and every page that its code merely touches becomes its own (reference counts stand in the
objects). ``json.loads`` and ``json.dumps`` touch some 330 KB, these two 80.
"""

from __future__ import annotations

import _json

from worker.kernel.bare import Any


class _AsUsual:
    """How ``json.loads`` reads."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = {"-Infinity": -float("inf"), "Infinity": float("inf"), "NaN": float("inf") - float("inf")}.__getitem__


_scan: Any = _json.make_scanner(_AsUsual)  # type: ignore[arg-type]
_encode: Any = _json.make_encoder(None, None, _json.encode_basestring_ascii, None, ": ", ", ", False, False, True)  # type: ignore[arg-type]


def dumps(value: Any) -> bytes:
    return "".join(_encode(value, 0)).encode("ascii")


def loads(data: bytes) -> Any:
    """Raises ValueError for what is no JSON."""
    text = data.decode()
    try:
        value, end = _scan(text, 0)
    except (StopIteration, SystemError):
        # The latter is a fault whose words are in a module that is not loaded.
        end = -1
    if end != len(text):
        # White space around, or a fault that has to be told: the long way knows both.
        import json

        value = json.loads(text)
    return value
