"""The pytest plugin that ships with Covey: fixtures that bring up a cluster on the lab. Loaded by pytest's entry point.

    def test_three_replicas(covey_lab):
        lab = covey_lab(nodes=4)
        ...

Every pytest run on the machine imports this file, so it imports nothing of the lab until a fixture is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from covey.testing.lab import Lab


def _labs() -> Iterator[Callable[..., Lab]]:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root: run the tests with sudo")
    from covey.testing.lab import Lab

    with ExitStack() as stack:

        def make(nodes: int = 4, **options: Any) -> Lab:
            return stack.enter_context(Lab(nodes, **options))

        yield make


@pytest.fixture
def covey_lab() -> Iterator[Callable[..., Lab]]:
    """Makes labs that end with the test; arguments are those of ``covey.testing.lab.Lab``."""
    yield from _labs()


@pytest.fixture(scope="module")
def covey_lab_of_module() -> Iterator[Callable[..., Lab]]:
    """Makes labs that end with the module's last test."""
    yield from _labs()
