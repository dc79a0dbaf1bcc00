"""Parses ``WWW-Authenticate``: which ways in a registry offers.

Pure, and strict where it matters: what is not clearly a challenge is none. Grammar: RFC 9110, 11.6.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"\s*,*\s*({_TOKEN})(?=[\s,]|$)")
_PARAMETER = re.compile(rf'[\s,]*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?=,|$)')
_TOKEN68 = re.compile(r"\s+[A-Za-z0-9._~+/-]+=*\s*(?=,|$)")
LIMIT = 16 * 1024


@dataclass(frozen=True, slots=True)
class Challenge:
    """``scheme`` in lower case; ``parameters`` by lower-case name, the first of each."""

    scheme: str
    parameters: Mapping[str, str]


def parse(values: Iterable[str]) -> list[Challenge]:
    """The challenges of all ``WWW-Authenticate`` fields of an answer; what cannot be read ends its field."""
    found: list[Challenge] = []
    for value in values:
        found += _one_field(value[:LIMIT])
    return found


def _one_field(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = 0
    while match := _SCHEME.match(text, at):
        at = match.end()
        parameters: dict[str, str] = {}
        blob = _TOKEN68.match(text, at)
        if blob:
            at = blob.end()
        while parameter := _PARAMETER.match(text, at):
            name, quoted, plain = parameter.groups()
            parameters.setdefault(name.lower(), plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
            at = parameter.end()
        found.append(Challenge(match.group(1).lower(), parameters))
    return found
