"""The daemon's side of the shims: one object each, over their sockets, on asyncio.

A shim outlives the daemon: ``Shim.connect`` adopts one that runs already. What the shim refuses is RuntimeFault (code,
message, step); a shim that cannot be reached or ends in the middle of an answer is ShimGone, one that lets wait for its
first answer ShimSilent. It decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from worker import processes
from worker.containers.shim_socket import Client, Line, Refusing
from worker.kernel import process
from worker.runtime import birth
from worker.runtime.cgroups import Cgroup, Hierarchy, hierarchies
from worker.runtime.errors import RuntimeFault, remedy
from worker.shim import records

VERSION = 1
log = logging.getLogger(__name__)

_START_REQUEST = {"op": "start"}
_START_AND_TELL = {"op": "start", "events": True}
"""Have the events of the container come on the same line from then on, unasked; the answer says whether they do."""
_FRAME = struct.Struct(">BxxxI")
_GONE = (ConnectionError, asyncio.IncompleteReadError)
_FORGET_SECONDS = 10.0
_END_PATIENCE, _AGAIN = 5.0, 0.01
ANSWER_SECONDS = 5.0
"""How long a shim may take to say who it is: one that is stopped or frozen would take for ever."""


class ShimSilent(TimeoutError):
    """The shim of ``directory`` has not answered in time, and is not known to have ended. ``words`` say what to do."""

    def __init__(self, directory: Path) -> None:
        record = records.read(str(directory), "shim.json") or {}
        who = f"its shim, process {record['pid']}," if "pid" in record else "its shim"
        way_out = "let it and its child covey-shim go on (kill -CONT), or kill the container"
        self.directory = directory
        self.words = f"{who} does not answer: {way_out}"
        super().__init__(errno.ETIMEDOUT, self.words, str(directory))


class Attachment(NamedTuple):
    """An attach stream in Docker's framing; ``frames``, ``send`` and ``half_close`` speak it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """(stream, data) until the process's output has ended."""
        while True:
            try:
                stream, length = _FRAME.unpack(await self.reader.readexactly(_FRAME.size))
                yield stream, await self.reader.readexactly(length)
            except _GONE:
                return

    async def send(self, data: bytes) -> None:
        if data:
            self.writer.write(_FRAME.pack(0, len(data)) + data)
            await self.writer.drain()

    async def half_close(self) -> None:
        """The process reads end of file once it has read what was sent."""
        self.writer.write(_FRAME.pack(0, 0))
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()


class Shim:
    """``hello`` is what it said of itself, {} if it was not asked (id, pid, state, init_pid, init_start_time, exit …)."""

    def __init__(self, directory: Path, client: Client, hello: dict[str, Any]) -> None:
        self.directory = directory
        self.hello = hello
        self.warnings: list[str] = []
        """What the last ``create`` or ``delete`` has left out or met, without failing."""
        self.identity: tuple[int, int] | None = None
        """Its (pid, start time), where they are known without looking into its record."""
        self.silence = ""
        """Why every request is refused, of one that does not answer."""
        self._client = client
        self._attached: list[Attachment] = []
        self._used: Line | None = None
        self._told = False

    @classmethod
    async def connect(cls, directory: Path, patience: float | None = ANSWER_SECONDS) -> Shim:
        """Connect to a new or an already running shim; ``patience`` in seconds, None for as long as it lives.

        Raises ShimGone, ShimSilent, or RuntimeFault for a version unknown to us.
        """
        client = Client(directory / "shim.sock")
        try:
            async with asyncio.timeout(patience):
                hello = await client.request({"op": "hello", "version": VERSION})
        except TimeoutError:
            raise ShimSilent(directory) from None
        if hello["version"] > VERSION:
            client.close()
            words = f"the shim of {directory} speaks version {hello['version']}, this daemon up to {VERSION}"
            raise RuntimeFault("bad-state", f"{words}: start the release that is as new as it, or a later one", "hello")
        return cls(directory, client, hello)

    @classmethod
    def newborn(cls, directory: Path, identity: tuple[int, int] | None = None) -> Shim:
        """One that has just been forked by a zygote of our version: it need not be asked who it is, and has no ``hello``."""
        shim = cls(directory, Client(directory / "shim.sock"), {})
        shim.identity = identity
        return shim

    @classmethod
    def unreachable(cls, silent: ShimSilent) -> Shim:
        """Stands for a shim that runs but does not answer: no ``hello``, and RuntimeFault UNREACHABLE from every request."""
        shim = cls(silent.directory, Refusing(silent.directory / "shim.sock", silent.words), {})
        shim.silence = silent.words
        return shim

    async def prepare(self, template: dict[str, Any]) -> int:
        """The pid of a sandbox made by ``template`` (a config), which waits for a ``create`` that fits it.

        It ends with the last connection to its shim.
        """
        return int((await self._client.request({"op": "prepare", "template": template}))["pid"])

    async def create(self, bundle: Path, **how: Any) -> tuple[int, int]:
        """(init pid, its start time): a process that waits in its namespaces for ``start``. ``how``: see ``launch``."""
        launching = await self.launch(bundle, **how)
        try:
            made = await launching.created()
        except RuntimeFault:
            launching.end()
            raise
        except BaseException:
            launching.close()
            raise
        launching.end()
        return made

    async def launch(
        self,
        bundle: Path,
        *,
        log: dict[str, Any] | None = None,
        stdin: bool = False,
        init: bool = False,
        config: dict[str, Any] | None = None,
        identity: Mapping[str, str] | None = None,
    ) -> Launching:
        """Asks for the bundle's process, which is being made when this returns.

        ``log``: {"path", "driver": "json-file" | "none", "max_size": bytes or None, "max_file": n}. ``config``: what the
        bundle holds, if it is at hand; the shim then need not read it. ``identity``: the ``id`` and ``dir`` a prepared
        sandbox takes, whose socket has been moved there.
        """
        request = {"op": "create", "bundle": str(bundle), "log": log, "stdin": stdin, "init": init, **(identity or {})}
        if config is not None:
            request["birth"] = birth.of_container(config).to_json()
        line = await self._client.line()
        line.send(request)
        return Launching(self, self._client, line)

    async def start(self) -> None:
        """Returns after execve; RuntimeFault not-found is Docker's 127, not-executable 126."""
        await self._client.request(_START_REQUEST)

    async def kill(self, signal: int, *, everything: bool = False, exec_id: str | None = None) -> None:
        await self._client.request({"op": "kill", "signal": signal, "all": everything, "exec_id": exec_id})

    async def pause(self) -> None:
        await self._client.request({"op": "pause"})

    async def resume(self) -> None:
        await self._client.request({"op": "resume"})

    async def update(self, resources: dict[str, Any]) -> None:
        """``resources``: OCI linux.resources, only what changes."""
        await self._client.request({"op": "update", "resources": resources})

    async def resize(self, height: int, width: int, *, exec_id: str | None = None) -> None:
        await self._client.request({"op": "resize", "height": height, "width": width, "exec_id": exec_id})

    async def state(self) -> dict[str, Any]:
        """As ``hello``, but now."""
        return await self._client.request({"op": "state"})

    async def pids(self) -> list[int]:
        return list((await self._client.request({"op": "pids"}))["pids"])

    async def stats(self) -> dict[str, Any]:
        """Raw counters; the shape is that of worker.runtime.cgroup_stats."""
        return await self._client.request({"op": "stats"})

    async def exec(self, exec_id: str, process: dict[str, Any], *, stdin: bool = False) -> int:
        """The pid of a process that waits for ``exec_start``; attach to it in between. ``process``: OCI process."""
        answer = await self._client.request({"op": "exec", "exec_id": exec_id, "process": process, "stdin": stdin})
        return int(answer["pid"])

    async def exec_start(self, exec_id: str) -> None:
        await self._client.request({"op": "exec_start", "exec_id": exec_id})

    async def exec_state(self, exec_id: str) -> dict[str, Any]:
        """{"running", "exit_code", "pid"}."""
        return await self._client.request({"op": "exec_state", "exec_id": exec_id})

    async def attach(
        self, *, stdin: bool = False, stdout: bool = True, stderr: bool = True, exec_id: str | None = None
    ) -> Attachment:
        """Output from now on, all of it: the process waits for attachers that are slow to read."""
        line = await self._client.open()
        try:
            await line.ask({"op": "attach", "exec_id": exec_id, "stdin": stdin, "stdout": stdout, "stderr": stderr})
        except BaseException:
            line.close()
            raise
        attachment = Attachment(line.reader, line.writer)
        self._attached.append(attachment)
        return attachment

    @property
    def attached(self) -> bool:
        """Whether somebody has a stream of it open."""
        self._attached = [one for one in self._attached if not one.writer.is_closing()]
        return bool(self._attached)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """exit (told again to whoever comes later), oom and exec-exit events. Raises ShimGone when the shim ends."""
        line, self._used = self._used or await self._client.open(), None
        told, self._told = self._told, False
        try:
            if not told:
                line.send({"op": "events"})
            while True:
                yield await line.answer()
        finally:
            line.close()

    async def delete(self) -> None:
        """After the exit: remove its cgroups; the shim ends."""
        answer = await self._client.request({"op": "delete"})
        self.warnings = answer.get("warnings") or []
        self.close()

    @property
    def lost(self) -> bool:
        """Whether the shim is known to have ended: it has let go of a connection that nobody uses."""
        return self._client.lost

    def listen_on(self, line: Line, *, told: bool) -> None:
        """Have the next ``events`` come on this line, at rest, rather than on one that must be opened.

        ``told``: they come already.
        """
        self._used, self._told = line, told

    def launching(self, line: Line) -> Launching:
        """The container that was asked for together with its shim, on this line."""
        return Launching(self, self._client, line, _START_AND_TELL)

    def moved(self, directory: Path) -> None:
        """The shim's socket has been moved into ``directory``; connections that are open go on."""
        self.directory = directory
        self._client.path = directory / "shim.sock"

    def close(self) -> None:
        """Let go of the connections; the shim lives on."""
        if self._used is not None:
            self._used.close()
        self._client.close()


