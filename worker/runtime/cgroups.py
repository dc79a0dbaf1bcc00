"""One container's control groups: made, limited, filled, frozen, counted, emptied and removed, on v1 and on v2.

The path (``/covey/<id>``) lies below the mount of every hierarchy that has a controller, wherever this process itself
is. Which limit is written to which file is worker.runtime.limits (pure); v2's device rules are a BPF program
(worker.runtime.device_filter). Errors are RuntimeFault or OSError naming the file.
"""

from __future__ import annotations

import errno
import os

from worker.kernel import syscalls
from worker.kernel.bare import Any, Iterable, signal, suppress
from worker.kernel.mounts import unescape
from worker.runtime import device_filter, limits
from worker.runtime.errors import RuntimeFault

CONTROLLERS = (
    "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "io", "rdma", "net_cls", "net_prio",
)  # fmt: skip


class Hierarchy:
    """A mounted cgroup filesystem: its mount point, version and (v1) controllers."""

    __slots__ = ("controllers", "mount", "version")

    def __init__(self, mount: str, controllers: tuple[str, ...], version: int) -> None:
        self.mount = mount
        self.controllers = controllers
        self.version = version


def hierarchies(mountinfo: Iterable[str] | None = None) -> list[Hierarchy]:
    """The hierarchies with controllers: all of v1's, or else v2's. Named ones (systemd's) are left alone."""
    if mountinfo is None:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mountinfo = file.readlines()
    found: dict[tuple[str, ...], Hierarchy] = {}
    unified = None
    for line in mountinfo:
        left, _, right = line.partition(" - ")
        fstype, _, options = right.strip().split(" ", 2)
        mount = unescape(left.split(" ")[4])
        if fstype == "cgroup":
            controllers = tuple(name for name in options.split(",") if name in CONTROLLERS)
            if controllers and controllers not in found:
                found[controllers] = Hierarchy(mount, controllers, 1)
        elif fstype == "cgroup2" and unified is None:
            unified = Hierarchy(mount, (), 2)
    if found:
        return list(found.values())
    return [unified] if unified else []


def available(found: list[Hierarchy]) -> frozenset[str]:
    """The controllers of these hierarchies; of v2 those the root has, and what v2 does without a controller."""
    names: set[str] = set()
    for hierarchy in found:
        names.update(hierarchy.controllers)
        if hierarchy.version == 2:
            names.update(read(f"{hierarchy.mount}/cgroup.controllers").split(), ("freezer", "devices"))
    return frozenset(names)


def read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536).decode("ascii", "replace")
    finally:
        os.close(fd)


