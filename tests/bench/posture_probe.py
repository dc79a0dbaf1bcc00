"""Runs INSIDE a container: looks at everything that could be open, and prints what it found as one JSON object.

Nothing is changed: calls are made with arguments that can do no harm, files are opened and closed. Shape: see ``main``.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import stat

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
BAD = -1

#: name → (x86_64 number, arguments). Bad descriptors, null pointers, lengths of nothing.
CALLS = {
    "accept4": (288, BAD, 0, 0, 0),
    "acct": (163, 1),
    "add_key": (248, 0, 0, 0, 0),
    "adjtimex": (159, 0),
    "arch_prctl": (158, 0x9999, 0),
    "bpf": (321, 0, 0, 0),
    "capget": (125, 0, 0),
    "capset": (126, 0, 0),
    "chroot": (161, 0),
    "clock_adjtime": (305, 0, 0),
    "clock_settime": (227, 0, 0),
    "clone3": (435, 0, 0),
    "clone(user)": (56, 0x10000000 | 0x80000000 | 17, 1, 0, 0),
    "close_range": (436, 5, 4, 0),
    "copy_file_range": (326, BAD, 0, BAD, 0, 0, 0),
    "create_module": (174, 0, 0),
    "delete_module": (176, 0, 0),
    "epoll_pwait2": (441, BAD, 0, 0, 0, 0),
    "execveat": (322, BAD, 0, 0, 0, 0),
    "faccessat2": (439, BAD, 0, 0, 0),
    "fanotify_init": (300, 0x80000000, 0),
    "fanotify_mark": (301, BAD, 0, 0, 0, 0),
    "fchmodat2": (452, BAD, 0, 0, 0),
    "finit_module": (313, BAD, 0, 0),
    "fsconfig": (431, BAD, 0, 0, 0, 0),
    "fsmount": (432, BAD, 0, 0),
    "fsopen": (430, 0, 0),
    "fspick": (433, BAD, 0, 0),
    "futex_waitv": (449, 0, 0, 0, 0, 0),
    "get_mempolicy": (239, 0, 0, 0, 0, 0xFFFF),
    "get_robust_list": (274, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "io_setup": (206, 0, 0),
    "io_uring_enter": (426, BAD, 0, 0, 0, 0),
    "io_uring_register": (427, BAD, 0, 0, 0),
    "io_uring_setup": (425, 0, 0),
    "ioperm": (173, 0, 0, 0),
    "iopl": (172, 4),
    "kcmp": (312, 0, 0, 99, 0, 0),
    "kexec_file_load": (320, BAD, BAD, 0, 0),
    "kexec_load": (246, 0, 0, 0, 0x80000000),
    "keyctl": (250, 0, -3, 0),
    "landlock_create_ruleset": (444, 0, 0, 2),
    "lookup_dcookie": (212, 0, 0, 0),
    "lsm_get_self_attr": (459, 0, 0, 0, 99),
    "mbind": (237, 0, 0, 99, 0, 0, 0xFFFF),
    "membarrier": (324, 0x7FFF, 0),
    "memfd_secret": (447, 0xFFFF),
    "migrate_pages": (256, BAD, 0, 0, 0),
    "modify_ldt": (154, 99, 0, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "mount_setattr": (442, BAD, 0, 0, 0, 0),
    "move_mount": (429, BAD, 0, BAD, 0, 0),
    "move_pages": (279, BAD, 0, 0, 0, 0, 0),
    "mseal": (462, 1, 0, 0),
    "name_to_handle_at": (303, BAD, 0, 0, 0, 0),
    "nfsservctl": (180, 99, 0, 0),
    "open_by_handle_at": (304, BAD, 0, 0),
    "open_tree": (428, BAD, 0, 0),
    "openat2": (437, BAD, 0, 0, 0),
    "perf_event_open": (298, 0, 0, -1, BAD, 0),
    "personality(uname26)": (135, 0x0020000 | 0x0040000),
    "pidfd_getfd": (438, BAD, BAD, 0),
    "pidfd_open": (434, BAD, 0),
    "pidfd_send_signal": (424, BAD, 0, 0, 0),
    "pivot_root": (155, 0, 0),
    "pkey_alloc": (330, 99, 99),
    "process_madvise": (440, BAD, 0, 0, 0, 0),
    "process_mrelease": (448, BAD, 0),
    "process_vm_readv": (310, BAD, 0, 0, 0, 0, 9),
    "ptrace": (101, 0x4206, 0x7FFFFFFF, 0, 0),
    "query_module": (178, 0, 0, 0, 0, 0),
    "quotactl": (179, BAD, 0, 0, 0),
    "reboot": (169, 0, 0, 0, 0),
    "request_key": (249, 0, 0, 0, 0),
    "rseq": (334, 1, 0, 99, 0),
    "seccomp": (317, 99, 0, 0),
    "set_mempolicy": (238, 99, 0, 0),
    "setdomainname": (171, 0, -1),
    "sethostname": (170, 0, -1),
    "setns": (308, BAD, 0),
    "settimeofday": (164, 1, 0),
    "socket(AF_ALG)": (41, 38, 99, 0),
    "socket(AF_INET)": (41, 2, 99, 0),
    "socket(AF_NETLINK)": (41, 16, 99, 0),
    "socket(AF_PACKET)": (41, 17, 99, 0),
    "socket(AF_UNIX)": (41, 1, 99, 0),
    "socket(AF_VSOCK)": (41, 40, 99, 0),
    "swapoff": (168, 0),
    "swapon": (167, 0, 0),
    "syslog": (103, 99, 0, 0),
    "umount2": (166, 0, 0),
    "unshare(files)": (272, 0x400),
    "unshare(mount)": (272, 0x20000),
    "unshare(user)": (272, 0x10000000),
    "uselib": (134, 0),
    "userfaultfd": (323, 0x7FFF),
    "ustat": (136, 0, 0),
    "vmsplice": (278, BAD, 0, 0, 0),
    "beyond the newest": (1000,),
}

#: name → i386 number and arguments, through int 0x80.
I386_CALLS = {
    "keyctl": (288, 0, -3, 0),
    "unshare(user)": (310, 0x10000000),
    "mount": (21, 0, 0, 0, 0),
    "bpf": (357, 0, 0, 0),
    "init_module": (128, 0, 0, 0),
    "socket(AF_VSOCK)": (359, 40, 99, 0),
    "socketcall": (102, 99, 0, 0),
    "setns": (346, -1, 0),
}
_INT80 = bytes.fromhex("53 89f8 89f3 87d1 4489c6 cd80 4898 5b c3")

PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/irq",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/mem",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sys",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/cgroup",
    "/sys/kernel/debug",
    "/sys/kernel/uevent_helper",
    "/sys/power/state",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
)
MOUNTS = ("/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys/fs/cgroup")


def call(number, *arguments):
    result = _libc.syscall(ctypes.c_long(number), *[ctypes.c_long(one) for one in arguments])
    if result == -1:
        return errno.errorcode.get(ctypes.get_errno(), str(ctypes.get_errno()))
    return "ok"


def calls():
    if os.uname().machine != "x86_64":
        return {}
    found = {}
    for name, arguments in CALLS.items():
        # In a process of its own: what an unshare or a socket that succeeds leaves behind ends with it.
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, call(*arguments).encode())
            os._exit(0)
        os.close(write)
        found[name] = os.read(read, 64).decode() or "killed"
        os.close(read)
        os.waitpid(child, 0)
    return found


def i386_calls():
    if os.uname().machine != "x86_64":
        return {}
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(_INT80)
    entry = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_uint32] * 5)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    if os.fork() == 0:
        # Without the entry this is a fault.
        os._exit(0 if entry(20, 0, 0, 0, 0) == os.getpid() else 1)
    if os.wait()[1] != 0:
        return {}
    found = {}
    for name, (number, *arguments) in I386_CALLS.items():
        answer = entry(number, *[one & 0xFFFFFFFF for one in arguments], *[0] * (4 - len(arguments)))
        found[name] = "ok" if answer >= 0 else errno.errorcode.get(-answer, str(-answer))
    return found


def opens(path, flags):
    try:
        os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


def path_state(path):
    """absent, hidden (nothing can be read), read-only or writable."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "absent"
    if stat.S_ISDIR(mode):
        try:
            if not os.listdir(path):
                return "hidden"
        except OSError:
            return "hidden"
        return "read-only" if os.statvfs(path).f_flag & os.ST_RDONLY else "writable"
    if stat.S_ISCHR(mode):
        return "hidden"
    if opens(path, os.O_WRONLY) == "ok":
        return "writable"
    return "read-only" if opens(path, os.O_RDONLY) == "ok" else "hidden"