class Launching:
    """A process being made, on a line of its own: its start can be asked for before it is there, and waits at the shim."""

    def __init__(self, shim: Shim, client: Client, line: Line, start: Mapping[str, Any] = _START_REQUEST) -> None:
        self._shim = shim
        self._client = client
        self._line = line
        self._start = start
        self._asked = False

    @property
    def short(self) -> bool:
        """Whether shim and container were asked for together."""
        return self._start is _START_AND_TELL

    async def created(self) -> tuple[int, int]:
        """(init pid, its start time). Raises RuntimeFault, after which a start is refused, or ShimGone."""
        answer = await self._line.answer()
        self._shim.warnings = answer.get("warnings") or []
        if "pid" in answer:
            self._shim.identity = answer["pid"], answer["start_time"]
        return answer["init_pid"], answer["init_start_time"]

    def ask_start(self) -> None:
        """Have it started as soon as it is created."""
        if not self._asked:
            self._asked = True
            self._line.send(self._start)

    async def started(self) -> None:
        """After ``created``: see ``Shim.start``."""
        self.ask_start()
        answer = await self._line.answer()
        self._shim.listen_on(self._line, told=bool(answer.get("events")))

    def end(self) -> None:
        """Everything that was asked for has been answered."""
        self._client.back(self._line)

    def close(self) -> None:
        """Whatever is still to be answered is of no interest."""
        self._line.close()


