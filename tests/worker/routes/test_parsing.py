"""What route handlers parse and shape by themselves: times, bodies, network filters, disk usage. Pure or in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from covey.errors import InvalidArgument
from worker.routes import networks, usage
from worker.routes.archives import STAT_HEADER, stat_header
from worker.routes.bodies import BodyReader
from worker.routes.times import seconds


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("", 0.0),
        ("12", 12.0),
        ("12.5", 12.5),
        ("1h30m", 10000.0 - 5400),
        ("500ms", 9999.5),
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01T01:00:10+01:00", 10.0),
        ("1970-01-02", 86400.0),
    ],
)
def test_times(text: str, at: float) -> None:
    assert seconds(text, 10000.0) == at


def test_no_time() -> None:
    with pytest.raises(InvalidArgument, match="invalid time 'yesterday'"):
        seconds("yesterday", 0.0)


@pytest.mark.asyncio
async def test_a_body_is_read_from_a_thread() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in (b"abc", b"", b"defg"):
            await asyncio.sleep(0)
            yield piece

    reader = BodyReader(chunks())
    assert await asyncio.to_thread(reader.read, 2) == b"ab"
    assert await asyncio.to_thread(reader.read, 9) == b"c"
    assert await asyncio.to_thread(reader.read) == b"defg"
    assert await asyncio.to_thread(reader.read, 1) == b""


NETWORK: dict[str, Any] = {
    "Id": "abc", "Name": "net1", "Driver": "bridge", "Scope": "local", "Labels": {"k": "v"}, "Containers": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        ({"name": ["et"]}, True),
        ({"id": ["ab"]}, True),
        ({"label": ["k=v"]}, True),
        ({"label!": ["k"]}, False),
        ({"type": ["builtin"]}, False),
        ({"dangling": ["true"]}, True),
        ({"driver": ["overlay", "bridge"]}, True),
        ({"scope": ["swarm"]}, False),
    ],
)
def test_network_filters(filters: dict[str, list[str]], fits: bool) -> None:
    assert networks.fits(NETWORK, filters) is fits


def test_disk_usage_in_both_forms() -> None:
    rows: dict[str, list[dict[str, Any]]] = {
        "image": [{"Size": 10, "SharedSize": 4, "Containers": 0}, {"Size": 7, "SharedSize": -1, "Containers": 1}],
        "container": [{"State": "running", "SizeRw": 3}, {"State": "exited", "SizeRw": 2}],
        "volume": [{"UsageData": {"RefCount": 0, "Size": 5}}],
    }
    old = usage.legacy(rows, 13)
    assert (old["LayersSize"], len(old["Images"]), old["BuildCache"]) == (13, 2, None)
    new = usage.summed(rows, 13, verbose=False)
    assert new["ImageUsage"] == {"ActiveCount": 1, "TotalCount": 2, "Reclaimable": 6, "TotalSize": 13}
    assert new["ContainerUsage"]["Reclaimable"] == 2
    assert new["VolumeUsage"]["Reclaimable"] == 5
    assert "BuildCacheUsage" not in new
    assert usage.summed(rows, 13, verbose=True)["VolumeUsage"]["Items"] == rows["volume"]


def test_the_stat_header_is_base64_json() -> None:
    assert stat_header({"name": "x"}) == {STAT_HEADER: "eyJuYW1lIjogIngifQ=="}
