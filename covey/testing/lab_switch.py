"""The switch of a lab: a bridge in a network namespace of its own that the nodes' cables end in, and clients stand at.

Nothing of it appears in the network namespace of whoever made the lab. It must not know what runs on the nodes.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from covey.testing.lab_machine import LabError, Machine

#: TEST-NET-2 of RFC 5737: no network of a cluster or of a container lies there.
NETWORK = "198.51.100"
CLIENT = f"{NETWORK}.1"
_FIRST = 11
MOST_NODES = 200
_BRIDGE = "switch"


def address_of(number: int) -> str:
    """The address of the lab's node ``number`` (from 0)."""
    return f"{NETWORK}.{_FIRST + number}"


class Switch:
    """``machine`` is where clients stand: it has the address CLIENT and reaches every node."""

    def __init__(self, directory: Path) -> None:
        self.machine = Machine("switch", directory)

    def open(self) -> None:
        """Until it forwards."""
        self.machine.wait_ready()
        _batch(
            self.machine,
            "link set lo up",
            f"link add {_BRIDGE} type bridge forward_delay 0",
            f"addr add {CLIENT}/24 dev {_BRIDGE}",
            f"link set {_BRIDGE} up",
        )

    def plug(self, machine: Machine, number: int) -> None:
        """A cable from the machine's eth0 to the switch."""
        port = _port(number)
        # A machine that died a moment ago takes its cable along when the kernel gets to it.
        with suppress(LabError):
            _batch(self.machine, f"link del {port}")
        _batch(
            self.machine,
            f"link add {port} type veth peer name eth0 netns {machine.pid}",
            f"link set {port} master {_BRIDGE} up",
        )
        _batch(machine, "link set lo up", f"addr add {address_of(number)}/24 dev eth0", "link set eth0 up")

    def cut(self, number: int) -> None:
        """Lose every packet of the node from now on, silently: its cable keeps its carrier."""
        self._state(number, "0")

    def mend(self, number: int) -> None:
        """The opposite of ``cut``."""
        self._state(number, "3")

    def _state(self, number: int, state: str) -> None:
        _run(self.machine.in_network("bridge", "link", "set", "dev", _port(number), "state", state))


def _port(number: int) -> str:
    return f"port{number}"


def _batch(machine: Machine, *lines: str) -> None:
    """Lines of ``ip -batch`` in the machine's network, with our own PID namespace (``netns PID`` means ours)."""
    _run(machine.in_network("ip", "-batch", "-"), lines)


def _run(argv: list[str], lines: Iterable[str] = ()) -> None:
    done = subprocess.run(argv, input="\n".join(lines), capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(argv[4:])}: {done.stderr.strip() or done.stdout.strip()}")
