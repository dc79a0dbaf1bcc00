"""The zygote: a small, single-threaded process with everything imported, from which every shim is forked.

It listens on a socket of its own, answers length-prefixed JSON, and forks shims with a listening socket each. It holds no
state of containers: its death, or that of whoever started it, touches no shim. What a shim does is its caller's, so that
the runtime need not know it.
"""

from __future__ import annotations

import _socket
import errno
import gc
import marshal
import os
import select
import struct
import time
import zlib

from worker.kernel import process
from worker.kernel.bare import Any, Callable, signal, suppress
from worker.runtime import compact_json
from worker.runtime.errors import remedy

VERSION = 1
_ALONE = 2000
"""Milliseconds without any connection after which a zygote looks whether it can still be found."""
_FOR_A_SHIM, _FOR_A_CONTAINER = b'"fork_shim"', b'"fork_container"'
"""What tells a request for a shim from the others before it is parsed, which the shim does."""
_PACKED = _FOR_A_CONTAINER
"""A request for a container that begins so goes on marshalled, not as JSON."""
_PLAIN_MARSHAL = 2
"""The version without references and interned strings: to look those up is to copy the pages they are on."""
_LENGTH = struct.Struct(">I")
_LIMIT = 1 << 20
_RETRY = 0.05
_PEER = struct.Struct("iII")
AF_UNIX, SOCK_STREAM = _socket.AF_UNIX, _socket.SOCK_STREAM
_MSG_CMSG_CLOEXEC, _ROOM = _socket.MSG_CMSG_CLOEXEC, _socket.CMSG_LEN(8)
_FD = struct.Struct("i")
_SOL_SOCKET, _SO_PEERCRED = _socket.SOL_SOCKET, _socket.SO_PEERCRED

Divide = Callable[[int], Any]
"""Forks the new process once more; the parent is the shim that is told of, and closes the descriptor it is given. Answers in
the child what ``Begin`` needs of it, and None in the parent, once that one's life is over."""
Tend = Callable[[int, int, bytes], None]
"""What a shim does that was asked for together with its container: (a connection that came with the request; a detached copy of
the container's root that came too, or -1; the request)."""
Begin = Callable[[dict[str, Any], _socket.socket, Any], None]
"""What the child does: (the request, its listener, the answer of ``Divide``)."""


