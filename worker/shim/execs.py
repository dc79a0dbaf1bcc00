"""The execs of a shim's container by id: those that run, and what the last ones ended with.

It decides how many ended ones are remembered. How an exec is made is its container's.
"""

from __future__ import annotations

from worker.kernel.bare import Any, Callable
from worker.runtime.errors import RuntimeFault
from worker.shim.loop import Loop
from worker.shim.process import Process

_KEPT = 256


class Execs:
    """``broadcast``: tells every listener of events that one has ended."""

    def __init__(self, broadcast: Callable[[dict[str, Any]], None]) -> None:
        self._broadcast = broadcast
        self._processes: dict[str, Process] = {}

    def add(self, ident: str, process: Process) -> None:
        """Raises RuntimeFault when there is one of that id."""
        if ident in self._processes:
            raise RuntimeFault("bad-state", f"exec {ident} exists already: give another id")
        self._processes[ident] = process

    def drop(self, ident: str) -> None:
        """One that nothing came of."""
        self._processes.pop(ident, None)

    def find(self, ident: str) -> Process:
        """Raises RuntimeFault."""
        process = self._processes.get(ident)
        if process is None:
            raise RuntimeFault("bad-state", f"there is no exec {ident}")
        return process

    def state(self, ident: str) -> dict[str, Any]:
        """The answer to ``exec_state``."""
        process = self.find(ident)
        running = process.started and process.exit_code is None
        return {"running": running, "exit_code": process.exit_code, "pid": process.pid}

    def ended(self, ident: str) -> None:
        """Its process has; told unless it was dropped."""
        process = self._processes.get(ident)
        if process is None:
            return
        self._broadcast({"type": "exec-exit", "exec_id": ident, "code": process.exit_code})
        over = [name for name, entry in self._processes.items() if entry.exit_code is not None]
        for name in over[:-_KEPT]:
            del self._processes[name]

    def handed(self) -> list[tuple[str, int, int | None]] | None:
        """What ``take`` takes; None while one lives or has output."""
        if not all(process.over for process in self._processes.values()):
            return None
        return [(name, process.pid, process.exit_code) for name, process in self._processes.items()]

    def take(self, handed: list[tuple[str, int, int]], loop: Loop) -> None:
        """Those of the worker before, which are over."""
        for ident, pid, code in handed:
            process = self._processes[ident] = Process(loop, None, lambda _: None)
            process.be_over(pid, code)
