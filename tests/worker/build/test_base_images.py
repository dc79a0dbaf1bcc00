"""Where a base image comes from: the store, or a pull with the client's credentials. No root, no network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from covey.errors import NotFound
from worker.build import base_images
from worker.build.options import BuildOptions
from worker.build.output import Output
from worker.images.image import MANIFEST_TYPE, Image

HERE = Image("sha256:" + "1" * 64, "", 0, MANIFEST_TYPE, {"architecture": "amd64", "os": "linux"}, ())
THERE = replace(HERE, id="sha256:" + "2" * 64)


class Host:
    """As far as looking an image up goes."""

    def __init__(self, known: Mapping[str, Image]) -> None:
        self.images = SimpleNamespace(resolve=self._resolve)
        self._known = known

    def _resolve(self, name: str) -> Image:
        if name not in self._known:
            raise NotFound(f"No such image: {name}")
        return self._known[name]

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


@dataclass
class Pull:
    asked: list[tuple[str, str, Mapping[str, Any]]]

    async def __call__(
        self, name: str, *, platform: str, credentials: Mapping[str, Any], listener: Callable[[Mapping[str, Any]], None]
    ) -> Image:
        self.asked.append((name, platform, credentials))
        listener({"status": "Pulling"})
        return THERE


def found(name: str, options: BuildOptions, pull: Pull | None, platform: str = "") -> tuple[Image, Output]:
    output = Output(quiet=False)
    host = cast(Any, Host({"here": HERE, HERE.id: HERE}))
    return asyncio.run(base_images.ensure(host, name, options, platform, pull, output)), output


@pytest.mark.parametrize(
    ("name", "options", "platform", "pulled"),
    [
        ("here", BuildOptions(), "", False),
        ("here", BuildOptions(pull=True), "", True),
        ("here", BuildOptions(platform="linux/amd64"), "", False),
        ("here", BuildOptions(platform="linux/arm64"), "", True),
        ("here", BuildOptions(platform="linux/arm64"), "linux/amd64", False),
        ("absent", BuildOptions(), "", True),
        (HERE.id, BuildOptions(), "", False),
    ],
)
def test_when_it_is_pulled(name: str, options: BuildOptions, platform: str, pulled: bool) -> None:
    pull = Pull([])
    options = replace(options, credentials={"r.example": {"username": "u"}})
    image, output = found(name, options, pull, platform)
    assert image is (THERE if pulled else HERE)
    assert pull.asked == ([(name, platform or options.platform, options.credentials)] if pulled else [])
    if pulled:
        assert asyncio.run(output.next()) == b'{"status":"Pulling"}\r\n'


def test_without_anybody_who_pulls() -> None:
    assert found("here", BuildOptions(pull=True), None)[0] is HERE
    with pytest.raises(NotFound, match="pull access denied for absent"):
        found("absent", BuildOptions(), None)
    with pytest.raises(NotFound, match="does not match the specified platform"):
        found("here", BuildOptions(platform="linux/arm64"), None)
