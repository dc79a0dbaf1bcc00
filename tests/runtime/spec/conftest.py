"""The size of the table, printed where its tests ran; and the place of relative cgroup paths, removed if it was made here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.runtime.spec.table import TABLES
from worker.runtime.cgroups import Cgroup

_RELATIVE = "/covey"


@pytest.fixture(scope="session", autouse=True)
def place_of_relative_cgroups() -> Iterator[None]:
    missing = [path for path in Cgroup(_RELATIVE).directories() if not os.path.exists(path)]
    yield
    for path in missing:
        # Somebody else may have made use of it meanwhile.
        with contextlib.suppress(OSError):
            os.rmdir(path)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if TABLES:
        sizes = ", ".join(f"{table.document} {table.size()}" for table in TABLES)
        terminalreporter.write_line(f"OCI runtime specification: {sum(table.size() for table in TABLES)} rows ({sizes})")
