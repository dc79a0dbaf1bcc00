"""Placement constraints: what they mean, and what a wrong one is told."""

import pytest

from covey.model.filters import parse_constraint

NODE = {
    "node.id": "abc",
    "node.hostname": "W1",
    "node.role": "worker",
    "node.ip": "192.0.2.17",
    "node.labels.zone": "East",
    "node.labels.cores": "12",
    "engine.labels.os": "Debian 12",
}


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("node.labels.zone==east", True),
        ("node.labels.zone != east", False),
        ("node.labels.none != east", True),
        ("node.hostname == w1", True),
        ("NODE.ROLE==worker", True),
        ("Node.Labels.zone==east", True),
        ("node.labels.Zone==east", False),
        ("engine.labels.os==debian 12", True),
        ("node.ip==192.0.2.17", True),
        ("node.ip==192.0.2.0/24", True),
        ("node.ip!=192.0.2.0/24", False),
        ("node.ip==2001:db8::/32", False),
        ("node.ip in (198.51.100.1, 192.0.2.32/28)", False),
        ("node.ip in (198.51.100.1, 192.0.2.16/29)", True),
        ("node.labels.zone in (west, east)", True),
        ("node.labels.zone in west,north", False),
        ("node.labels.zone not in (west, north)", True),
        ("node.labels.cores > 8", True),
        ("node.labels.cores<8.5", False),
        ("node.labels.zone > 1", False),
        ("node.labels.none < 1", False),
        ("node.labels.zone =~ ^ea", True),
        ("node.hostname=~w[2-9]$", False),
    ],
)
def test_what_constraints_allow(text: str, allowed: bool) -> None:
    constraint = parse_constraint(text)
    assert constraint.matches(NODE) is allowed
    assert parse_constraint(str(constraint)) == constraint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("node.role~manager", "is not of the form"),
        ("node.colour==red", "unknown key 'node.colour'"),
        ("node.labels.==red", "unknown key"),
        ("node.hostname==", "compares 'node.hostname' with nothing"),
        ("node.role==boss", "'manager' or 'worker', not 'boss'"),
        ("node.ip==somewhere", "no address"),
        ("node.labels.a==x,y", "write 'node.labels.a in (x,y)'"),
        ("node.labels.a in (x,)", "no list of values"),
        ("node.labels.a > many", "no number"),
        ("node.labels.a =~ [", "no regular expression"),
        ("node.labels.a =~ (a|b)*c", "repetitions"),
        ("node.labels.a =~ a*a*a*a*a*b", "repetitions"),
    ],
)
def test_what_a_wrong_constraint_is_told(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_constraint(text)
    assert said in str(caught.value)
    assert text in str(caught.value)
