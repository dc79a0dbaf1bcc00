"""A table of what the OCI runtime specification asks of a runtime on Linux: one row a sentence, each with its test.

A row's function gets the ``boxes`` fixture and runs containers; a row of ``refuses`` is a config that the parser must
refuse by field. ``size`` says how many rows a document has, for the summary at the end of a run.
"""

from __future__ import annotations

import copy
import os
import shutil
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from worker.runtime import spec
from worker.runtime.errors import SpecFault

Check = Callable[[Any], Awaitable[None]]
TABLES: list[Table] = []

GOOD: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "root": {"path": "rootfs"},
    "process": {"args": ["true"], "cwd": "/"},
    "linux": {"namespaces": [{"type": kind} for kind in ("mount", "uts", "network", "ipc", "time")], "cgroupsPath": "/c/x"},
}


KINDS = ("pid", "network", "ipc", "uts", "mount", "cgroup")
"""The namespaces of a bundle that asks for nothing unusual."""


def spaces(*kinds: str, **paths: str) -> dict[str, Any]:
    """linux.namespaces of these types; ``paths``: type → path."""
    entries = [{"type": kind, **({"path": paths[kind]} if kind in paths else {})} for kind in dict.fromkeys((*kinds, *paths))]
    return {"namespaces": entries}


def changed(path: str, value: object) -> dict[str, Any]:
    """The smallest good config with one field set; an empty path replaces all of it."""
    config = copy.deepcopy(GOOD)
    target: Any = config
    *parents, last = path.split(".")
    for key in parents:
        target = target.setdefault(key, {})
    target[last] = value
    return config


def own_root(boxes: Any) -> Path:
    """A copy of the root file system that a row may change.

    Without devices and the like: to read /dev/full, which a bundle without a mount there has left in the shared root,
    has no end.
    """

    def special(directory: str, names: list[str]) -> list[str]:
        kinds = {name: os.lstat(os.path.join(directory, name)).st_mode for name in names}
        return [name for name, mode in kinds.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))]

    return Path(shutil.copytree(boxes.rootfs, boxes.base / "own-root", symlinks=True, ignore=special))


class Table:
    def __init__(self, document: str) -> None:
        self.document = document
        self.rows: list[tuple[str, Check]] = []
        self.refusals: list[tuple[str, dict[str, Any], str]] = []
        TABLES.append(self)

    def size(self) -> int:
        return len(self.rows) + len(self.refusals)

    def row(self, section: str, sentence: str) -> Callable[[Check], Check]:
        def add(check: Check) -> Check:
            self.rows.append((f"{section}: {sentence}", check))
            return check

        return add

    def refuses(self, section: str, sentence: str, path: str, value: object, field: str) -> None:
        """A config whose ``path`` is ``value`` is refused, naming ``field``."""
        self.refusals.append((f"{section}: {sentence}", changed(path, value), field))

    def tests(self) -> tuple[Any, Any]:
        """(the test of the rows that run containers, the test of the refusals), to be bound to names of a module."""

        @pytest.mark.root
        @pytest.mark.asyncio
        @pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in self.rows])
        async def runs(boxes: Any, check: Check) -> None:
            await check(boxes)

        @pytest.mark.parametrize(("config", "field"), [pytest.param(c, field, id=name) for name, c, field in self.refusals])
        def refusals(config: dict[str, Any], field: str) -> None:
            with pytest.raises(SpecFault) as caught:
                spec.check(config)
            assert caught.value.field == field
            assert caught.value.code == "invalid"

        return runs, refusals
