"""What a subtree of processes is and what memory it holds. Reads /proc; ends nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process of the machine: ``inner`` are its pids from the outermost namespace to its own."""

    pid: int
    parent: int
    name: str
    argv: str
    inner: tuple[int, ...]


def descendants(root: int) -> list[Process]:
    """Every live process below ``root``, whatever namespace it is in; ``root`` itself is left out."""
    processes = {process.pid: process for process in _all()}
    found: list[Process] = []
    wave = {root}
    while wave:
        found += (below := [process for process in processes.values() if process.parent in wave])
        wave = {process.pid for process in below}
    return found


def pss(pid: int) -> int:
    """Proportional set size in KiB (shared pages divided by who shares them); 0 for one that is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def own(pid: int) -> int:
    """Unique set size in KiB (pages shared with nobody); 0 for one that is gone."""
    try:
        fields = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(words[1]) for words in fields if words[0] in ("Private_Clean:", "Private_Dirty:"))


def _all() -> Iterator[Process]:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            lines = Path(f"/proc/{entry}/status").read_text().splitlines()
            argv = Path(f"/proc/{entry}/cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
        fields = dict(line.partition(":\t")[::2] for line in lines)
        if fields["State"][0] in "ZX":
            continue
        inner = tuple(int(number) for number in fields["NSpid"].split())
        yield Process(int(entry), int(fields["PPid"]), fields["Name"], argv, inner)
