"""Does in the zygote, a few times before it serves, what every shim and every new process does after its fork.

CPython rewrites code on its first runs and fills caches inside its objects. Done before the fork, the pages that hold
them stay shared by all shims; done after it, each shim and each init copies them, which costs memory and half the time
of a start. Nothing is decided here, nothing is left, and what fails is only not rehearsed.
"""

from __future__ import annotations

import _socket
import os

from worker.kernel import mounts, safe_paths, syscalls
from worker.kernel import process as kernel_process
from worker.kernel.bare import Any, NoReturn, signal, suppress
from worker.runtime import (
    birth,
    capabilities,
    cgroups,
    compact_json,
    init,
    launch,
    limits,
    orders,
    prepare,
    sandbox,
    spec,
    sync,
    zygote,
)
from worker.runtime.birth import Birth
from worker.runtime.cgroups import Cgroup, Hierarchy
from worker.runtime.errors import RuntimeFault
from worker.runtime.init import Init
from worker.runtime.launch import Host, LaunchPlan, Step
from worker.runtime.orders import Orders
from worker.shim import bundle, direct, keeper, logs, records
from worker.shim.loop import READ
from worker.shim.main import Shim
from worker.shim.process import Process

_ROUNDS = 12
"""From the eighth run on CPython 3.11 specialises a function; the specialised form needs a few runs of its own."""
_PATIENCE = 5.0
_LINUX: dict[str, Any] = {
    "namespaces": [{"type": kind} for kind in ("mount", "pid", "network", "ipc", "uts", "cgroup")],
    "cgroupsPath": "/covey-rehearsal/container",
    "resources": {
        "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}],
        "memory": {"limit": 1 << 28},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
        "pids": {"limit": 64},
    },
    "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
    "maskedPaths": ["/proc/kcore", "/sys/firmware"],
    "readonlyPaths": ["/proc/bus", "/proc/sys"],
}
_CONFIG: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "root": {"path": "/"},
    "process": {
        "cwd": "/",
        "args": ["true"],
        "env": ["PATH=/usr/bin:/bin"],
        "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
        "capabilities": {key: ["CAP_CHOWN", "CAP_KILL"] for key in ("bounding", "effective", "permitted")},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
    },
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
        {"destination": "/etc/hosts", "type": "bind", "source": "/etc/hosts", "options": ["rbind", "rprivate"]},
    ],
    "linux": _LINUX,
}


def rehearse(hierarchies: list[Hierarchy]) -> None:
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for _ in range(_ROUNDS):
        # The machine's /tmp by hand: tempfile and shutil would bring along what makes every fork dearer.
        directory = f"/tmp/covey-rehearsal-{os.urandom(8).hex()}"
        os.mkdir(directory, 0o700)
        try:
            with suppress(OSError):
                _plan(hierarchies)
                _make(directory)
                _furnish(hierarchies)
                _live(directory, hierarchies)
                _keep()
                _tend()
                _become(directory)
        finally:
            with suppress(OSError):
                _remove(directory)


def _remove(directory: str) -> None:
    for base, directories, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(f"{base}/{name}")
        for name in directories:
            os.rmdir(f"{base}/{name}")
    os.rmdir(directory)


def _plan(hierarchies: list[Hierarchy]) -> None:
    """What a new process works out."""
    config = compact_json.loads(compact_json.dumps(_CONFIG))
    spec.check(config)
    group = Cgroup(_LINUX["cgroupsPath"], hierarchies)
    host = Host(capabilities.held(), group.mounts(), group.entrances())
    launch.plan_container(config, host)
    birth.Birth.from_json(birth.of_container(config).to_json())
    template = {**_CONFIG, "mounts": _CONFIG["mounts"][:-1]}
    sandbox.fits(template, config)
    sandbox.difference(template, config)
    sandbox.ahead(template, host, "/")
    sandbox.rest(template, config, host)
    sandbox.sources(template, config)
    limits.writes(_LINUX["resources"], group.version)


def _make(directory: str) -> None:
    """How it makes its tree, on one that nobody has: detached mounts, and places in a scratch directory."""
    root = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for fd in (
        safe_paths.make_dirs_in_root(root, "/a/b"),
        safe_paths.create_file_in_root(root, "/c/d"),
        safe_paths.open_in_root(root, "/a", follow=False),
        mounts.new_filesystem("tmpfs", ["mode=755", "size=64k"], source="tmpfs"),
        root,
    ):
        os.close(fd)
    cgroups.write(f"{directory}/c/d", "0")
    safe_paths.write_proc("self/oom_score_adj", cgroups.read("/proc/self/oom_score_adj").strip())


def _furnish(hierarchies: list[Hierarchy]) -> None:
    """The steps that make a tree, on one that is attached nowhere and goes with its descriptor.

    Kernels before 6.15 mount nothing there: up to that a step is rehearsed anyhow.
    """
    ours, theirs = sync.pair()
    tree = Init(ours, None, 0, False)
    tree.root_fd = mounts.new_filesystem("tmpfs", ["mode=755", "size=64k"])
    try:
        group = Cgroup("/", hierarchies)
        for step in (
            *launch.mount_steps(_CONFIG["mounts"], Host(0, group.mounts(), [])),
            *launch.device_steps(_LINUX, user_namespace=False),
            *launch.hiding_steps({**_LINUX, "sysctl": {}}),
        ):
            with suppress(OSError, RuntimeFault):
                init.perform(tree, [step])
    finally:
        os.close(tree.root_fd)
        for channel in (ours, theirs):
            channel.close()