def devices():
    """Nodes of /dev that open for reading; device numbers whose freshly made nodes do."""
    names = sorted(os.listdir("/dev"))
    shown = [name for name in names if not os.path.islink(f"/dev/{name}") and not os.path.isdir(f"/dev/{name}")]
    made = []
    os.mkdir("/nodes")
    for kind, directory in ((stat.S_IFCHR, "char"), (stat.S_IFBLK, "block")):
        for number in os.listdir(f"/sys/dev/{directory}"):
            place = f"/nodes/{directory}-{number}"
            try:
                os.mknod(place, 0o600 | kind, os.makedev(*map(int, number.split(":"))))
            except OSError:
                continue
            if opens(place, os.O_RDONLY) == "ok":
                made.append(f"{directory} {number}")
    return {
        "visible": shown,
        "open": [name for name in shown if opens(f"/dev/{name}", os.O_RDWR) == "ok"],
        "made": sorted(made),
    }


def mount_options():
    found = {}
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            fields = line.split(" ")
            found[fields[4]] = fields[5]
    cgroups = {point: options.split(",")[0] for point, options in found.items() if point.startswith("/sys/fs/cgroup")}
    return {point: sorted(found.get(point, "absent").split(",")) for point in MOUNTS}, cgroups


def status():
    with open("/proc/self/status") as lines:
        return dict(line.rstrip("\n").split(":\t", 1) for line in lines if ":\t" in line)


def pids_limit():
    for place in ("/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max"):
        if os.path.exists(place):
            with open(place) as file:
                return file.read().strip()
    return "unknown"


def text(path):
    with open(path) as file:
        return file.read().strip()


def main():
    fields = status()
    options, cgroups = mount_options()
    fds = sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1]
    limits = {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")}
    print(
        json.dumps(
            {
                "capabilities": {name: fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
                "calls": calls(),
                "i386 calls": i386_calls(),
                "paths": {path: path_state(path) for path in PATHS},
                "devices": devices(),
                "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in sorted(os.listdir("/proc/self/ns"))},
                "descriptors": fds,
                "no_new_privs": fields["NoNewPrivs"],
                "seccomp": fields["Seccomp"],
                "dumpable": int(_libc.prctl(3, 0, 0, 0, 0)),
                "groups": fields["Groups"].split(),
                "mounts": options,
                "cgroups": cgroups,
                "rlimits": limits,
                "pids limit": pids_limit(),
                "oom_score_adj": int(text("/proc/self/oom_score_adj")),
                "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
                "uid_map": text("/proc/self/uid_map").split(),
            }
        )
    )


if __name__ == "__main__":
    main()