def write(path: str, *values: str) -> None:
    """Each in a write of its own."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for value in values:
            try:
                os.write(fd, value.encode())
            except OSError as error:
                raise OSError(error.errno, f"write {value!r}: {error.strerror}", path) from None
    finally:
        os.close(fd)


def _written(path: str, values: list[str], field: str) -> bool:
    """False where there is no such file."""
    try:
        write(path, *values)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RuntimeFault("kernel", f"{field}: {error.strerror} to {path}", "cgroup") from None
    return True


class Cgroup:
    """The directories of one absolute cgroup path. Every method may be called again without harm."""

    def __init__(self, path: str, found: list[Hierarchy] | None = None) -> None:
        self.path = "/" + path.strip("/")
        self.hierarchies = hierarchies() if found is None else found
        if not self.hierarchies:
            raise RuntimeFault("kernel", "no cgroup hierarchy is mounted below /sys/fs/cgroup", "cgroup")
        self.version = self.hierarchies[0].version

    def directory(self, controller: str) -> str | None:
        """The directory in which the controller's files are; None where the machine has no such controller."""
        for hierarchy in self.hierarchies:
            if self.version == 2 or controller in hierarchy.controllers:
                return hierarchy.mount + self.path
        return None

    def directories(self) -> list[str]:
        return [hierarchy.mount + self.path for hierarchy in self.hierarchies]

    def exists(self) -> bool:
        # Most of the time there is none, which stat would say by an exception each.
        return any(os.access(directory, os.F_OK) for directory in self.directories())

    def mounts(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """What a container sees below /sys/fs/cgroup: (name, directory, aliases); v2 is ("", directory, ())."""
        if self.version == 2:
            return [("", self.directories()[0], ())]
        result = []
        for hierarchy in self.hierarchies:
            name = ",".join(hierarchy.controllers)
            aliases = hierarchy.controllers if len(hierarchy.controllers) > 1 else ()
            result.append((name, hierarchy.mount + self.path, aliases))
        return result

    def create(self) -> None:
        for hierarchy in self.hierarchies:
            made = hierarchy.mount
            if self.version == 1:
                # What it lies in is there already, most of the time.
                try:
                    _make(made + self.path, hierarchy)
                    continue
                except FileNotFoundError:
                    pass
            parts = self.path.strip("/").split("/")
            for index, part in enumerate(parts):
                if self.version == 2:
                    _delegate(made)
                made = f"{made}/{part}"
                _make(made, hierarchy, above=index + 1 < len(parts))

    def renamed(self, path: str) -> Cgroup:
        """The same group under another path with the same parent. v2 knows no renaming: there it keeps its name."""
        if self.version == 2:
            return self
        group = Cgroup(path, self.hierarchies)
        for old, new in zip(self.directories(), group.directories(), strict=True):
            os.rename(old, new)
        return group

    def add(self, pid: int) -> None:
        for directory in self.directories():
            write(f"{directory}/cgroup.procs", str(pid))

    def entrances(self) -> list[str]:
        """The files into which a single-threaded process writes 0 to come in itself.

        Of v1 it is ``tasks``: the kernel moves a thread that moves itself at once, while a write to cgroup.procs waits
        (some 10 ms) until no other process is about to fork or exit.
        """
        file = "tasks" if self.version == 1 else "cgroup.procs"
        return [f"{directory}/{file}" for directory in self.directories()]

    def enter(self) -> None:
        """Move this process in, which has one thread."""
        for path in self.entrances():
            write(path, "0")

    def apply(self, resources: dict[str, Any], *, update: bool = False) -> None:
        """Set the limits of OCI linux.resources; with ``update`` only those named, on a group that is in use."""
        current = self._memory_now() if update else (None, None)
        if update:
            self._check_usage(resources.get("memory") or {})
        self.limit(limits.files(limits.writes(resources, self.version, current, devices=not update)))
        if self.version == 2 and not update and resources.get("devices"):
            self.filter_devices(resources["devices"])

    def limit(self, files: Iterable[limits.File]) -> None:
        """Write limits, in their order."""
        for controller, file, values, field, optional, instead in files:
            directory = self.directory(controller)
            if directory is None:
                if optional:
                    continue
                what = f"{field}: no mounted cgroup hierarchy has the controller {controller}"
                raise RuntimeFault("kernel", f"{what}: mount it below /sys/fs/cgroup", "cgroup")
            if not (
                _written(f"{directory}/{file}", values, field)
                or (instead is not None and _written(f"{directory}/{instead[0]}", [instead[1]], field))
                or optional
            ):
                raise RuntimeFault("kernel", f"{field}: this kernel has no {file}", "cgroup")

    def _check_usage(self, memory: dict[str, Any]) -> None:
        """memory.checkBeforeUpdate: on v2 a limit below the usage is refused, where the kernel would kill (v1 refuses)."""
        limit, directory = memory.get("limit") or 0, self.directory("memory")
        if not memory.get("checkBeforeUpdate") or limit <= 0 or self.version == 1 or directory is None:
            return
        used = int(read(f"{directory}/memory.current"))
        if used > limit:
            raise RuntimeFault("invalid", f"memory.limit: {limit} is below the {used} bytes in use", "cgroup")

    def filter_devices(self, rules: list[dict[str, Any]]) -> None:
        """v2: allow what these rules of OCI linux.resources.devices say, and nothing else."""
        try:
            program = syscalls.bpf_load_device_program(device_filter.program(limits.device_rules(rules)))
        except OSError as error:
            raise RuntimeFault("kernel", f"devices: the kernel takes no device program: {error.strerror}", "cgroup") from None
        directory = os.open(self.directories()[0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.bpf_attach_device_program(directory, program)
        finally:
            os.close(directory)
            os.close(program)

    def give_to(self, uid: int) -> None:
        """v2: let ``uid`` make and fill groups below ours (OCI config-linux.md, "Cgroup ownership"; cgroups(7))."""
        directory = self.directories()[0]
        try:
            files = _read_all("/sys/kernel/cgroup/delegate").split()
        except FileNotFoundError:
            files = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]
        os.chown(directory, uid, -1)
        for file in files:
            with suppress(FileNotFoundError):
                os.chown(f"{directory}/{file}", uid, -1)

    def _memory_now(self) -> tuple[int | None, int | None]:
        directory = self.directory("memory")
        if self.version == 2 or directory is None:
            return None, None
        try:
            return (
                int(read(f"{directory}/memory.limit_in_bytes")),
                int(read(f"{directory}/memory.memsw.limit_in_bytes")),
            )
        except OSError:
            return None, None

    def pids(self) -> list[int]:
        """Every process in the group and in groups a container made below it."""
        found: set[int] = set()
        for directory in self.directories()[:1]:
            for base in _with_children(directory):
                with suppress(OSError):
                    found.update(int(line) for line in _read_all(f"{base}/cgroup.procs").split())
        return sorted(found - {0})

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Signal every process; answers how many there were."""
        pids = self.pids()
        if number == signal.SIGKILL and pids and self.version == 2:
            # The kernel's own way misses nobody who forks meanwhile and hits nobody who got a dead one's number.
            with suppress(FileNotFoundError):
                write(f"{self.directories()[0]}/cgroup.kill", "1")
                return len(pids)
        count = 0
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                count += 1
        return count

    def freeze(self, frozen: bool) -> None:
        """Ask for it; ``is_frozen`` says when it is so."""
        if self.version == 2:
            write(f"{self.directories()[0]}/cgroup.freeze", "1" if frozen else "0")
            return
        directory = self.directory("freezer")
        if directory is None:
            raise RuntimeFault(
                "kernel",
                "no mounted cgroup hierarchy has the freezer, so nothing can be paused: mount it below /sys/fs/cgroup",
                "freeze",
            )
        write(f"{directory}/freezer.state", "FROZEN" if frozen else "THAWED")

    def is_frozen(self) -> bool:
        if self.version == 2:
            return "frozen 1" in read(f"{self.directories()[0]}/cgroup.events")
        directory = self.directory("freezer")
        return directory is not None and read(f"{directory}/freezer.state").strip() == "FROZEN"

    def oom_kills(self) -> int:
        """How many processes the out-of-memory killer ended in this group."""
        directory = self.directory("memory")
        if directory is None:
            return 0
        file = "memory.events" if self.version == 2 else "memory.oom_control"
        try:
            return keyed(read(f"{directory}/{file}")).get("oom_kill", 0)
        except OSError:
            return 0

    def open_oom_events(self) -> tuple[int, bool] | None:
        """A descriptor that becomes ready at an out-of-memory event; True when it is to be polled for POLLPRI.

        v1: an eventfd registered at memory.oom_control. v2: memory.events itself. None without a memory controller.
        """
        directory = self.directory("memory")
        if directory is None:
            return None
        if self.version == 2:
            return os.open(f"{directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC), True
        control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            write(f"{directory}/cgroup.event_control", f"{event} {control}")
        except OSError:
            os.close(event)
            return None
        finally:
            os.close(control)
        return event, False

    def remove(self) -> bool:
        """Remove the directories, deepest first; False while processes are still leaving them."""
        done = True
        for directory in self.directories():
            for base in reversed(_with_children(directory)):
                try:
                    os.rmdir(base)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    done = False
        return done

    def stats(self) -> dict[str, Any]:
        """Raw numbers; see worker.runtime.cgroup_stats for the shape."""
        from worker.runtime import cgroup_stats

        return cgroup_stats.collect(self)


def _with_children(directory: str) -> list[str]:
    """The group's directory and those a container made below it, parents first; cgroup file systems count links."""
    try:
        if os.stat(directory).st_nlink <= 2:
            return [directory]
    except OSError:
        return [directory]
    return [base for base, _, _ in os.walk(directory)]


def keyed(text: str) -> dict[str, int]:
    """Lines of "name number"."""
    result = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            result[name] = int(value)
    return result


def _read_all(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return file.readall().decode("ascii", "replace")


def _make(directory: str, hierarchy: Hierarchy, *, above: bool = False) -> None:
    """``above``: others are to lie in it. Raises FileNotFoundError while there is nothing for it to lie in."""
    cpuset = "cpuset" in hierarchy.controllers
    # Asked before: it may be set in between, and ours be empty.
    filled = cpuset and read(f"{os.path.dirname(directory)}/cgroup.clone_children") == "1\n"
    try:
        os.mkdir(directory, 0o755)
        new = True
    except FileExistsError:
        new = False
    if cpuset and not (new and filled):
        for file in ("cpuset.cpus", "cpuset.mems"):
            _inherited(directory, file)
    if cpuset and new and above:
        # The kernel then fills those in it itself: a dozen calls less for each.
        write(f"{directory}/cgroup.clone_children", "1")


def _inherited(directory: str, file: str) -> str:
    """The value of a v1 cpuset's file, which takes no process before it has its parent's processors and memory nodes.

    Whoever finds it empty fills it: its maker may be about to, or may have ended before it could.
    """
    value = read(f"{directory}/{file}").strip()
    if not value:
        value = _inherited(os.path.dirname(directory), file)
        write(f"{directory}/{file}", value)
    return value


def _delegate(directory: str) -> None:
    """v2: let children of ``directory`` have the controllers it has itself; one that cannot be given is left out."""
    available = set(read(f"{directory}/cgroup.controllers").split())
    enabled = set(read(f"{directory}/cgroup.subtree_control").split())
    for name in sorted(available - enabled):
        with suppress(OSError):
            write(f"{directory}/cgroup.subtree_control", f"+{name}")
