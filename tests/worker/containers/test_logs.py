"""json-file logs: lines, tails over rotated files, following; events and the registry on disk."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from covey.clock import SystemClock
from covey.errors import Conflict, InvalidArgument, NotFound
from worker.containers import log_lines, logs, streams
from worker.containers.events import EventBus
from worker.containers.log_lines import Query
from worker.containers.record import Container
from worker.containers.registry import Registry, check_name


def line(number: int, stream: str = "stdout") -> str:
    return json.dumps({"log": f"{number}\n", "stream": stream, "time": f"2026-01-01T00:00:{number:02d}.5Z"}) + "\n"


async def texts(path: Path, query: Query, ended: bool = True) -> list[str]:
    return [entry.text.decode().strip() async for entry in logs.read(path, query, lambda: ended)]


def test_rendering() -> None:
    entry = log_lines.parse(line(7).encode())
    assert entry is not None
    assert log_lines.render(entry, Query(), False) == b"\1\0\0\0\0\0\0\x027\n"
    assert log_lines.render(entry, Query(timestamps=True), True) == b"2026-01-01T00:00:07.500000000Z 7\n"
    assert log_lines.parse(b'{"log": "cut') is None


@pytest.mark.asyncio
async def test_tail_since_and_streams_over_rotated_files(tmp_path: Path) -> None:
    path = tmp_path / "c-json.log"
    (tmp_path / "c-json.log.2").write_text(line(0) + line(1))
    (tmp_path / "c-json.log.1").write_text(line(2) + line(3, "stderr"))
    path.write_text(line(4) + '{"log":"unfinished')
    assert await texts(path, Query()) == ["0", "1", "2", "3", "4"]
    assert await texts(path, Query(tail=2)) == ["3", "4"]
    assert await texts(path, Query(tail=0)) == []
    assert await texts(path, Query(stdout=False)) == ["3"]
    since = 1767225602.5
    assert await texts(path, Query(since=since, until=since + 1)) == ["2", "3"]
    assert await texts(tmp_path / "none.log", Query()) == []


@pytest.mark.asyncio
async def test_following_across_a_rotation_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c-json.log"
    path.write_text(line(0))
    ended = False
    seen: list[str] = []

    async def follow() -> None:
        async for entry in logs.read(path, Query(follow=True), lambda: ended):
            seen.append(entry.text.decode().strip())

    async def until(count: int) -> None:
        async with asyncio.timeout(5):
            while len(seen) < count:
                await asyncio.sleep(0.01)

    following = asyncio.create_task(follow())
    await until(1)
    with open(path, "a") as file:
        file.write(line(1))
    path.rename(tmp_path / "c-json.log.1")
    path.write_text(line(2))
    await until(3)
    (tmp_path / "c-json.log.1").rename(tmp_path / "c-json.log.2")
    path.rename(tmp_path / "c-json.log.1")
    path.write_text(line(3))
    ended = True
    await asyncio.wait_for(following, 5)
    assert seen == ["0", "1", "2", "3"]


@pytest.mark.asyncio
async def test_events_are_replayed_filtered_and_bounded() -> None:
    bus = EventBus(SystemClock())
    bus.publish("container", "start", "c1", {"name": "web", "image": "busybox", "k": "v"})
    bus.publish("container", "exec_create: ls", "c1", {"name": "web"})
    bus.publish("volume", "create", "v1", {})

    async def actions(filters: dict[str, list[str]]) -> list[str]:
        return [event["Action"] async for event in bus.stream(1.0, SystemClock().now() + 0.01, filters)]

    assert await actions({}) == ["start", "exec_create: ls", "create"]
    assert await actions({"event": ["exec_create"]}) == ["exec_create: ls"]
    assert await actions({"container": ["web"], "label": ["k=v"]}) == ["start"]
    assert await actions({"type": ["volume"]}) == ["create"]
    assert await actions({"image": ["busybox"]}) == ["start"]
    for number in range(2000):
        bus.publish("daemon", "reload", str(number), {})
    assert bus.statistics()["history"] <= 1024


def test_registry_keeps_names_and_survives(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "containers")
    registry.load()
    one = Container(id="abc1" + "0" * 60, name="one", created=1.0, image_id="i", config={"Tty": True}, host_config={})
    registry.claim("one", one.id)
    registry.add(one)
    with pytest.raises(Conflict, match='The container name "/one" is already in use by container "abc1'):
        registry.claim("one", "abc2" + "0" * 60)
    two = Container(id="abc2" + "0" * 60, name="two", created=2.0, image_id="i", config={}, host_config={})
    registry.claim("two", two.id)
    registry.add(two)
    assert registry.resolve("/one") is one
    assert registry.resolve("abc2") is two
    with pytest.raises(InvalidArgument, match="Multiple IDs found with provided prefix: abc"):
        registry.resolve("abc")
    with pytest.raises(NotFound, match="No such container: nope"):
        registry.resolve("nope")
    registry.rename(one, "first")
    (tmp_path / "containers" / "halfmade").mkdir()
    again = Registry(tmp_path / "containers")
    again.load()
    assert {one.name for one in again} == {"first", "two"}
    assert again.resolve("first").tty
    assert not (tmp_path / "containers" / "halfmade").exists()
    for wrong in ("a", "-a", "a b", "ä1"):
        with pytest.raises(InvalidArgument, match="Invalid container name"):
            check_name(wrong)


def test_detach_keys_are_found_across_pieces() -> None:
    detacher = streams.Detacher(streams.detach_sequence(""))
    assert detacher.feed(b"ab\x10") == (b"ab", False)
    assert detacher.feed(b"c") == (b"\x10c", False)
    assert detacher.feed(b"x\x10") == (b"x", False)
    assert detacher.feed(b"\x11rest") == (b"", True)
    assert streams.detach_sequence("ctrl-a,b") == b"\x01b"
    with pytest.raises(InvalidArgument):
        streams.detach_sequence("ctrl-")
