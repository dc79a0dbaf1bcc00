"""config-linux.md, "Seccomp": a bundle's own filter on a real kernel, and the supervisor that is asked about calls."""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import errno
import json
import os
import platform
import signal
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import PATIENCE, wait_until
from tests.runtime.spec.table import Table
from worker.runtime.errors import RuntimeFault

TABLE = Table("config-linux.md seccomp")
_NOTIF = struct.Struct("=QII iIQ6Q")
_NOTIF_RESP = struct.Struct("=QqiI")
# include/uapi/linux/seccomp.h: SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND
_RECV, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1


def profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"seccomp": {"defaultAction": default, "syscalls": list(rules), **more}}


def rule(names: str, action: str = "ERRNO", *args: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"names": names.split(), "action": f"SCMP_ACT_{action}", **({"args": list(args)} if args else {}), **more}


def when(index: int, op: str, value: int, second: int = 0) -> dict[str, Any]:
    return {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": second}


MAKE = "mkdir mkdirat"
TMP = {"mounts": [{"destination": "/tmp", "type": "tmpfs", "options": ["mode=1777"]}]}


async def mkdir(boxes: Any, linux: dict[str, Any], words: str = "mkdir /tmp/x && echo made", **changes: Any) -> Any:
    return await boxes.sh(words, linux=linux, **TMP, **changes)


@TABLE.row("syscalls.action", "SCMP_ACT_ERRNO answers EPERM unless errnoRet says otherwise")
async def _(boxes):
    assert "Operation not permitted" in (await mkdir(boxes, profile(rule(MAKE)))).err
    assert "No space left" in (await mkdir(boxes, profile(rule(MAKE, errnoRet=errno.ENOSPC)))).err


for action, wanted in {"KILL": signal.SIGSYS, "KILL_THREAD": signal.SIGSYS, "KILL_PROCESS": signal.SIGSYS,
                       "TRAP": signal.SIGSYS}.items():  # fmt: skip

    @TABLE.row("syscalls.action", f"SCMP_ACT_{action} ends the process by SIGSYS")
    async def _(boxes, action=action, wanted=wanted):
        result = await boxes.run(["mkdir", "/tmp/x"], linux=profile(rule(MAKE, action)), **TMP)
        assert (result.code, result.exit["signal"]) == (128 + wanted, wanted)


for action in ("LOG", "ALLOW"):

    @TABLE.row("syscalls.action", f"SCMP_ACT_{action} lets the call be made")
    async def _(boxes, action=action):
        assert (await mkdir(boxes, profile(rule(MAKE, action), default="SCMP_ACT_LOG"))).out == "made\n"


@TABLE.row("syscalls.action", "SCMP_ACT_TRACE without a tracer answers ENOSYS")
async def _(boxes):
    assert "not implemented" in (await mkdir(boxes, profile(rule(MAKE, "TRACE")))).err


@TABLE.row("defaultAction, defaultErrnoRet", "hold for what no rule matches")
async def _(boxes):
    # What sh, mkdir and our own way to execve need; mkdir is left out.
    needed = (
        "read write open openat close stat fstat lstat newfstatat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask "
        "rt_sigreturn ioctl access pipe dup2 getpid clone fork vfork execve exit wait4 fcntl getcwd chdir getuid getgid setuid "
        "setgid setresuid setresgid setgroups geteuid getegid getppid arch_prctl set_tid_address set_robust_list rseq prctl "
        "prlimit64 getrandom exit_group close_range capset capget umask poll ppoll sendmsg recvmsg dup sigaltstack futex "
        "readlink readlinkat faccessat faccessat2 pread64 uname sysinfo statx gettid tgkill setpgid getpgrp"
    )
    linux = profile(rule(needed, "ALLOW"), default="SCMP_ACT_ERRNO", defaultErrnoRet=errno.EXDEV)
    result = await mkdir(boxes, linux, "mkdir /tmp/x")
    assert "Invalid cross-device link" in result.err or "ross-device" in result.err, result


for op, value, second, hits in (("EQ", 0o700, 0, "700"), ("NE", 0o700, 0, "711 777"), ("GT", 0o711, 0, "777"),
                                ("GE", 0o711, 0, "711 777"), ("LT", 0o711, 0, "700"), ("LE", 0o711, 0, "700 711"),
                                ("MASKED_EQ", 0o070, 0o010, "711")):  # fmt: skip

    @TABLE.row("syscalls.args.op", f"SCMP_CMP_{op} compares the argument")
    async def _(boxes, op=op, value=value, second=second, hits=hits):
        # chmod is fchmodat in some C libraries, with the mode one argument later.
        rules = [
            rule("chmod", "ERRNO", when(1, op, value, second)),
            rule("fchmodat fchmodat2", "ERRNO", when(2, op, value, second)),
        ]
        script = "touch /tmp/x; for m in 700 711 777; do chmod $m /tmp/x 2>/dev/null || echo $m; done"
        assert " ".join((await mkdir(boxes, profile(*rules), script)).out.split()) == hits


@TABLE.row("architectures", "calls of other architectures than those named are closed")
async def _(boxes):
    if platform.machine() != "x86_64":
        pytest.skip("makes calls of i386")
    program = boxes.base / "old"
    # ELF32: mov eax, 20 (getpid); int 0x80; mov ebx, eax; and ebx, 1 -> exit(0 or 1); ended by the filter before.
    code = bytes.fromhex("b814000000cd80bb05000000b801000000cd80")
    header = bytes.fromhex("7f454c4601010100") + bytes(8)
    base = 0x8048000
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    size = 84 + len(code)
    program.write_bytes(header + struct.pack("<8I", 1, 0, base, base, size, size, 5, 4096) + code)
    program.chmod(0o755)
    mounts = [{"destination": "/tmp", "type": "bind", "source": str(boxes.base), "options": ["rbind"]}]
    free = await boxes.run(["/tmp/old"], mounts=mounts)
    if free.code != 5:
        pytest.skip("this kernel runs no programs of i386")
    named = profile(rule("mkdir"), architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])
    assert (await boxes.run(["/tmp/old"], mounts=mounts, linux=named)).code == 5
    closed = profile(rule("mkdir"), architectures=["SCMP_ARCH_X86_64"])
    assert (await boxes.run(["/tmp/old"], mounts=mounts, linux=closed)).exit["signal"] == signal.SIGSYS