@functools.cache
def machine_hierarchies() -> list[Hierarchy]:
    """The machine's, which stay: to read them is to read all mounts, of which each container has one."""
    return hierarchies()


def exit_record(directory: Path) -> dict[str, Any] | None:
    """exit.json of a container's run directory, or None while (or because) nobody has written one."""
    return records.read(str(directory), "exit.json")


def sweep(directory: Path) -> bool:
    """Remove what a shim that was killed left: processes in its cgroup, the cgroup, its socket. Blocking, short.

    False while the kernel still holds the cgroup: call again. A shim that lives is left alone and is an error.
    """
    record = records.read(str(directory), "shim.json")
    if record is not None:
        if process.is_alive(record["pid"], record.get("start_time") or -1):
            raise RuntimeFault("bad-state", f"shim {record['pid']} of {directory} lives: ask it to delete")
        # A sandbox that was about to take its container's name may have either, or one in some hierarchies.
        for path in filter(None, (record.get("cgroup"), record.get("former_cgroup"))):
            group = Cgroup(path, machine_hierarchies())
            if group.kill():
                with contextlib.suppress(OSError, RuntimeFault):
                    group.freeze(False)
            if record.get("runtime"):
                _forget(record["runtime"], record["id"], directory)
            if not group.remove():
                return False
    for name in ("shim.sock", "shim.json"):
        with contextlib.suppress(FileNotFoundError):
            (directory / name).unlink()
    return True


async def end_shim(pid: int, started: int) -> None:
    """Kills a shim, and by that its container, and waits until it is gone."""
    deadline = time.monotonic() + _END_PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        try:
            if await processes.end([(pid, started)], left):
                return
        except OSError as error:
            log.error("shim %s cannot be ended now: %s%s", pid, error.strerror, remedy(error))
            await asyncio.sleep(_AGAIN)
    log.error("shim %s has not ended after SIGKILL", pid)


async def end_recorded(directory: Path) -> None:
    """As ``end_shim``, of the shim on record there: one that answers no more may have a process that is about to end."""
    record = records.read(str(directory), "shim.json")
    if record is not None and record.get("start_time"):
        await end_shim(record["pid"], record["start_time"])


def _forget(runtime: str, ident: str, directory: Path) -> None:
    """What another runtime's program keeps beside processes and cgroup (a virtual machine, say) is its to remove."""
    command = [runtime, "--root", str(directory / "runtime"), "delete", "--force", ident]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_FORGET_SECONDS, check=False)
