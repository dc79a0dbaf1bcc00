"""What a container needs done in the runtime's own namespaces: hooks at the moments of its life, seccomp listeners.

Nothing here waits: hooks run in a child, and the loop tells when they are done. Which state the container is in, and what
a fault means for it, is worker.shim.container's.
"""

from __future__ import annotations

import os

from worker.kernel.bare import Any, Callable, partial, suppress
from worker.runtime import hooks, mount_options, seccomp_listener, sync
from worker.runtime.errors import RuntimeFault
from worker.runtime.process import Launch
from worker.shim.loop import READ, Loop

Done = Callable[["RuntimeFault | None", list[str]], None]


class Outside:
    def __init__(self, loop: Loop, config: dict[str, Any], ident: str, bundle: str) -> None:
        self._loop = loop
        self._config = config
        self._ident = ident
        self._bundle = os.path.abspath(bundle)
        self.mapped_trees = mount_options.mapped_trees(config)

    def answer(
        self,
        launched: Launch,
        kind: str,
        body: dict[str, Any],
        status: str,
        init_pid: int,
        failed: Callable[[RuntimeFault], None],
    ) -> None:
        """Do what the starting process asks for, then let it go on; ``failed`` is called instead when that fails."""
        state = hooks.state(self._config, self._ident, self._bundle, status, init_pid)

        def done(fault: RuntimeFault | None, _: list[str]) -> None:
            if fault is not None:
                failed(fault)
                return
            # It may have been killed meanwhile; its end is told elsewhere.
            with suppress(OSError):
                launched.resume({"state": state})

        if kind == sync.HOOKS:
            devices = (self._config.get("linux") or {}).get("netDevices")
            self._run(hooks.EARLY, state, done, first=partial(_move_devices, devices, launched.pid) if devices else None)
        else:
            done(self._deliver(launched, int(body["fd"]), state), [])

    def _deliver(self, launched: Launch, number: int, state: dict[str, Any]) -> RuntimeFault | None:
        filter_ = self._config["covey"]["seccomp"]
        try:
            listener = launched.take_descriptor(number)
        except OSError as error:
            return RuntimeFault("kernel", f"linux.seccomp: the listener cannot be taken: {error.strerror}", "seccomp")
        try:
            seccomp_listener.deliver(filter_["listener_path"], filter_["listener_metadata"], listener, state, launched.pid)
        except RuntimeFault as fault:
            return fault
        finally:
            os.close(listener)
        return None

    def after_start(self, pid: int, done: Callable[[RuntimeFault | None], None]) -> None:
        """Run the poststart hooks; the first fault ends them."""
        state = hooks.state(self._config, self._ident, self._bundle, "running", pid)
        self._run(("poststart",), state, lambda fault, _: done(fault))

    def after_stop(self, done: Callable[[list[str]], None]) -> None:
        """Run the poststop hooks, all of them; what goes wrong is a warning."""
        state = hooks.state(self._config, self._ident, self._bundle, "stopped", 0)
        self._run(("poststop",), state, lambda _, warnings: done(warnings), all_of_them=True)

    def _run(
        self,
        kinds: tuple[str, ...],
        state: dict[str, Any],
        done: Done,
        *,
        all_of_them: bool = False,
        first: Callable[[], None] | None = None,
    ) -> None:
        entries = hooks.entries(self._config, *kinds)
        if not entries and first is None:
            done(None, [])
            return
        running = hooks.Background(entries, state, self._bundle, all_of_them=all_of_them, first=first)

        def ended(_: int) -> None:
            self._loop.remove(running.fd)
            done(*running.result())

        self._loop.add(running.fd, READ, ended)


def _move_devices(devices: dict[str, Any], pid: int) -> None:
    # In a process that ends with it, and that alone has to load what speaks netlink.
    from worker.runtime import net_devices

    net_devices.move(devices, pid)