def listen(path: str) -> _socket.socket:
    """A listening socket at ``path``, mode 0600; the path may be longer than a socket address can hold."""
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = _socket.socket(AF_UNIX, SOCK_STREAM)
    try:
        name = os.path.basename(path)
        old = os.umask(0o177)
        try:
            try:
                listener.bind(f"/proc/self/fd/{directory}/{name}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                os.unlink(name, dir_fd=directory)
                listener.bind(f"/proc/self/fd/{directory}/{name}")
        finally:
            os.umask(old)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    listener.setblocking(False)
    return listener


def peer_allowed(fd: int) -> bool:
    """Only root and our own user may speak to us over the connected socket ``fd``."""
    connection = _socket.socket(AF_UNIX, SOCK_STREAM, 0, fd)
    try:
        _, uid, _ = _PEER.unpack(connection.getsockopt(_SOL_SOCKET, _SO_PEERCRED, _PEER.size))
    finally:
        connection.detach()
    return uid in (0, os.geteuid())


def frame(body: dict[str, Any]) -> bytes:
    data = compact_json.dumps(body)
    return _LENGTH.pack(len(data)) + data


def form_of_orders() -> int:
    """A number for what steps there are and what they take: of the source files, once a process.

    Orders are no format that is kept: they are for who runs the very same code, and a zygote may be older than its daemon.
    """
    result = 0
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for room in ("kernel", "runtime", "shim"):
        for name in sorted(os.listdir(f"{package}/{room}")):
            if name.endswith(".py"):
                with open(f"{package}/{room}/{name}", "rb") as file:
                    result = zlib.crc32(file.read(), zlib.crc32(name.encode(), result))
    return result


def packed(request: dict[str, Any]) -> bytes:
    """The frame of a request for a container, for a zygote whose ``orders`` are of our own form."""
    data = _PACKED + marshal.dumps(request, _PLAIN_MARSHAL)
    return _LENGTH.pack(len(data)) + data


def request_for_container(body: bytes) -> dict[str, Any]:
    """Of a frame's body, packed or (an older daemon's) JSON. Raises ValueError, EOFError or TypeError."""
    unpacked: dict[str, Any] = marshal.loads(body[len(_PACKED) :]) if body.startswith(_PACKED) else compact_json.loads(body)
    return unpacked


class Zygote:
    """Serves until told to stop, then returns; in a forked shim it returns when that has ended.

    What it does between two forks is as little as can be: each page it writes is a copy that the shim before it is left
    alone with. So a request for a shim is read, carried out and answered by the shim itself.
    """

    def __init__(self, path: str, divide: Divide, begin: Begin, tend: Tend, *, takes_root: bool = False) -> None:
        self._path = path
        self._divide = divide
        self._begin = begin
        self._tend = tend
        self._listener = listen(path)
        self._identity = os.stat(path).st_ino
        self._poll = select.poll()
        self._peers: dict[int, tuple[_socket.socket, bytearray]] = {}
        self._takes_root = takes_root
        self._passed = self._root = -1
        self._stopped = False
        self._orders = form_of_orders()

    def serve(self) -> None:
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # A shim inherits it, and so does nothing: what is stopped in there is a copy of us.
            signal.signal(number, self._stop)
        accepting = self._listener.fileno()
        self._poll.register(accepting, select.POLLIN)
        self._poll.register(wake_read, select.POLLIN)
        gc.collect()
        gc.freeze()
        while not self._stopped:
            ready = self._poll.poll(None if self._peers else _ALONE)
            if not ready and self._is_replaced():
                break
            for fd, _ in ready:
                if fd == wake_read:
                    _reap(wake_read)
                elif fd == accepting:
                    self._accept()
                else:
                    wanted = self._receive(fd)
                    if wanted is None:
                        continue
                    if self._fork(fd):
                        signal.set_wakeup_fd(-1)
                        os.close(wake_read)
                        os.close(wake_write)
                        os.close(accepting)
                        self._become_shim(fd, wanted)
                        return
                    self._let_go()
        if not self._is_replaced():
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    def _is_replaced(self) -> bool:
        """Whether nobody can find us any more: a successor has put its own socket in our place, or the place is gone.

        A daemon that is killed while we start leaves the next one to start another.
        """
        try:
            return os.stat(self._path).st_ino != self._identity
        except FileNotFoundError:
            return True

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def _fork(self, asker: int) -> bool:
        """True in the child. Where the machine gives no process, that is the answer."""
        try:
            return os.fork() == 0
        except OSError as error:
            _say(asker if self._passed < 0 else self._passed, _fault(error))
            return False

    def _let_go(self) -> None:
        """Of what came with the last request, which is the shim's."""
        if self._passed >= 0:
            os.close(self._passed)
            self._passed = -1
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        except OSError:
            # Out of descriptors: whoever asks waits until one is free.
            time.sleep(_RETRY)
            return
        if peer_allowed(fd):
            self._peers[fd] = (_socket.socket(AF_UNIX, SOCK_STREAM, 0, fd), bytearray())
            self._poll.register(fd, select.POLLIN)
        else:
            os.close(fd)

    def _drop(self, fd: int) -> None:
        self._poll.unregister(fd)
        connection, _ = self._peers.pop(fd)
        connection.close()
        self._let_go()

    def _receive(self, fd: int) -> bytes | None:
        """The body of a request for a shim, if one has come; what else has come is answered."""
        connection, buffer = self._peers[fd]
        try:
            data, rights, _, _ = connection.recvmsg(65536, _ROOM, _MSG_CMSG_CLOEXEC)
        except ConnectionError:
            data, rights = b"", []
        for _, _, packed in rights:
            self._let_go()
            (self._passed,) = _FD.unpack_from(packed)
            if len(packed) > _FD.size:
                (self._root,) = _FD.unpack_from(packed, _FD.size)
        if not data:
            self._drop(fd)
            return None
        buffer += data
        while len(buffer) >= 4 and not self._stopped:
            (length,) = _LENGTH.unpack_from(buffer)
            if length > _LIMIT:
                self._drop(fd)
                return None
            if len(buffer) < 4 + length:
                return None
            body = bytes(buffer[4 : 4 + length])
            del buffer[: 4 + length]
            if _FOR_A_CONTAINER in body and self._passed < 0:
                # The kernel had no descriptor for what came along: nobody would read an answer here.
                self._drop(fd)
                return None
            if _FOR_A_SHIM in body or _FOR_A_CONTAINER in body:
                return body
            self._answer(fd, body)
        return None

    def _answer(self, fd: int, body: bytes) -> None:
        try:
            reply = self._perform(compact_json.loads(body))
        except (ValueError, KeyError, TypeError) as error:
            reply = _fault(error)
        _say(fd, reply)

    def _perform(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request["op"]
        if op == "hello":
            return {
                "version": VERSION,
                "pid": os.getpid(),
                "containers": True,
                "orders": self._orders,
                "root": self._takes_root,
            }
        if op == "ping":
            return {}
        if op == "stop":
            self._stopped = True
            return {}
        return {"error": {"code": "invalid", "message": f"unknown op {op!r}", "step": "zygote"}}

    def _become_shim(self, asker: int, body: bytes) -> None:
        """In the child. The shim's socket is made before the answer: whoever has that can connect."""
        os.setsid()
        passed = self._passed
        for fd in self._peers:
            # The objects around them are left alone: nobody gives them up before this process ends.
            if fd != asker or passed >= 0:
                os.close(fd)
        if passed >= 0:
            try:
                self._tend(passed, self._root, body)
            except OSError as error:
                _say(passed, _fault(error))
            return
        divided = self._divide(asker)
        if divided is None:
            return
        try:
            request = compact_json.loads(body)
            if request["op"] != "fork_shim":
                _say(asker, {"error": {"code": "invalid", "message": f"unknown op {request['op']!r}", "step": "zygote"}})
                return
            listener = listen(os.path.join(request["dir"], "shim.sock"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            _say(asker, _fault(error))
            return
        pid = os.getppid()
        if not _say(asker, {"pid": pid, "start_time": process.start_time(pid)}):
            # Whoever wanted it is gone, and knows of none.
            listener.close()
            with suppress(OSError):
                os.unlink(os.path.join(request["dir"], "shim.sock"))
            return
        os.close(asker)
        self._begin(request, listener, divided)


def _say(fd: int, reply: dict[str, Any]) -> bool:
    """False when whoever asked has gone."""
    try:
        os.write(fd, frame(reply))
        return True
    except OSError:
        return False


def _fault(error: Exception) -> dict[str, Any]:
    if isinstance(error, OSError):
        words = f"{error.strerror or error} {error.filename or ''}".rstrip() + remedy(error)
        return {"error": {"code": "kernel", "message": words, "step": "fork shim"}}
    return {"error": {"code": "invalid", "message": f"{type(error).__name__}: {error}", "step": "zygote"}}


def _reap(wake: int) -> None:
    try:
        os.read(wake, 4096)
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except (BlockingIOError, ChildProcessError):
        pass
