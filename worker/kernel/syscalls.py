"""System calls that Python's standard library lacks, through ctypes.

Every function is one call: arguments in, a value out, or OSError with the errno and the call's name. Nothing here
decides anything, and nothing knows what a container is. Numbers are the kernel's (x86 syscall_64.tbl and asm-generic
unistd.h); constants are those of the uapi headers of the same names.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

_NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "clone": 56, "mount": 165, "umount2": 166, "pivot_root": 155, "sethostname": 170, "setdomainname": 171,
        "unshare": 272, "setns": 308, "prctl": 157, "capget": 125, "capset": 126, "seccomp": 317, "keyctl": 250,
        "close_range": 436, "openat2": 437, "pidfd_send_signal": 424, "open_tree": 428, "move_mount": 429,
        "fsopen": 430, "fsconfig": 431, "fsmount": 432, "mount_setattr": 442, "fstatfs": 138,
        "rt_sigaction": 13, "bpf": 321, "fspick": 433, "pidfd_getfd": 438, "sched_setattr": 314, "ioprio_set": 251,
        "personality": 135, "set_mempolicy": 238, "rt_sigprocmask": 14,
    },
    "aarch64": {
        "clone": 220, "mount": 40, "umount2": 39, "pivot_root": 41, "sethostname": 161, "setdomainname": 162,
        "unshare": 97, "setns": 268, "prctl": 167, "capget": 90, "capset": 91, "seccomp": 277, "keyctl": 219,
        "close_range": 436, "openat2": 437, "pidfd_send_signal": 424, "open_tree": 428, "move_mount": 429,
        "fsopen": 430, "fsconfig": 431, "fsmount": 432, "mount_setattr": 442, "fstatfs": 44,
        "rt_sigaction": 134, "bpf": 280, "fspick": 433, "pidfd_getfd": 438, "sched_setattr": 274, "ioprio_set": 30,
        "personality": 92, "set_mempolicy": 237, "rt_sigprocmask": 135,
    },
}  # fmt: skip

MACHINE = os.uname().machine
_NUMBER = _NUMBERS.get(MACHINE, {})

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PARENT = 0x00008000
CLONE_PIDFD = 0x00001000

MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7
FSPICK_CLOEXEC = 1
FSPICK_EMPTY_PATH = 8

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_TSYNC = 1
SECCOMP_FILTER_FLAG_LOG = 2
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 32
KEYCTL_JOIN_SESSION_KEYRING = 1
CLOSE_RANGE_CLOEXEC = 4

BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_TYPE_CGROUP_DEVICE = 15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2

_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
# The interpreter lock stays held across a clone: the child has no other thread that could give it back.
_locked_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_locked_syscall.restype = ctypes.c_long


# What is called dozens of times a start is packed: a ctypes structure costs a microsecond to make.
_MOUNT_ATTR = struct.Struct("QQQQ")
"""attr_set, attr_clr, propagation, userns_fd"""
_OPEN_HOW = struct.Struct("QQQ")
"""flags, mode, resolve"""


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class _SchedAttr(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


class _BpfProgLoad(ctypes.Structure):
    """The head of union bpf_attr for BPF_PROG_LOAD."""

    _fields_ = (
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
    )


class _BpfProgAttach(ctypes.Structure):
    _fields_ = (
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
    )


_INT = 1 << 31
_ENCODING, _ENCODE_ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


def _call(name: str, *arguments: object) -> int:
    """At most five arguments: what does not go into a register would need its width said."""
    number = _NUMBER.get(name)
    if number is None:
        raise OSError(38, f"{name}: no system call number is known for machine {MACHINE}")
    plain: list[object] = []
    for one in arguments:
        kind = type(one)
        if kind is str:
            one = one.encode(_ENCODING, _ENCODE_ERRORS)  # type: ignore[attr-defined]
        elif kind is int and not -_INT <= one < _INT:  # type: ignore[operator]
            one = ctypes.c_long(one)  # type: ignore[arg-type]
        # Any other int is a C int to ctypes, which libffi extends; to wrap each would be half of what a call costs.
        plain.append(one)
    result: int = _syscall(number, *plain)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces named by CLONE_NEW* flags for new ones; NEWPID affects later children only."""
    _call("unshare", flags)


