"""The process that becomes a container serves its own request until it executes: an ordinary start needs no worker.

It is the keeper's child in a pid namespace of its own. It makes what a worker would (socket, shim.json, pipes, the watch for
memory), answers *create*, and waits for *start* on the same connection. Just before it executes it leaves all of it to the
keeper (worker.shim.keeper), which answers *start* for it. Where anything else is wanted first (another connection, an
attach, a client that goes), it gives way: a worker takes over, and it goes on as any process that waits for its start.
A fault is its answer, and the end of the shim; what it has made so far is named in shim.json, to be swept.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

from worker.kernel import process, syscalls
from worker.kernel.bare import Any, NoReturn
from worker.runtime import birth, compact_json, init, prepare, sync, zygote
from worker.runtime.cgroups import Cgroup, Hierarchy
from worker.runtime.errors import UNFIT, RuntimeFault
from worker.runtime.launch import LaunchPlan
from worker.runtime.orders import Orders
from worker.runtime.zygote import AF_UNIX, SOCK_STREAM
from worker.shim import bundle, keeper, records
from worker.shim.handover import FIRST_QUIET
from worker.shim.keeper import EXCEPTIONAL, READABLE

_PEEK, _DONTWAIT = _socket.MSG_PEEK, _socket.MSG_DONTWAIT
_LENGTH = struct.Struct(">I")
_START_LIMIT = 4096
_WORDS = 2048


def become(
    body: bytes, line: int, seen: Sight, hierarchies: list[Hierarchy], channel: _socket.socket, keeper_pid: int
) -> NoReturn:
    """The whole life of that process until it executes; never returns. ``body``: the request; ``line``: where it came from."""
    code = 1
    try:
        made = Maker(line, channel, keeper_pid, hierarchies, seen)
        try:
            plan = made.create(zygote.request_for_container(body))
            if not made.wait_asked_to_start():
                made.give_way()
            init.perform(made.init, plan.start)
        except Exception as error:
            fault = init.as_fault(error, made.init.step)
            code = init.exit_code(fault)
            made.tell(fault)
    finally:
        os._exit(code)


class Sight:
    """``root``: a detached copy of the container's root. ``lean``: the mount namespace to begin in, if there is one."""

    __slots__ = ("lean", "root")

    def __init__(self, root: int = -1, lean: int = -1) -> None:
        self.root = root
        self.lean = lean

    def enter(self, made: init.Init, path: str) -> None:
        """Look at no more mounts than needed, where the root that should be at ``path`` came with the request."""
        if self.root >= 0 and self.lean >= 0:
            syscalls.setns(self.lean, syscalls.CLONE_NEWNS)
            made.sources[path, True] = [self.root]


class Announcing(sync.Channel):
    """The handshake of a process whose parent only has to know that it executes."""

    def __init__(self, sock: _socket.socket, made: Maker) -> None:
        super().__init__(sock)
        self._made = made

    def send(self, kind: str, **_: Any) -> None:
        if kind == sync.EXEC:
            self._made.announce()


