"""Makes a container of a bundle, up to where its init waits to be started, and unmakes it when that fails.

The order is what a death of this process in between may leave: first the record that says "creating" (with the cgroup,
so that the next create can clear it), then cgroup, init, hooks, console, pid file, and last the record that says
"created". Until init is told to detach, our death is init's. It does not know how the command line is written.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import socket
import time
from collections.abc import Iterable
from typing import Any

from worker.kernel import process as kernel_process
from worker.kernel import syscalls
from worker.runtime import birth, init, launch, mount_options, orders, prepare, spec, sync
from worker.runtime.cgroups import Cgroup
from worker.runtime.command import bundle, console, ending
from worker.runtime.command.outside import Outside
from worker.runtime.command.report import CommandError, Log
from worker.runtime.command.store import Entry, Store
from worker.runtime.errors import RuntimeFault
from worker.runtime.init import Detachment, Stdio
from worker.runtime.launch import LaunchPlan, Step
from worker.runtime.process import Launch, hand_over
from worker.runtime.process import launch as fork


class Wishes:
    """What a caller of create or run wants beside the bundle.

    ``console_socket``: where the terminal's master goes; without, ``Built.console`` has it. ``kept``: descriptors from 3
    on that the process has from the caller.
    """

    def __init__(self, console_socket: str, pid_file: str, *, pivot: bool, keyring: bool, kept: int) -> None:
        self.console_socket = console_socket
        self.pid_file = pid_file
        self.pivot = pivot
        self.keyring = keyring
        self.kept = kept


class Built:
    """A created container: its entry, locked; the pid and pidfd of its init; its terminal's master, if nobody else has."""

    def __init__(self, entry: Entry, pid: int, pidfd: int, console_fd: int | None) -> None:
        self.entry = entry
        self.pid = pid
        self.pidfd = pidfd
        self.console = console_fd


def build(store: Store, ident: str, directory: str, config: spec.Config, wishes: Wishes, log: Log) -> Built:
    """Raises CommandError, RuntimeFault or OSError, leaving nothing."""
    left = store.abandoned(ident)
    if left is not None:
        log.warn(f"container {ident!r}: an earlier create was killed: removing what it left")
        ending.remove(left, log)
        left.unlock()
    group = Cgroup(config["linux"]["cgroupsPath"])
    entry = store.new(ident, _record(directory, config))
    launched: Launch | None = None
    try:
        _occupy(entry, group)
        entry.save_config(config)
        prepare.make_group(orders.of_group(config, group.version), group)
        plan = adapted(launch.plan_container(bundle.with_filter(config), prepare.host_of(group)), config["process"], wishes)
        for words in plan.warnings:
            log.warn(words)
        prepare_process()
        with contextlib.closing(_listen(entry)) as listener:
            launched = _fork(plan, group, config, wishes.kept, Detachment(listener.fileno()))
        launched.on_request = Outside(entry, config).answer(launched, "creating")
        follow(launched, "created")
        master = launched.console
        if master is not None and wishes.console_socket:
            console.send(wishes.console_socket, master)
            os.close(master)
            master = None
        if wishes.pid_file:
            write_pid(wishes.pid_file, launched.pid)
        entry.record.update(phase="created", pid=launched.pid, start_time=launched.start_time)
        entry.save()
        launched.channel.send(sync.DETACH)
        launched.channel.close()
        return Built(entry, launched.pid, launched.pidfd, master)
    except BaseException:
        _unmake(entry, launched, wishes, log)
        raise


