"""Makes harness.py and fake_worker.py importable for the tests beside them, and gives a cluster over the memory store."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

sys.path.insert(0, str(Path(__file__).parent))

from harness import Cluster


@pytest_asyncio.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """A bootstrapped cluster: one manager with the test timers over a memory store, no worker yet."""
    async with Cluster() as running:
        await running.bootstrap()
        yield running
