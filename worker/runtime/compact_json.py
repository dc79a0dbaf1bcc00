"""JSON for processes that are many: the standard library's C scanner and encoder without the Python around them.

A shim is a fork of the zygote, and every page that its code merely touches becomes its own (reference counts stand in the
objects). ``json.loads`` and ``json.dumps`` touch some 330 KB, these two 80.
"""

from __future__ import annotations

import json
import json.decoder
import json.encoder
import json.scanner
from typing import Any

_scan: Any = json.scanner.make_scanner(json.decoder.JSONDecoder())  # type: ignore[arg-type]
_encode = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
    None, None, json.encoder.encode_basestring_ascii, None, ": ", ", ", False, False, True
)


def dumps(value: Any) -> bytes:
    return "".join(_encode(value, 0)).encode("ascii")


def loads(data: bytes) -> Any:
    """Raises ValueError for what is no JSON."""
    text = data.decode()
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        end = -1
    # White space around, or a fault that has to be told: the long way knows both.
    return value if end == len(text) else json.loads(text)