def discard(built: Built, log: Log) -> None:
    """Unmake a container whose start has failed, when nobody but the command that made it has seen it."""
    kernel_process.send_signal(built.pidfd, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(built.pid, 0)
    ending.remove(built.entry, log)
    built.entry.unlock()


def _unmake(entry: Entry, launched: Launch | None, wishes: Wishes, log: Log) -> None:
    if launched is not None:
        launched.signal(signal.SIGKILL)
        os.waitpid(launched.pid, 0)
        launched.close()
    ending.remove(entry, log)
    entry.unlock()
    if wishes.pid_file:
        with contextlib.suppress(OSError):
            os.unlink(wishes.pid_file)


def _record(directory: str, config: spec.Config) -> dict[str, Any]:
    moment = time.time_ns()
    return {
        "ociVersion": config["ociVersion"],
        "bundle": directory,
        "rootfs": config["root"]["path"],
        "created": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment // 10**9)) + f".{moment % 10**9:09}Z",
        "annotations": config.get("annotations") or {},
        "owner": _user_name(os.geteuid()),
        "cgroup": "",
        "cgroup_paths": {},
    }


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _occupy(entry: Entry, group: Cgroup) -> None:
    """The cgroup must be the container's alone: whatever is in it is killed when the container is deleted.

    So it is on record only once that is sure.
    """
    prepare.check_unused(group)
    if group.version == 2:
        paths = {"": group.directories()[0]}
    else:
        paths = {name: hierarchy.mount + group.path for hierarchy in group.hierarchies for name in hierarchy.controllers}
    entry.record.update(cgroup=group.path, cgroup_paths=paths)
    entry.save()


def adapted(plan: LaunchPlan, process: dict[str, Any], wishes: Wishes) -> LaunchPlan:
    """The plan with what the command line changes in it. A program that is missing is create's error, as it is runc's."""
    plan.create.append(
        Step("check_program", args=list(process["args"]), env=list(process.get("env") or []), cwd=process["cwd"])
    )
    plan.start = with_home(plan.start, process)
    if not wishes.pivot:
        plan.create = [Step("move_root") if step.name == "pivot" else step for step in plan.create]
    if not wishes.keyring:
        plan.start = [step for step in plan.start if step.name != "session_keyring"]
    return plan


def with_home(steps: Iterable[Step], process: dict[str, Any]) -> list[Step]:
    """The steps of a start, with one that sets HOME; podman and containerd leave it to the runtime."""
    result: list[Step] = []
    for step in steps:
        result.append(step)
        if step.name == "find_program":
            result.append(Step("home", uid=int((process.get("user") or {}).get("uid") or 0)))
    return result


def _listen(entry: Entry) -> socket.socket:
    """The socket at which init waits for its start; the path may be longer than an address holds."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(f"/proc/self/fd/{entry.lock_fd}/start.sock")
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def _fork(plan: LaunchPlan, group: Cgroup, config: spec.Config, kept: int, detachment: Detachment) -> Launch:
    born = birth.of_container(config)
    stdio = stdio_of(config, config["process"], kept)
    return fork(born, lambda _: plan, stdio, group, trees=mount_options.mapped_trees(config), detachment=detachment)


def stdio_of(config: spec.Config, process: dict[str, Any], kept: int) -> Stdio:
    """Ours, given to the user the process will be; a terminal's it makes itself."""
    if process.get("terminal"):
        return Stdio(None, None, None, kept)
    for fd in (0, 1, 2):
        hand_over(fd, birth.host_uid(config["linux"], process))
    return Stdio(0, 1, 2, kept)


def prepare_process() -> None:
    """Make this process fit to fork one of a container."""
    syscalls.prctl(syscalls.PR_SET_NAME, b"covey-runtime")
    init.prepare()


def follow(launched: Launch, phase: str) -> None:
    """Wait until the process has got to ``phase``; what stops it on the way is raised."""
    poll = select.poll()
    poll.register(launched.channel.fileno(), select.POLLIN)
    while launched.phase != phase:
        if launched.phase == "failed":
            raise launched.fault or RuntimeFault("kernel", "the process has ended", phase)
        poll.poll()
        launched.on_readable()


def write_pid(path: str, pid: int) -> None:
    """The number without a newline; a reader sees all of it or no file."""
    temporary = os.path.join(os.path.dirname(path) or ".", f".{os.path.basename(path)}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="ascii") as file:
            file.write(str(pid))
        os.rename(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise CommandError(f"--pid-file {path}: {error.strerror}") from None
