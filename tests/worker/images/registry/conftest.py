"""What the registry tests share: a scripted registry, a store, and a puller with short patience."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from covey.credentials import Credentials
from worker.images import reference
from worker.images.pull import Pulled, Puller
from worker.images.registry.access import Registries
from worker.images.registry.endpoints import RegistryOptions, Timing
from worker.images.store import ImageStore

from .scripted import ScriptedRegistry

TIMING = Timing(connect=2.0, read=1.0, attempts=5, backoff=0.005, longest_wait=0.05)


class Node:
    """A store on disk and what pulls into it. ``lines``: the progress of the last pull."""

    def __init__(self, data: Path, registries: Registries) -> None:
        self.data = data
        self.store = ImageStore(data / "images")
        self.registries = registries
        self.puller = Puller(self.store, registries)
        self.lines: list[Mapping[str, Any]] = []

    async def pull(self, name: str, auth: Credentials | None = None, platform: str = "") -> Pulled:
        self.lines = []
        return await self.puller.pull(reference.parse_tagged(name), auth=auth, platform=platform, listener=self.lines.append)

    def files(self) -> set[str]:
        """Everything on disk but the tables."""
        found = {str(path.relative_to(self.data)) for path in self.data.rglob("*") if path.is_file()}
        return {name for name in found if not name.startswith(("images/index", "images/oci-layout"))}

    def statuses(self) -> list[str]:
        return [f"{line['id']}: {line['status']}" if "id" in line else str(line["status"]) for line in self.lines]


@pytest_asyncio.fixture
async def registry() -> AsyncIterator[ScriptedRegistry]:
    async with ScriptedRegistry() as registry:
        yield registry


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    options = RegistryOptions(certificates=(), timing=TIMING)
    async with Registries(options) as registries:
        node = Node(tmp_path / "data", registries)
        yield node
        node.puller.close()


@pytest.fixture
def credentials() -> Credentials:
    return Credentials("user", "secret")
