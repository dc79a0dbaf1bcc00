"""Merged calls: the node answers for what it has, and looks for it among things of the kind the path names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from covey.engine_api.routes import MERGED, ROUTES
from worker.front_door import FrontDoor, Local

NAMED = [route for route in ROUTES if route.place == MERGED and "{id}" in route.path]


@pytest.mark.asyncio
@pytest.mark.parametrize("route", NAMED, ids=[route.name for route in NAMED])
async def test_a_merged_call_is_answered_here_when_this_node_has_the_thing_its_path_names(route: Any) -> None:
    def knows(kind: str) -> Any:
        async def answer(reference: str) -> bool:
            return reference == f"a {kind} of ours"

        return answer

    async def here(call: Any) -> str:
        return "here"

    local = Local({route.name: here}, knows("containers"), knows("exec"), knows("networks"))
    door = FrontDoor(local, cast(Any, SimpleNamespace(is_manager=True)))
    call: Any = SimpleNamespace(params={"id": f"a {route.path.split('/')[1]} of ours"})
    assert await door.handlers()[route.name](call) == "here"