for flags in (["SECCOMP_FILTER_FLAG_TSYNC"], ["SECCOMP_FILTER_FLAG_LOG"], ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
              ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"], []):  # fmt: skip

    @TABLE.row("flags", f"{', '.join(flags) or 'none'} with a filter")
    async def _(boxes, flags=flags):
        assert "Operation not permitted" in (await mkdir(boxes, profile(rule(MAKE), flags=flags))).err


@TABLE.row("flags, architectures, operators", "unknown ones are errors naming the field")
async def _(boxes):
    for linux, field in (
        (profile(flags=["SECCOMP_FILTER_FLAG_X"]), "flags"),
        (profile(architectures=["SCMP_ARCH_Z80"]), "architectures"),
        (profile(rule("mkdir", "ERRNO", {"index": 0, "value": 1, "op": "SCMP_CMP_ISH"})), "op"),
        (profile(rule("mkdir", "SHRUG")), "action"),
        (profile(default="SCMP_ACT_SHRUG"), "defaultAction"),
    ):
        with pytest.raises(RuntimeFault, match=rf"linux\.seccomp.*{field}"):
            await boxes.make(["true"], linux=linux)


@TABLE.row("errnoRet", "with an action that answers no errno is an error")
async def _(boxes):
    with pytest.raises(RuntimeFault, match="answers no errno"):
        await boxes.make(["true"], linux=profile(rule("mkdir", "KILL", errnoRet=5)))


@TABLE.row("names", "those that are no system call are passed over")
async def _(boxes):
    assert (await mkdir(boxes, profile(rule("nothing_of_the_kind")))).out == "made\n"


TABLE.refuses("defaultAction", "is required", "linux.seccomp", {"syscalls": [{}]}, "linux.seccomp.defaultAction")
TABLE.refuses("syscalls.names", "at least one is required", "linux.seccomp",
              {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_LOG"}]},
              "linux.seccomp.syscalls[0].names")  # fmt: skip
TABLE.refuses("listenerMetadata", "must not be set without listenerPath", "linux.seccomp",
              {"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}, "linux.seccomp.listenerMetadata")  # fmt: skip


for no_new_privileges in (False, True):

    @TABLE.row("seccomp", f"a filter holds for exec too, noNewPrivileges {no_new_privileges}")
    async def _(boxes, no_new_privileges=no_new_privileges):
        process = {"noNewPrivileges": no_new_privileges}
        box = await boxes.start(["sleep", "60"], linux=profile(rule(MAKE)), process=process, **TMP)
        code, _, err = await box.run_exec("e", ["mkdir", "/tmp/x"], **process)
        assert (code, b"not permitted" in err) == (1, True)


# The supervisor


class Agent:
    """Listens at ``path``; answers every call it is asked about with ``error`` (negative errno), or lets it go on."""

    def __init__(self, path: Path, error: int | None) -> None:
        self.path = path
        self.states: list[dict[str, Any]] = []
        self.calls: list[tuple[int, int]] = []
        self._error = error
        self._descriptors: list[int] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(PATIENCE)
        with connection:
            data, rights, _, _ = connection.recvmsg(65536, socket.CMSG_LEN(4 * 8))
            while more := connection.recv(65536):
                data += more
        descriptors = array.array("i")
        for _, _, packed in rights:
            descriptors.frombytes(packed)
        assert len(descriptors) == 1
        self.states.append(json.loads(data))
        self._descriptors.append(descriptors[0])
        asyncio.get_running_loop().add_reader(descriptors[0], self._answer, descriptors[0])

    def _answer(self, descriptor: int) -> None:
        buffer = ctypes.create_string_buffer(80)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ioctl(descriptor, ctypes.c_ulong(_RECV), buffer) < 0:
            asyncio.get_running_loop().remove_reader(descriptor)
            return
        ident, pid, _, number, *_ = _NOTIF.unpack(buffer.raw)
        self.calls.append((pid, number))
        words = (ident, 0, self._error or 0, 0 if self._error else _CONTINUE)
        libc.ioctl(descriptor, ctypes.c_ulong(_SEND), ctypes.create_string_buffer(_NOTIF_RESP.pack(*words), 24))

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for descriptor in self._descriptors:
            loop.remove_reader(descriptor)
            os.close(descriptor)


@contextlib.asynccontextmanager
async def agent(boxes: Any, error: int | None = None) -> AsyncIterator[Agent]:
    # Not below the test's own directory: that may be longer than a socket address can be.
    place = Path(f"/tmp/covey-test-agent-{os.getpid()}")
    made = Agent(place, error)
    try:
        yield made
    finally:
        made.close()
        place.unlink()


for error, wanted in ((-errno.ENOSPC, "No space left"), (None, "made")):

    @TABLE.row("listenerPath", f"the agent answers a notified call: {wanted}")
    async def _(boxes, error=error, wanted=wanted):
        async with agent(boxes, error) as supervisor:
            linux = profile(
                rule(MAKE, "NOTIFY"), listenerPath=str(supervisor.path), flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
            )
            result = await mkdir(boxes, linux)
            assert wanted in result.out + result.err
            assert len(supervisor.calls) == 1


@TABLE.row("container process state", "is sent with the descriptor: version, fds, pid, metadata and the container's state")
async def _(boxes):
    async with agent(boxes) as supervisor:
        linux = profile(rule(MAKE, "NOTIFY"), listenerPath=str(supervisor.path), listenerMetadata="a=b;c")
        box = await boxes.start(["sleep", "60"], linux=linux, annotations={"org.example": "words"})
        await wait_until("the state", lambda: supervisor.states)
        assert supervisor.states == [
            {
                "ociVersion": "1.0.2",
                "fds": ["seccompFd"],
                "pid": box.init_pid,
                "metadata": "a=b;c",
                "state": {
                    "ociVersion": "1.0.2",
                    "id": "box0",
                    "status": "created",
                    "pid": box.init_pid,
                    "bundle": str(box.directory),
                    "annotations": {"org.example": "words"},
                },
            }
        ]


@TABLE.row("container process state", "is sent for an executed process too, on a connection of its own")
async def _(boxes):
    async with agent(boxes, -errno.ENOSPC) as supervisor:
        linux = profile(rule(MAKE, "NOTIFY"), listenerPath=str(supervisor.path))
        box = await boxes.start(["sleep", "60"], linux=linux)
        code, _, err = await box.run_exec("e", ["mkdir", "/tmp/x"])
        assert (code, b"No space left" in err) == (1, True)
        assert len(supervisor.states) == 2
        first, second = supervisor.states
        assert second["state"] == {**first["state"], "status": "running"}
        assert second["pid"] not in (first["pid"], 0)


@TABLE.row("listenerPath", "a socket that cannot be sent to is an error, and the program does not run")
async def _(boxes):
    linux = profile(rule(MAKE, "NOTIFY"), listenerPath="/no/such/socket")
    box = await boxes.make(["echo", "ran"], linux=linux)
    with pytest.raises(RuntimeFault, match=r"linux\.seccomp\.listenerPath: /no/such/socket: No such file"):
        await box.shim.start()
    await box.exit()
    assert "ran" not in box.log.read_text()


@TABLE.row("listenerPath", "is ignored where no call is notified of")
async def _(boxes):
    linux = profile(rule(MAKE), listenerPath="/no/such/socket")
    assert "Operation not permitted" in (await mkdir(boxes, linux)).err


@TABLE.row("listenerPath", "is needed where one is")
async def _(boxes):
    with pytest.raises(RuntimeFault, match=r"linux\.seccomp\.listenerPath: is required"):
        await boxes.make(["true"], linux=profile(rule(MAKE, "NOTIFY")))


test_rows, test_refusals = TABLE.tests()
