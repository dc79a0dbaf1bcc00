"""What is on record of the containers: one directory each below --root, and what status a container has.

``<root>/<id>/``: state.json (who it is; written whole or not at all), config.json (the bundle's, as it was at create),
start.sock (init listens there until it is started). A directory appears with state.json in it, by a rename, and a command
that changes a container holds its lock, which the kernel lets go of when the command dies. So a record that says
"creating" and is not locked is of a create that was killed; the next one clears it away.

Status is asked of the kernel: the process of that pid and start time (a zombie has stopped), the freezer, the socket.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

from worker.kernel import process as kernel_process
from worker.runtime.command.report import CommandError

if TYPE_CHECKING:
    from worker.runtime.cgroups import Cgroup

VERSION = 1
_ID = re.compile(r"[\w+.-]{1,1024}", re.ASCII)
_LOCK_PATIENCE, _LOCK_POLL = 10.0, 0.005

Record = dict[str, Any]
"""id, ociVersion, bundle, rootfs, created (RFC 3339), annotations, owner; phase: creating or created; pid and start_time of
init (clock ticks since boot); cgroup: the path, empty before it is ours; cgroup_paths: controller (v2: "") → directory."""


class Missing(CommandError):
    """There is no container of this id."""


def check_id(ident: str) -> None:
    """Raise CommandError for what cannot be the name of a directory here; names with a dot first are ours."""
    if not _ID.fullmatch(ident) or ident in (".", "..") or ident.startswith(".") or len(os.fsencode(ident)) > 255:
        words = "letters, digits and _ + - . do, but a dot not first, and 255 at most"
        raise CommandError(f"invalid character or form of container ID {ident!r}: {words}")


class Entry:
    """A container on record. ``lock_fd``: its directory, locked for as long as this command lives; -1 without."""

    def __init__(self, directory: str, record: Record, lock_fd: int = -1) -> None:
        self.directory = directory
        self.record = record
        self.lock_fd = lock_fd

    @property
    def ident(self) -> str:
        return str(self.record["id"])

    @property
    def socket_path(self) -> str:
        return os.path.join(self.directory, "start.sock")

    def save(self) -> None:
        write_json(os.path.join(self.directory, "state.json"), {"version": VERSION, **self.record})

    def save_config(self, config: dict[str, Any]) -> None:
        write_json(os.path.join(self.directory, "config.json"), config)

    def config(self) -> dict[str, Any]:
        with open(os.path.join(self.directory, "config.json"), "rb") as file:
            return dict(json.load(file))

    def alive(self) -> bool:
        return bool(self.record["pid"]) and kernel_process.is_alive(self.record["pid"], self.record["start_time"])

    def status(self) -> str:
        """creating, created, running, paused or stopped."""
        if self.record["phase"] == "creating":
            return "creating"
        if not self.alive():
            return "stopped"
        if self.frozen():
            return "paused"
        return "created" if self._awaits_start() else "running"

    def frozen(self) -> bool:
        paths = self.record["cgroup_paths"]
        file = f"{paths['']}/cgroup.events" if "" in paths else f"{paths.get('freezer')}/freezer.state"
        try:
            with open(file, encoding="ascii") as lines:
                # v1 says THAWED, FREEZING or FROZEN.
                return any(line.strip() in ("FREEZING", "FROZEN", "frozen 1") for line in lines)
        except OSError:
            return False

    def _awaits_start(self) -> bool:
        """Whether init listens: its socket closes with the start, whatever became of who started it."""
        if not os.path.exists(self.socket_path):
            return False
        try:
            connect(self.directory).close()
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            return True
        return True

    def group(self) -> Cgroup:
        """Its Cgroup. Raises CommandError while it has none: an empty path would be the cgroup of the whole machine."""
        from worker.runtime.cgroups import Cgroup

        if not self.record["cgroup"]:
            raise CommandError(f"container not running: {self.ident!r} is {self.record['phase']} and has no cgroup yet")
        return Cgroup(self.record["cgroup"])

    def unlock(self) -> None:
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def remove(self) -> None:
        """Let the record go, state.json last: until then a command that is killed leaves what can be removed again."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.directory):
                if name != "state.json":
                    os.unlink(os.path.join(self.directory, name))
            os.unlink(os.path.join(self.directory, "state.json"))
            os.rmdir(self.directory)


