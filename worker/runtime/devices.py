"""The device nodes and links every container has (OCI config-linux.md, "Default Devices"), and device rules as text.

Data and pure functions; the nodes are made by init.
"""

from __future__ import annotations

from worker.kernel.bare import Any

DEFAULT: tuple[dict[str, Any], ...] = tuple(
    {"path": f"/dev/{name}", "type": "c", "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0}
    for name, major, minor in (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
)

LINKS: tuple[tuple[str, str], ...] = (
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)

ALWAYS_ALLOWED: tuple[dict[str, Any], ...] = (
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2))
    ),
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
    {"allow": True, "type": "c", "major": 5, "minor": 1, "access": "rwm"},
)
"""What the default devices need: making nodes, the six above, ptmx, the pts range, the console."""


def single_rules(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """An OCI device rule as the kernel's words can have it.

    To the kernel "a" is everything, whatever stands behind it: one for certain numbers or ways of access is two rules.
    """
    if (entry.get("type") or "a") != "a":
        return [entry]
    numbers = [entry.get(key) for key in ("major", "minor")]
    if all(number is None or number < 0 for number in numbers) and set(entry.get("access") or "rwm") >= set("rwm"):
        return [entry]
    return [{**entry, "type": kind} for kind in ("b", "c")]


def rule(entry: dict[str, Any]) -> str:
    """A rule of ``single_rules`` in the words of cgroup v1's devices.allow and devices.deny."""
    kind = entry.get("type") or "a"
    if kind == "a":
        return "a"
    major, minor = entry.get("major"), entry.get("minor")
    first = "*" if major is None or major < 0 else major
    second = "*" if minor is None or minor < 0 else minor
    return f"{kind} {first}:{second} {entry.get('access') or 'rwm'}"
