"""The daemon's side of the zygote, over its socket: finds one that runs, starts one, asks it for shims."""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import functools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.containers.shim_client import VERSION
from worker.containers.shim_socket import Client, Line, ShimGone, frame
from worker.kernel import mounts, process, syscalls
from worker.runtime import zygote

_START = "import sys; sys.path.insert(0, {root!r}); from worker.shim.__main__ import main; main()"
_FORK_PATIENCE = 15.0


class Zygote:
    """The process that forks shims; ``pid`` and ``start_time`` identify it.

    ``containers``, ``orders``: whether it is new enough for ``fork_container``, and of the same code as we, for the orders.
    ``roots``: below which directory a container may lie whose root comes along; None where it takes none.
    """

    def __init__(
        self, client: Client, pid: int, *, containers: bool = False, orders: bool = False, roots: Path | None = None
    ) -> None:
        self._client = client
        self.roots = roots
        self.pid = pid
        self.containers = containers
        self.orders = orders
        self.start_time = process.start_time(pid) or 0

    @classmethod
    async def connect(cls, socket_path: Path) -> Zygote:
        """A zygote that runs already. Raises ShimGone."""
        client = Client(socket_path)
        hello = await client.request({"op": "hello", "version": VERSION})
        if hello["version"] != VERSION:
            client.close()
            raise ShimGone(f"the zygote at {socket_path} speaks version {hello['version']}, not {VERSION}")
        same = hello.get("orders") == _form_of_orders()
        roots = socket_path.parent if same and hello["root"] else None
        return cls(client, hello["pid"], containers=bool(hello.get("containers")), orders=same, roots=roots)

    @classmethod
    async def spawn(cls, socket_path: Path, log_path: Path, cgroup_parent: str = "/covey", *, patience: float = 10.0) -> Zygote:
        """Start one in a session of its own, standard library only; its words go to ``log_path``.

        It and its shims are in a cgroup below ``cgroup_parent``.
        """
        pid = _spawn(socket_path, log_path, cgroup_parent)
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            try:
                return await cls.connect(socket_path)
            except ShimGone:
                if _ended(pid) or asyncio.get_running_loop().time() > deadline:
                    words = _last_words(log_path)
                    raise ShimGone(f"the zygote {pid} does not answer at {socket_path}; its log ends: {words}") from None
            await asyncio.sleep(0.01)

    async def fork_shim(self, ident: str, directory: Path, cgroup_parent: str = "/covey", runtime: str = "") -> tuple[int, int]:
        """(pid, start time) of a new shim that listens in ``directory``. ``runtime``: another's program, "" for ours."""
        request = {"op": "fork_shim", "id": ident, "dir": str(directory), "cgroup_parent": cgroup_parent}
        if runtime:
            request["runtime"] = runtime
        try:
            async with asyncio.timeout(_FORK_PATIENCE):
                answer = await self._client.request(request)
        except TimeoutError:
            raise ShimGone(f"the shim of {directory} died before it answered") from None
        return answer["pid"], answer["start_time"]

    async def fork_container(
        self, ident: str, directory: Path, request: Mapping[str, Any], cgroup_parent: str = "/covey", root: str = ""
    ) -> Line:
        """Asks for a new shim with its container, which is being made when this returns; both answer on the line.

        ``request``: bundle, log and init as in Shim.launch, and ``orders`` (worker.runtime.orders, plain), without which,
        as with a zygote that does not know them, the process decides for itself. ``root``: where the container's root is
        mounted, if of the machine's mounts it needs no other. Raises ShimGone, OSError.
        """
        body = {"op": "fork_container", "id": ident, "dir": str(directory), "cgroup_parent": cgroup_parent, **request}
        if not self.orders:
            body.pop("orders", None)
        line = await self._client.line()
        copies: list[int] = []
        try:
            if root and self.roots is not None and Path(root).is_relative_to(self.roots):
                copies.append(mounts.clone(root))
                body["root"] = root
            data = zygote.packed(body) if self.orders else frame(body)
            connection = line.send_with_connection(data, "fork_container", *copies)
        except BaseException:
            line.close()
            raise
        finally:
            for fd in copies:
                os.close(fd)
        self._client.back(line)
        return await Line.over(directory, connection)

    async def ping(self) -> None:
        await self._client.request({"op": "ping"})

    def alive(self) -> bool:
        """Whether the process still runs; a dead child of ours is reaped."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        return process.is_alive(self.pid, self.start_time)

    async def stop(self) -> None:
        """End the zygote; shims stay."""
        await self._client.request({"op": "stop"})
        self.close()

    def close(self) -> None:
        self._client.close()


@functools.cache
def _form_of_orders() -> int:
    """As it was when we came: files may have been replaced since."""
    return zygote.form_of_orders()


def _ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] != 0


def _last_words(log_path: Path) -> str:
    return log_path.read_text(errors="replace")[-2000:]


def _spawn(socket_path: Path, log_path: Path, cgroup_parent: str) -> int:
    """posix_spawn rather than asyncio's subprocess, whose transport would kill the zygote with its event loop."""
    with contextlib.suppress(FileNotFoundError):
        socket_path.unlink()
    root = str(Path(__file__).resolve().parents[2])
    for room in ("kernel", "runtime", "shim"):
        # What the zygote compiled itself would leave its memory full of holes: each of its forks would copy 60 % more.
        compileall.compile_dir(f"{root}/worker/{room}", quiet=2)
    command = [sys.executable, "-I", "-S", "-c", _START.format(root=root), str(socket_path), cgroup_parent]
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    interpreter = _sealed(sys.executable)
    try:
        return os.posix_spawn(
            f"/proc/self/fd/{interpreter}",
            command,
            {"LC_ALL": "C.UTF-8", "LD_BIND_NOW": "1", "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log_path), append, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
        )
    finally:
        os.close(interpreter)


def _sealed(program: str) -> int:
    """A read-only mount of the program file, nowhere attached, to run it from.

    A container can have the process that becomes it execute /proc/self/exe, and so hold the file it ran from: through a
    writable mount, root in the container could write to the host's interpreter (CVE-2019-5736).
    """
    try:
        fd = mounts.clone(program)
    except OSError as error:
        raise ShimGone(f"no zygote without the right to mount: {error.strerror} for {program}; run as root") from None
    try:
        mounts.set_attributes(fd, syscalls.MOUNT_ATTR_RDONLY, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd
