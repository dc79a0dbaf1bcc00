"""JSON files of the image room that carry a checksum of themselves, so that every flipped bit in one is noticed.

Decides only the form: the document as ``json.dumps`` with one space of indentation writes it, with ``covey.sum`` as its
last key. What is in the documents is others'.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SUM = "covey.sum"


def seal(document: Mapping[str, Any]) -> bytes:
    """The bytes of the file."""
    digest = hashlib.sha256(_encoded(document)).hexdigest()
    return _encoded({**document, SUM: f"sha256:{digest}"})


def is_sealed(document: Mapping[str, Any]) -> bool:
    return SUM in document


def unseal(data: bytes) -> dict[str, Any]:
    """The document of such a file. ValueError when a single bit of it is not as ``seal`` wrote it."""
    document = parse(data)
    if document.pop(SUM, None) is None:
        raise ValueError("it has no checksum")
    if seal(document) != data:
        raise ValueError("it is not what its checksum says")
    return document


def parse(data: bytes) -> dict[str, Any]:
    """A JSON object, whether its checksum is right or not. ValueError when it is none."""
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    return document


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode()
