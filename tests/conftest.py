"""What every test shares: the long marker is opt-in, root tests say why they skip, and nothing may be left behind."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("covey_tests_leftovers", Path(__file__).with_name("leftovers.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
leftovers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(leftovers)

_BEFORE = pytest.StashKey[dict[str, set[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the exhaustive forms")
    parser.addoption("--leftovers", action="store_true", help="fail if anything is left behind at the end")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        dropped = [item for item in items if item.get_closest_marker("long")]
        if dropped:
            config.hook.pytest_deselected(items=dropped)
            items[:] = [item for item in items if not item.get_closest_marker("long")]
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root: run scripts/test with sudo"))


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("--leftovers"):
        session.config.stash[_BEFORE] = leftovers.census()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _BEFORE not in session.config.stash:
        return
    left = leftovers.difference(session.config.stash[_BEFORE])
    if left:
        sys.stderr.write("\nleft behind by the tests:\n" + "".join(f"  {line}\n" for line in left))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