class Maker:
    """Makes a container out of this process, and serves whoever asked for it meanwhile."""

    def __init__(self, line: int, channel: _socket.socket, keeper_pid: int, hierarchies: list[Hierarchy], seen: Sight) -> None:
        self._seen = seen
        self._line = _socket.socket(AF_UNIX, SOCK_STREAM, 0, line)
        self._channel = channel
        self._keeper = keeper_pid
        self._hierarchies = hierarchies
        self._group: Cgroup | None = None
        self._request: dict[str, Any] = {}
        self._identity: dict[str, Any] = {}
        self._fds: list[tuple[str, int, int]] = []
        self._handed = False
        self._start_length = 0
        self.init = init.Init(Announcing(channel, self), None, 0, True)

    def create(self, request: dict[str, Any]) -> LaunchPlan:
        """Up to where the process waits for its start, and the answer to whoever asked."""
        self._request = request
        directory = request["dir"]
        outputs = [os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)]
        for read, _ in outputs:
            os.set_blocking(read, False)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.init = init.begin(self.init.channel, null, *(write for _, write in outputs))
        self._listener = zygote.listen(os.path.join(directory, "shim.sock"))
        given = request.get("orders")
        if given is not None:
            plan = prepare.carry_out(ordered := Orders.from_plain(given), self._claim(ordered.cgroup))
        else:
            plan = prepare.container(self._load, request["bundle"], request["init"], self._hierarchies)(self.init)
        assert self._group is not None
        # Seen by the host's numbers for the last time.
        self._pid = int(os.readlink("/proc/self"))
        self._started = process.start_time(self._pid)
        oom = self._group.open_oom_events()
        self._fds = [
            ("listener", self._listener.fileno(), READABLE),
            ("events", self._line.fileno(), READABLE),
            ("process", os.pidfd_open(os.getpid()), READABLE),
            ("stdout", outputs[0][0], READABLE),
            ("stderr", outputs[1][0], READABLE),
        ]
        if oom is not None:
            fd, priority = oom
            self._fds.append(("oom-v2", fd, EXCEPTIONAL) if priority else ("oom", fd, READABLE))
        if "root" in request:
            self._seen.enter(self.init, request["root"])
        init.perform(self.init, plan.create)
        answer = {**self._identity, "init_pid": self._pid, "init_start_time": self._started}
        if plan.warnings:
            answer["warnings"] = plan.warnings
        self._say(zygote.frame(answer))
        return plan

    def _load(self, place: str, with_init: bool) -> dict[str, Any]:
        """The config, of which it is known then that it can be run this way, and on record what will be made for it."""
        config = bundle.load(place, with_init, self._request["id"])
        if not birth.of_container(config).alone:
            raise _unfit()
        self._claim(config["linux"]["cgroupsPath"])
        return config

    def _claim(self, cgroup: str) -> Cgroup:
        """The container's cgroup, which is to be made, on record for whoever has to sweep."""
        request = self._request
        group = self._group = Cgroup(cgroup, self._hierarchies)
        if os.access(group.directories()[0], os.F_OK):
            # Who else is in there cannot be seen from our pid namespace. One hierarchy tells: to ask for what is not
            # there costs the kernel a directory entry each.
            raise _unfit()
        body = records.identity(request["id"], self._keeper, group.path)
        self._identity = {"pid": body["pid"], "start_time": body["start_time"]}
        records.write(request["dir"], "shim.json", body, durable=False)
        if self._peeked() == b"":
            raise RuntimeFault("bad-state", "whoever wanted the container is gone")
        return group

    def _peeked(self) -> bytes | None:
        """What has come on the line, which stays there; None when nothing has, b"" when nobody is there any more."""
        try:
            return self._line.recv(_START_LIMIT, _PEEK | _DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def wait_asked_to_start(self) -> bool:
        """Wait for whatever comes first: whether it is nothing but the request to start, by one who knows this way."""
        poll = select.poll()
        poll.register(self._line.fileno(), select.POLLIN)
        poll.register(self._listener.fileno(), select.POLLIN)
        if any(fd != self._line.fileno() for fd, _ in poll.poll()):
            return False
        self._start_length = _length_of_start(self._peeked() or b"")
        return self._start_length > 0

    def give_way(self) -> None:
        """Have a worker take over, to which we are a process that waits for its start."""
        ours, theirs = sync.pair()
        self._hand_over(keeper.WAITS, "created", None, [("handshake", theirs.fileno(), READABLE)])
        self._handed = True
        for fd in (theirs.fileno(), *(fd for _, fd, _ in self._fds)):
            os.close(fd)
        self.init.channel = ours
        ours.expect(sync.START)

    def announce(self) -> None:
        """Leave everything to the keeper, which says that we have been started once our program runs."""
        self._line.recv(self._start_length)
        self._hand_over(keeper.EXECUTES, "running", time.time(), [])
        self._handed = True

    def _hand_over(self, how: int, state: str, started_at: float | None, more: list[tuple[str, int, int]]) -> None:
        request, fds = self._request, [*self._fds, *more]
        assert self._group is not None
        if how == keeper.WAITS:
            fds[keeper.CLIENT] = ("client", *fds[keeper.CLIENT][1:])
        body = {
            "id": request["id"],
            "dir": request["dir"],
            "bundle": request["bundle"],
            "log": request.get("log"),
            "logged": {"partial": {}, "lost": 0} if request.get("log") else None,
            "cgroup": self._group.path,
            "state": state,
            "execs": [],
            "pid": self._pid,
            "start_time": self._started,
            "started_at": started_at,
            "quiet": FIRST_QUIET,
            "fds": [name for name, _, _ in fds],
        }
        watched = [(fd, mask) for _, fd, mask in fds]
        keeper.send(self._channel, keeper.packed(how, body, watched), watched)

    def tell(self, fault: RuntimeFault) -> None:
        """To whoever waits for us now: a worker, the keeper, or the client itself."""
        if self.init.channel.fileno() != self._channel.fileno():
            self.init.channel.send(sync.ERROR, fault=fault)
            return
        words = zygote.frame({"error": {name: value[:_WORDS] for name, value in fault.as_dict().items()}})
        if self._handed:
            self._channel.send(words)
        else:
            self._say(words)

    def _say(self, frame: bytes) -> None:
        try:
            os.write(self._line.fileno(), frame)
        except OSError:
            # The line will tell, too, that nobody listens.
            pass


def _unfit() -> RuntimeFault:
    return RuntimeFault(UNFIT, "the bundle asks for more than a process can do for itself")


def _length_of_start(data: bytes) -> int:
    """How long the request to start is that ``data`` is, exactly; 0 if it is another one, or one of an older daemon."""
    if len(data) < _LENGTH.size or _LENGTH.unpack_from(data)[0] != len(data) - _LENGTH.size:
        return 0
    try:
        request = compact_json.loads(data[_LENGTH.size :])
    except ValueError:
        return 0
    return len(data) if request.get("op") == "start" and request.get("events") else 0
