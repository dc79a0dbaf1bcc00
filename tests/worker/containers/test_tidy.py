"""What a node does for its images when nobody asks: by its options, for the services it has, told as events; and again."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from covey.errors import Internal
from worker.containers import tidy
from worker.containers.host import Host
from worker.containers.options import EngineOptions
from worker.containers.record import SERVICE_LABEL
from worker.images.removal import Removed
from worker.images.retention import Policy


class Images:
    """An image store that notes what it is asked, and cannot the first time."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def settle(self) -> int:
        self.asked.append("settle")
        if len(self.asked) == 1:
            raise Internal("cannot now")
        return 0

    def reclaim(self, policy: Policy, services: set[str]) -> Removed:
        self.asked.append((policy, services))
        return Removed(("a:1",), ("sha256:a",), 7)


class World:
    def __init__(self) -> None:
        options = EngineOptions(Path("/nowhere"), Path("/nowhere"), retention=Policy(age=5), tidy_every=0.0)
        self.images, self.events = Images(), list[tuple[str, ...]]()
        labels: list[dict[str, str]] = [{SERVICE_LABEL: "s1"}, {}, {SERVICE_LABEL: "s1"}, {SERVICE_LABEL: "s2"}]

        async def run(work: Callable[..., Any], *arguments: Any) -> Any:
            return work(*arguments)

        def publish(kind: str, action: str, one: str, attributes: dict[str, str]) -> None:
            self.events.append((kind, action, one))
            if len(self.events) == 4:
                raise asyncio.CancelledError

        self.host = cast(
            Host,
            SimpleNamespace(
                options=dataclasses.replace(options),
                run=run,
                images=self.images,
                registry=[SimpleNamespace(labels=each) for each in labels],
                events=SimpleNamespace(publish=publish),
            ),
        )


def test_it_looks_again_and_again_also_after_a_fault() -> None:
    world = World()
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(tidy.keep(world.host))
    look = (Policy(age=5), {"s1", "s2"})
    assert world.images.asked == ["settle", "settle", look, "settle", look]
    assert world.events == [("image", "untag", "a:1"), ("image", "delete", "sha256:a")] * 2
