"""The size of the table, printed where its tests ran."""

from __future__ import annotations

from typing import Any

from tests.runtime.spec.table import TABLES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if TABLES:
        sizes = ", ".join(f"{table.document} {table.size()}" for table in TABLES)
        terminalreporter.write_line(f"OCI runtime specification: {sum(table.size() for table in TABLES)} rows ({sizes})")
