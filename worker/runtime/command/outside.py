"""What a container needs done in the caller's namespaces: hooks at the moments of its life, devices, its seccomp listener.

Which state the container is in, and what a failed hook means for it, is the verbs' business. Hooks run in the bundle.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from worker.runtime import hooks, seccomp_listener, sync
from worker.runtime.command.report import Log
from worker.runtime.command.store import Entry
from worker.runtime.errors import RuntimeFault
from worker.runtime.process import Launch


class Outside:
    def __init__(self, entry: Entry, config: dict[str, Any]) -> None:
        self._ident = entry.ident
        self._bundle = str(entry.record["bundle"])
        self._config = config

    def answer(self, launched: Launch, status: str, init_pid: int = 0) -> Callable[[str, dict[str, Any]], None]:
        """For ``Launch.on_request``: do what the starting process asks for, then let it go on.

        ``init_pid``: the container's first process, when ``launched`` is another. A failed hook is raised.
        """

        def on_request(kind: str, body: dict[str, Any]) -> None:
            state = self._state(status, init_pid or launched.pid)
            if kind == sync.HOOKS:
                self._move_devices(launched.pid)
                hooks.run(hooks.entries(self._config, *hooks.EARLY), state, self._bundle)
            else:
                self._deliver(launched, int(body["fd"]), state)
            launched.resume({"state": state})

        return on_request

    def _move_devices(self, pid: int) -> None:
        """In a child: what moves them enters the container's network namespace, which hooks must not run in."""
        devices = (self._config.get("linux") or {}).get("netDevices")
        if not devices:
            return
        from worker.runtime import net_devices

        moving = hooks.Background([], {}, first=lambda: net_devices.move(devices, pid))
        fault, _ = moving.result()
        os.waitpid(moving.pid, 0)
        if fault is not None:
            raise fault

    def _deliver(self, launched: Launch, number: int, state: dict[str, Any]) -> None:
        filter_ = self._config["covey"]["seccomp"]
        try:
            listener = launched.take_descriptor(number)
        except OSError as error:
            raise RuntimeFault("kernel", f"linux.seccomp: the listener cannot be taken: {error.strerror}", "seccomp") from None
        try:
            seccomp_listener.deliver(filter_["listener_path"], filter_["listener_metadata"], listener, state, launched.pid)
        finally:
            os.close(listener)

    def after_start(self, pid: int) -> None:
        """The poststart hooks; the first that fails is raised and ends them."""
        hooks.run(hooks.entries(self._config, "poststart"), self._state("running", pid), self._bundle)

    def after_stop(self, log: Log) -> None:
        """The poststop hooks, all of them; what goes wrong is a warning."""
        for words in hooks.run_all(hooks.entries(self._config, "poststop"), self._state("stopped", 0), self._bundle):
            log.warn(words)

    def _state(self, status: str, pid: int) -> dict[str, Any]:
        return hooks.state(self._config, self._ident, self._bundle, status, pid)
