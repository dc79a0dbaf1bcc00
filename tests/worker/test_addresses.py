"""Which address a node tells others: given, the interface's, the only one; several are the user's choice."""

from __future__ import annotations

import pytest

from covey.errors import InvalidArgument
from worker import addresses


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The interfaces the machine is believed to have."""
    found: dict[str, list[str]] = {}
    monkeypatch.setattr(addresses, "_interfaces", lambda: found)
    monkeypatch.setattr(addresses.socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (3, "eth1")])
    return found


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("given", "listen", "interfaces", "chosen"),
    [
        ("10.1.1.1", "0.0.0.0:2377", {}, "10.1.1.1:2377"),
        ("10.1.1.1", "0.0.0.0:9000", {}, "10.1.1.1:9000"),
        ("10.1.1.1:77", "0.0.0.0:2377", {}, "10.1.1.1:77"),
        ("eth0", "0.0.0.0:2377", {"eth0": ["10.2.2.2"]}, "10.2.2.2:2377"),
        ("eth0:77", "0.0.0.0:2377", {"eth0": ["10.2.2.2"]}, "10.2.2.2:77"),
        ("", "10.3.3.3:2377", {}, "10.3.3.3:2377"),
        ("", "0.0.0.0:2377", {"eth0": ["10.2.2.2"]}, "10.2.2.2:2377"),
        ("", "0.0.0.0:2377", {}, "127.0.0.1:2377"),
        ("[fd00::1]:77", "0.0.0.0:2377", {}, "[fd00::1]:77"),
    ],
)
async def test_what_is_advertised(
    machine: dict[str, list[str]], given: str, listen: str, interfaces: dict[str, list[str]], chosen: str
) -> None:
    machine.update(interfaces)
    assert await addresses.advertise(given, listen) == chosen


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("given", "interfaces", "words"),
    [
        ("", {"eth0": ["10.2.2.2"], "eth1": ["10.3.3.3"]}, r"10.2.2.2 on eth0, 10.3.3.3 on eth1.*--advertise-addr"),
        ("eth1", {"eth0": ["10.2.2.2"]}, "interface eth1 has no IPv4 address"),
        ("0.0.0.0", {}, "non-zero"),
        ("no-such-link", {}, "invalid advertise address 'no-such-link'"),
    ],
)
async def test_what_cannot_be_advertised(
    machine: dict[str, list[str]], given: str, interfaces: dict[str, list[str]], words: str
) -> None:
    machine.update(interfaces)
    with pytest.raises(InvalidArgument, match=words):
        await addresses.advertise(given, "0.0.0.0:2377")


@pytest.mark.asyncio
async def test_the_way_to_a_manager_names_our_address() -> None:
    assert await addresses.toward("127.0.0.1:2377") == "127.0.0.1"
    assert await addresses.toward("no such host:2377") == ""