def setns(fd: int, nstype: int = 0) -> None:
    """Join the namespace behind ``fd`` (a /proc/PID/ns file, or a pidfd with several CLONE_NEW* flags)."""
    _call("setns", fd, nstype)


def fork_into(flags: int) -> int:
    """fork() whose child starts in new namespaces (CLONE_NEW* flags). For single-threaded processes only.

    Python's after-fork work does not run; the child must not start threads. Returns the child's pid, 0 in the child.
    """
    return _clone(flags, _ZERO)


def fork_with_pidfd(flags: int) -> tuple[int, int]:
    """As ``fork_into``, with a pidfd (close-on-exec; -1 in the child), which stays good even if another reaps the child."""
    pidfd = ctypes.c_int(-1)
    pid = _clone(flags | CLONE_PIDFD, ctypes.byref(pidfd))
    return pid, pidfd.value if pid else -1


_ZERO = ctypes.c_long(0)


def _clone(flags: int, parent_tid: object) -> int:
    number = ctypes.c_long(_NUMBER["clone"])
    pid = int(_locked_syscall(number, ctypes.c_long(flags | 17), _ZERO, parent_tid, _ZERO, _ZERO))
    if pid < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"clone: {os.strerror(code)}")
    return pid


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    _call("mount", source, target, fstype, flags, data)


def umount2(target: str, flags: int = 0) -> None:
    _call("umount2", target, flags)


def pivot_root(new_root: str, put_old: str) -> None:
    _call("pivot_root", new_root, put_old)


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """A descriptor for the mount at ``path``; with OPEN_TREE_CLONE a detached copy of it."""
    return _call("open_tree", dirfd, path, flags)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    _call("move_mount", from_fd, from_path, to_fd, to_path, flags)


def fsopen(fstype: str, flags: int = FSOPEN_CLOEXEC) -> int:
    return _call("fsopen", fstype, flags)


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None, aux: int = 0) -> None:
    _call("fsconfig", fd, command, key, value, aux)


def fsmount(fd: int, flags: int = FSMOUNT_CLOEXEC, attributes: int = 0) -> int:
    return _call("fsmount", fd, flags, attributes)


def mount_setattr(
    dirfd: int, path: str, flags: int, attr_set: int = 0, attr_clr: int = 0, propagation: int = 0, userns_fd: int = 0
) -> None:
    attr = _MOUNT_ATTR.pack(attr_set, attr_clr, propagation, userns_fd)
    _call("mount_setattr", dirfd, path, flags, attr, _MOUNT_ATTR.size)


def openat2(dirfd: int, path: str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    return _call("openat2", dirfd, path, _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve), _OPEN_HOW.size)


def prctl(option: int, arg2: int | bytes = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    return _call("prctl", option, arg2, arg3, arg4, arg5)


def capget() -> tuple[int, int, int]:
    """(effective, permitted, inheritable) of this process as bit masks."""
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)()
    _call("capget", ctypes.byref(header), ctypes.byref(data))
    low, high = data[0], data[1]
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def capset(effective: int, permitted: int, inheritable: int) -> None:
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    mask = 0xFFFFFFFF
    data = (_CapData * 2)(
        _CapData(effective & mask, permitted & mask, inheritable & mask),
        _CapData(effective >> 32, permitted >> 32, inheritable >> 32),
    )
    _call("capset", ctypes.byref(header), ctypes.byref(data))