def _live(directory: str, hierarchies: list[Hierarchy]) -> None:
    """A shim with one client, and a process of the host's own that runs ``true``, from its fork to its end."""
    listener = zygote.listen(os.path.join(directory, "shim.sock"))
    shim = Shim("rehearsal", directory, listener, hierarchies, os.getpid())
    loop, container = shim.loop, shim.container
    client = _socket.socket(_socket.AF_UNIX)
    client.connect(f"{directory}/shim.sock")
    log = logs.opened(loop, {"driver": "json-file", "path": f"{directory}/log"})

    def ended(process: Process) -> None:
        records.write(directory, "exit.json", {"id": "rehearsal", "exit_code": process.exit_code}, durable=False)
        container.describe()
        loop.call_later(0, loop.stop)

    process = Process(loop, log, ended)
    steps = [Step("find_program", args=["true"], env=["PATH=/usr/bin:/bin"]), Step("announce_exec"), Step("execve")]

    def created(fault: object) -> None:
        if fault is None:
            process.start(lambda _: None)

    loop.watch_children(lambda pid, status: process.on_reaped(status) if pid == process.pid else None)
    loop.add(listener.fileno(), READ, lambda _: shim.accept())
    loop.call_later(_PATIENCE, loop.stop)
    container.record_identity()
    for op in ("hello", "pids", "start", "unknown", "events"):
        client.sendall(zygote.frame({"op": op}))
    process.create(
        Birth(0, [], False, None, 0),
        _planned(steps),
        Cgroup("/covey-rehearsal/container", hierarchies),
        stdin=False,
        answer=created,
    )
    loop.run()
    client.close()
    listener.close()
    if log is not None:
        log.close()
    loop.close()
    signal.set_wakeup_fd(-1)


def _keep() -> None:
    """A keeper whose worker leaves a pipe with something in it."""
    read, write = os.pipe2(os.O_CLOEXEC)
    os.write(write, b"x")
    worker, channel = keeper.fork()
    if worker == 0:
        keeper.Channel(channel).hand_over({}, [(read, keeper.READABLE), (write, 0)])
        os._exit(0)
    handed = keeper.outlast(worker, channel)
    if handed is not None:
        keeper.sleep(handed)
        for fd in (*handed.fds, read, write):
            os.close(fd)


def _tend() -> None:
    """A keeper whose container is started, ends at once, and has a worker that ends it all."""
    read, write = os.pipe2(os.O_CLOEXEC)
    ours, theirs = _socket.socketpair()
    watched = [(read, keeper.READABLE), (ours.fileno(), keeper.READABLE), (write, 0)]

    def become(channel: Any, keeper_pid: int) -> NoReturn:
        keeper.send(channel, keeper.packed(keeper.EXECUTES, {}, watched), watched)
        os._exit(0)

    def resume(handed: keeper.Handed, channel: keeper.Channel) -> None:
        os._exit(0)

    os.write(write, b"x")
    keeper.tend([theirs.detach()], become, resume)
    syscalls.prctl(syscalls.PR_SET_NAME, b"covey-zygote")
    ours.close()
    os.close(read)
    os.close(write)


class _Rehearsed(direct.Maker):
    """Serves itself, without becoming anything."""

    def live(self, request: dict[str, Any]) -> None:
        self._request = request
        # Not on an ordinary way, but on a sandbox's.
        bundle.load(request["bundle"], False)
        given = Orders.from_plain(request["orders"])
        group = self._claim(given.cgroup)
        group.create()
        for _, file, *_ in given.group.files:
            # What the kernel puts into a cgroup.
            os.close(os.open(f"{group.directories()[0]}/{file}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC))
        prepare.carry_out(given, group)
        self._listener = zygote.listen(os.path.join(request["dir"], "direct.sock"))
        self._pid, self._started = os.getpid(), kernel_process.start_time(os.getpid())
        self._fds = [
            ("listener", self._listener.fileno(), keeper.READABLE),
            ("events", self._line.fileno(), keeper.READABLE),
        ]
        if self.wait_asked_to_start():
            self.announce()
        self._say(zygote.frame({"init_pid": self._pid, "init_start_time": self._started}))


def _become(directory: str) -> None:
    """What the process of a container does that serves itself, but for what would change this one."""
    daemon, line = _socket.socketpair()
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        hierarchy = Hierarchy(f"{directory}/cgroup", ("cpu", "devices", "memory", "pids"), 1)
        with open(f"{directory}/config.json", "wb") as file:
            file.write(compact_json.dumps(_CONFIG))
        made = _Rehearsed(line.detach(), theirs, os.getpid(), [hierarchy], direct.Sight())
        daemon.sendall(zygote.frame({"op": "start", "events": True}))
        machine = prepare.host_of(Cgroup(_LINUX["cgroupsPath"], [hierarchy]))
        given = orders.of_container(_CONFIG, machine, hierarchy.version).to_plain()
        request = {
            "id": "rehearsal",
            "dir": directory,
            "bundle": directory,
            "log": {"path": f"{directory}/log"},
            "orders": given,
        }
        os.makedirs(f"{directory}/cgroup/covey-rehearsal")
        made.live(zygote.request_for_container(zygote.packed(request)[4:]))
        handed = keeper.received(ours)
        for fd in handed.fds if handed is not None else ():
            os.close(fd)
    finally:
        for one in (daemon, ours, theirs):
            one.close()


def _planned(steps: list[Step]) -> Any:
    def prepare(_: Init) -> LaunchPlan:
        return LaunchPlan([], steps)

    return prepare
