"""Placement constraints: ``node.labels.zone == east``. Parses them and says whether a node's attributes match.

Pure. Keys and matching of == and != follow SwarmKit's manager/constraint (documented under `docker service create
--constraint`): values compare without regard to case, a missing label is the empty string, ``node.ip`` takes an address or a
network in CIDR form. The operators in, not in, <, > and =~ are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import msgspec

#: Exact keys; the two prefixes below take any label name behind them.
KEYS = ("node.id", "node.hostname", "node.ip", "node.role", "node.platform.os", "node.platform.arch")
LABEL_PREFIXES = ("node.labels.", "engine.labels.")

_FORM = re.compile(
    r"^\s*(?P<key>[A-Za-z][\w.\-/]*)(?:\s*(?P<op>==|!=|=~|<|>)\s*|\s+(?P<word>not\s+in|in)\b\s*)(?P<value>.*?)\s*$"
)
_VALUE = re.compile(r"[\w.:\-+/*@%^$()?\[\]\\| ]*")
_LIST = re.compile(r"\(?(?P<items>[^()]*)\)?")
#: Repeated groups and many repetitions can make a search endless, and a placement pass cannot be interrupted.
_REPEATED_GROUP = re.compile(r"\)[*+?]")
_REPETITION = re.compile(r"[*+?]")
_LONGEST = 256
_REPETITIONS = 4


class Constraint(msgspec.Struct, frozen=True):
    """``key`` as in KEYS or with a label prefix; ``operator`` ==, !=, in, not in, <, > or =~; ``value`` as written.

    Of in and not in, the value is the list's items with a comma between them.
    """

    key: str
    operator: str
    value: str

    def __str__(self) -> str:
        value = f"({self.value})" if self.operator in ("in", "not in") else self.value
        return f"{self.key} {self.operator} {value}"

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Whether a node with these attributes (see scheduler/placement/constraints.py) is allowed."""
        return _OPERATORS[self.operator](self.key, attributes.get(self.key, ""), self.value)


def _equal(key: str, held: str, value: str) -> bool:
    if key != "node.ip":
        return held.lower() == value.lower()
    try:
        return ip_address(held) in _network(value)
    except ValueError:
        return False


@lru_cache(maxsize=1024)
def _network(value: str) -> IPv4Network | IPv6Network:
    return ip_network(value, strict=False)


def _among(key: str, held: str, value: str) -> bool:
    return any(_equal(key, held, item) for item in value.split(","))


def _compare(held: str, value: str) -> int:
    """-1, 0 or 1; 0 also where one of them is no number: then neither < nor > holds."""
    try:
        left, right = float(held), float(value)
    except ValueError:
        return 0
    return (left > right) - (left < right)


def _found(key: str, held: str, value: str) -> bool:
    return re.search(value, held, re.IGNORECASE) is not None


_OPERATORS: Mapping[str, Callable[[str, str, str], bool]] = {
    "==": _equal,
    "!=": lambda key, held, value: not _equal(key, held, value),
    "in": _among,
    "not in": lambda key, held, value: not _among(key, held, value),
    "<": lambda key, held, value: _compare(held, value) < 0,
    ">": lambda key, held, value: _compare(held, value) > 0,
    "=~": _found,
}


def parse_constraint(text: str) -> Constraint:
    """The constraint ``text`` says; ValueError names what is wrong with it and what would be right."""
    form = _FORM.match(text)
    if form is None or not _VALUE.fullmatch(form["value"].replace(",", "")):
        raise ValueError(
            f"constraint {text!r} is not of the form 'key==value' or 'key!=value'"
            " (nor 'key in (a, b)', 'key not in (a, b)', 'key<number', 'key>number', 'key=~pattern')"
        )
    key, operator, value = form["key"], form["op"] or " ".join(form["word"].split()), form["value"]
    key = _known(text, key)
    if not value:
        raise ValueError(f"constraint {text!r} compares {key!r} with nothing; write 'key{operator}value'")
    if operator in ("in", "not in"):
        value = _items(text, value)
    elif "," in value and operator != "=~":
        raise ValueError(f"constraint {text!r} compares {key!r} with several values; write '{key} in ({value})'")
    _check_value(text, key, operator, value)
    return Constraint(key, operator, value)


def _known(text: str, key: str) -> str:
    """The key as nodes name it: only the names of labels depend on case."""
    known = key.lower()
    if known in KEYS:
        return known
    for prefix in LABEL_PREFIXES:
        if known.startswith(prefix) and len(known) > len(prefix):
            return prefix + key[len(prefix) :]
    allowed = ", ".join((*KEYS, *(f"{prefix}<name>" for prefix in LABEL_PREFIXES)))
    raise ValueError(f"constraint {text!r} has the unknown key {key!r}; known are {allowed}")


def _items(text: str, value: str) -> str:
    form = _LIST.fullmatch(value)
    items = [item.strip() for item in form["items"].split(",")] if form is not None else []
    if not all(items) or not items:
        raise ValueError(f"constraint {text!r} has no list of values: write 'key in (a, b)'")
    return ",".join(items)


def _check_value(text: str, key: str, operator: str, value: str) -> None:
    compared = () if operator in ("<", ">", "=~") else tuple(value.split(","))
    for item in compared:
        if key == "node.role" and item.lower() not in ("manager", "worker"):
            raise ValueError(f"constraint {text!r}: node.role is 'manager' or 'worker', not {item!r}")
        if key == "node.ip":
            try:
                _network(item)
            except ValueError:
                raise ValueError(f"constraint {text!r}: {item!r} is no address, nor a network like 192.0.2.0/24") from None
    if operator in ("<", ">"):
        try:
            float(value)
        except ValueError:
            raise ValueError(f"constraint {text!r} compares with {value!r}, which is no number") from None
    if operator == "=~":
        _check_pattern(text, value)


def _check_pattern(text: str, pattern: str) -> None:
    if len(pattern) > _LONGEST or _REPEATED_GROUP.search(pattern) or len(_REPETITION.findall(pattern)) > _REPETITIONS:
        most = f"at most {_LONGEST} characters and {_REPETITIONS} repetitions"
        raise ValueError(f"constraint {text!r}: a pattern has {most}, none of them of a group")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"constraint {text!r}: {pattern!r} is no regular expression ({error})") from None


def parse_constraints(texts: Iterable[str]) -> tuple[Constraint, ...]:
    """All of ``texts`` parsed; ValueError of the first that is wrong."""
    return tuple(parse_constraint(text) for text in texts)