def seccomp_set_filter(instructions: bytes, flags: int = 0) -> int:
    """Load a classic BPF filter: ``instructions`` is an array of struct sock_filter (8 bytes each).

    Answers the listener's descriptor with SECCOMP_FILTER_FLAG_NEW_LISTENER, otherwise 0.
    """
    program = _SockFprog(len(instructions) // 8, instructions)
    return _call("seccomp", SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program))


_SignalAction = ctypes.c_ulong * 4
_DEFAULT_ACTION = _SignalAction(0)


def default_signal_action(signal: int) -> None:
    """SIG_DFL for any signal, the C library's own two (32, 33) too, which it lets nobody else touch."""
    _call("rt_sigaction", signal, ctypes.byref(_DEFAULT_ACTION), None, 8)


def unblock_signals() -> None:
    """An empty signal mask."""
    _call("rt_sigprocmask", 2, ctypes.byref(ctypes.c_ulong(0)), None, 8)


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    _call("pidfd_send_signal", pidfd, signal, None, 0)


def sethostname(name: str) -> None:
    raw = os.fsencode(name)
    _call("sethostname", raw, len(raw))


def setdomainname(name: str) -> None:
    raw = os.fsencode(name)
    _call("setdomainname", raw, len(raw))


def new_session_keyring() -> None:
    """A nameless session keyring of our own: one with a name is joined by everybody of the same user who says it."""
    _call("keyctl", KEYCTL_JOIN_SESSION_KEYRING, None, 0, 0, 0)


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    _call("close_range", first, last, flags)


def filesystem_magic(fd: int) -> int:
    """f_type of the filesystem the open file lies on (include/uapi/linux/magic.h)."""
    buffer = (ctypes.c_long * 32)()
    _call("fstatfs", fd, ctypes.byref(buffer))
    return int(buffer[0])


def fspick(dirfd: int, path: str, flags: int = FSPICK_CLOEXEC) -> int:
    """A filesystem context of a mounted filesystem, to change its options with."""
    return _call("fspick", dirfd, path, flags)


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A copy (close-on-exec) of another process's descriptor ``fd``."""
    return _call("pidfd_getfd", pidfd, fd, 0)


def personality(persona: int) -> None:
    _call("personality", persona)


def ioprio_set(which: int, who: int, ioprio: int) -> None:
    _call("ioprio_set", which, who, ioprio)


def sched_setattr(policy: int, flags: int, nice: int, priority: int, runtime: int, deadline: int, period: int) -> None:
    """Set this process's scheduling policy; times are in nanoseconds."""
    size = ctypes.sizeof(_SchedAttr)
    attr = _SchedAttr(size, policy, flags, nice, priority, runtime, deadline, period)
    _call("sched_setattr", 0, ctypes.byref(attr), 0)


def set_mempolicy(mode: int, nodes: int) -> None:
    """Set this process's memory policy; ``nodes`` is a bit mask of memory nodes."""
    words = (ctypes.c_ulong * 17)(*((nodes >> 64 * index) & (2**64 - 1) for index in range(16)))
    _call("set_mempolicy", mode, ctypes.byref(words) if nodes else None, 64 * 16 + 1 if nodes else 0)


def bpf_load_device_program(instructions: bytes) -> int:
    """Load an eBPF program (8 bytes an instruction) of type BPF_PROG_TYPE_CGROUP_DEVICE; answers its descriptor."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    words = ctypes.create_string_buffer(b"Apache-2.0")
    attr = _BpfProgLoad(
        BPF_PROG_TYPE_CGROUP_DEVICE, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(words), 0, 0, 0
    )
    return _call("bpf", BPF_PROG_LOAD, ctypes.byref(attr), ctypes.sizeof(attr))


def bpf_attach_device_program(cgroup_fd: int, program_fd: int) -> None:
    """Have a program decide on device access of all in a cgroup v2 directory, beside those of its ancestors."""
    attr = _BpfProgAttach(cgroup_fd, program_fd, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI)
    _call("bpf", BPF_PROG_ATTACH, ctypes.byref(attr), ctypes.sizeof(attr))