def connect(directory: str) -> Any:
    """A connection to start.sock; the path may be longer than a socket address holds."""
    # The module below socket: half of what ``state`` costs would be loading the rest of it.
    import _socket

    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        connection.setblocking(False)
        connection.connect(f"/proc/self/fd/{place}/start.sock")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(place)
    return connection


class Store:
    """The containers of one --root."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def ids(self) -> list[str]:
        try:
            names = os.listdir(self.root)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if not name.startswith("."))

    def find(self, ident: str) -> Entry:
        """For a command that only looks, or signals."""
        check_id(ident)
        directory = os.path.join(self.root, ident)
        return Entry(directory, _read(directory, ident))

    def lock(self, ident: str) -> Entry:
        """For a command that changes the container; waits for another such command to end."""
        check_id(ident)
        directory = os.path.join(self.root, ident)
        deadline = time.monotonic() + _LOCK_PATIENCE
        while (entry := _try_lock(directory, ident)) is None:
            if time.monotonic() > deadline:
                raise CommandError(f"container {ident!r} is busy: another command has held it for {_LOCK_PATIENCE:.0f} s")
            time.sleep(_LOCK_POLL)
        return entry

    def new(self, ident: str, record: Record) -> Entry:
        """A locked entry of its own, on record as creating; an id that is taken is an error."""
        check_id(ident)
        os.makedirs(self.root, 0o700, exist_ok=True)
        self._sweep()
        temporary = os.path.join(self.root, f".new-{os.getpid()}-{time.monotonic_ns()}")
        os.mkdir(temporary, 0o700)
        try:
            entry = Entry(temporary, {"id": ident, "phase": "creating", "pid": 0, "start_time": 0, **record})
            entry.lock_fd = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(entry.lock_fd, fcntl.LOCK_EX)
            entry.save()
            directory = os.path.join(self.root, ident)
            # Takes the place of nothing or of an empty directory, which is what is left of one that was removed.
            os.rename(temporary, directory)
        except OSError as error:
            _remove_temporary(temporary)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise CommandError(f"container with id exists: {ident!r}: delete it or choose another id") from None
            raise
        entry.directory = directory
        return entry

    def abandoned(self, ident: str) -> Entry | None:
        """The locked entry of a create that was killed; None when there is none."""
        check_id(ident)
        directory = os.path.join(self.root, ident)
        try:
            entry = _try_lock(directory, ident)
        except Missing:
            return None
        if entry is not None and entry.record["phase"] != "creating":
            os.close(entry.lock_fd)
            return None
        return entry

    def _sweep(self) -> None:
        """Remove what creates that were killed before their first rename have left."""
        for name in os.listdir(self.root):
            if not name.startswith(".new-"):
                continue
            path = os.path.join(self.root, name)
            with contextlib.suppress(OSError):
                # Between mkdir and flock a directory has no lock yet; its maker's pid says that it is in use.
                if kernel_process.start_time(int(name.split("-")[1])) is None:
                    _remove_temporary(path)


def _remove_temporary(directory: str) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)


def _try_lock(directory: str, ident: str) -> Entry | None:
    """None while somebody else has the lock."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(ident) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(directory).st_ino != os.fstat(fd).st_ino:
            raise BlockingIOError
        return Entry(directory, _read(directory, ident), fd)
    except (BlockingIOError, FileNotFoundError):
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise


def _read(directory: str, ident: str) -> Record:
    try:
        with open(os.path.join(directory, "state.json"), "rb") as file:
            record = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(ident) from None
    if record.get("version") != VERSION:
        raise CommandError(f"container {ident!r}: {directory}/state.json is of version {record.get('version')}, not {VERSION}")
    return dict(record)


def _missing(ident: str) -> Missing:
    return Missing(f"container {ident!r} does not exist: `covey-runtime list` shows those of this --root")


def write_json(path: str, body: object) -> None:
    temporary = f"{path}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        data = json.dumps(body).encode()
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
    os.rename(temporary, path)
