"""Calls into the kernel from inside: what the default filter has to refuse, through every entry the machine has."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import KIT, Default, outcome

pytestmark = [
    pytest.mark.root,
    pytest.mark.asyncio,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="system calls are by x86_64's and i386's numbers here"),
]
UNCONFINED = {"SecurityOpt": ["seccomp=unconfined"]}
EPERM, ENOSYS = -errno.EPERM, -errno.ENOSYS

#: name → (x86_64 number, i386 number, arguments that would do no harm): what the profile has for nobody.
REFUSED: dict[str, tuple[int, int | None, tuple[int, ...]]] = {
    "keyctl": (250, 288, (0, -3, 0)),
    "add_key": (248, 286, (0, 0, 0, 0)),
    "request_key": (249, 287, (0, 0, 0)),
    "unshare(user)": (272, 310, (0x10000000,)),
    "unshare(mount)": (272, 310, (0x20000,)),
    "setns": (308, 346, (-1, 0)),
    "mount": (165, 21, (0, 0, 0, 0)),
    "umount2": (166, 52, (0, 0)),
    "pivot_root": (155, 217, (0, 0)),
    "open_tree": (428, 428, (-1, 0, 0)),
    "move_mount": (429, 429, (-1, 0, -1, 0)),
    "fsopen": (430, 430, (0, 0)),
    "fsmount": (432, 432, (-1, 0, 0)),
    "mount_setattr": (442, 442, (-1, 0, 0, 0)),
    "bpf": (321, 357, (0, 0, 0)),
    "perf_event_open": (298, 336, (0, 0, -1, -1)),
    "userfaultfd": (323, 374, (0,)),
    "open_by_handle_at": (304, 342, (-1, 0, 0)),
    "kexec_load": (246, 283, (0, 0, 0, 0)),
    "kexec_file_load": (320, None, (-1, -1, 0, 0)),
    "init_module": (175, 128, (0, 0, 0)),
    "finit_module": (313, 350, (-1, 0, 0)),
    "delete_module": (176, 129, (0, 0)),
    "swapon": (167, 87, (0, 0)),
    "acct": (163, 51, (0,)),
    "settimeofday": (164, 79, (0, 0)),
    "io_uring_setup": (425, 425, (0, 0)),
    "process_madvise": (440, 440, (-1, 0, 0, 0)),
    "quotactl": (179, 131, (-1, 0, 0, 0)),
    "lookup_dcookie": (212, 253, (0, 0, 0)),
    "clone(user)": (56, 120, (0x10000000 | 17, 0, 0, 0)),
    "socket(AF_ALG)": (41, 359, (38, 5, 0)),
    "socket(AF_VSOCK)": (41, 359, (40, 1, 0)),
}


async def test_what_nobody_may_call(covey: Default):
    """Refused with EPERM by the filter (some would be by the kernel too, with other words for these arguments)."""
    numbers = {name: (number, arguments) for name, (number, _, arguments) in REFUSED.items()}
    found = await covey.python(f"kit.tell(**{{name: kit.call(n, *a) for name, (n, a) in {numbers!r}.items()}})")
    assert found == dict.fromkeys(REFUSED, EPERM)


async def test_without_a_filter_the_kernel_answers_otherwise(covey: Default):
    """The control of the table: unconfined, most calls come to the kernel, which minds the arguments."""
    skipped = ("clone(user)", "unshare(mount)")
    numbers = {name: (n, arguments) for name, (n, _, arguments) in REFUSED.items() if name not in skipped}
    found = await covey.python(
        f"kit.tell(**{{name: kit.call(n, *a) for name, (n, a) in {numbers!r}.items()}})", host=UNCONFINED
    )
    reached = [name for name, answer in found.items() if answer != EPERM]
    outcome("seccomp", "seccomp=unconfined", reached, f"{len(reached)} of {len(found)} calls reach the kernel: {reached}")
    assert {"keyctl", "unshare(user)", "open_tree", "bpf", "socket(AF_ALG)"} <= {*reached, *_lacking(found)}


def _lacking(found: dict[str, int]) -> set[str]:
    """What this kernel has not at all."""
    return {name for name, answer in found.items() if answer in (ENOSYS, -errno.EAFNOSUPPORT)}


def _has_i386() -> bool:
    script = KIT.decode() + "\nprint(int80(20) == os.getpid())"
    return subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True).stdout.strip() == "True"


async def test_what_nobody_may_call_through_the_i386_entry(covey: Default):
    """int 0x80 has numbers of its own: a filter that looks at numbers alone lets through what it means to refuse."""
    if not _has_i386():
        pytest.skip("this kernel has no i386 entry (CONFIG_IA32_EMULATION)")
    numbers = {name: (number, arguments) for name, (_, number, arguments) in REFUSED.items() if number is not None}
    program = f"kit.tell(getpid=kit.int80(20), **{{name: kit.int80(n, *a) for name, (n, a) in {numbers!r}.items()}})"
    found = await covey.python(program)
    assert found.pop("getpid") > 0
    assert found == dict.fromkeys(numbers, EPERM)
    del numbers["clone(user)"], numbers["unshare(mount)"]
    program = f"kit.tell(**{{name: kit.int80(n, *a) for name, (n, a) in {numbers!r}.items()}})"
    found = await covey.python(program, host=UNCONFINED)
    reached = [name for name, answer in found.items() if answer != EPERM]
    outcome("i386 entry", "seccomp=unconfined", reached, f"{len(reached)} of {len(found)} calls reach the kernel")
    assert {"keyctl", "unshare(user)"} <= set(reached)


async def test_no_socket_family_comes_through_socketcall(covey: Default):
    """i386's socketcall takes its arguments from memory, where a filter cannot see the family."""
    if not _has_i386():
        pytest.skip("this kernel has no i386 entry (CONFIG_IA32_EMULATION)")
    program = """
words = {str(family): kit.low_words([family, 5 if family == 38 else 1, 0]) for family in (38, 40, 1)}
kit.tell(**{family: kit.int80(102, 1, address) for family, address in words.items()})
"""
    found = await covey.python(program)
    assert found == {"38": ENOSYS, "40": ENOSYS, "1": ENOSYS}
    control = await covey.python(program, host=UNCONFINED)
    outcome("socketcall", "seccomp=unconfined", control["40"] > 0, str(control))
    assert control["1"] > 0


async def test_what_nobody_may_call_through_the_x32_entry(covey: Default):
    """The x32 numbers: the profile's where the kernel has them, ENOSYS where it has not."""
    numbers = {name: (number, arguments) for name, (number, _, arguments) in REFUSED.items()}
    found = await covey.python(f"kit.tell(**{{name: kit.x32(n, *a) for name, (n, a) in {numbers!r}.items()}})")
    assert {name: answer for name, answer in found.items() if answer not in (EPERM, ENOSYS)} == {}


async def test_clone3_and_what_is_newer_than_the_filter_do_not_exist(covey: Default):
    """Programs fall back from ENOSYS, not from EPERM: the newest calls of the C library must not look forbidden."""
    found = await covey.python("kit.tell(clone3=kit.call(435, 0, 0), newer=kit.call(1000), newest=kit.call(0x3FFFFFFF))")
    assert found == {"clone3": ENOSYS, "newer": ENOSYS, "newest": ENOSYS}


async def test_a_new_user_namespace_is_not_to_be_had(covey: Default):
    """By clone, unshare, setns to one's own, or by joining the host's through /proc: capabilities are all in there."""
    program = """
found = {}
for name, flags in (("user", 0x10000000), ("mount", 0x20000), ("net", 0x40000000), ("pid", 0x20000000), ("all", 0x7E020000)):
    found[f"unshare {name}"] = kit.call(272, flags)
    pid = kit.call(56, flags | 17, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    found[f"clone {name}"] = pid
for kind in os.listdir("/proc/1/ns"):
    fd = os.open(f"/proc/1/ns/{kind}", os.O_RDONLY)
    found[f"setns {kind}"] = kit.call(308, fd, 0)
pidfd = kit.call(434, 1, 0)
found["setns pidfd"] = kit.call(308, pidfd, 0x7E020000)
kit.tell(**found)
"""
    found = await covey.python(program)
    assert len(found) > 15
    assert set(found.values()) == {EPERM}, found
    control = await covey.python("kit.tell(user=kit.call(272, 0x10000000))", host=UNCONFINED)
    outcome("user namespace", "seccomp=unconfined", control["user"] == 0)
    assert control["user"] == 0


async def test_the_hosts_keys_are_not_reachable(covey: Default):
    """keyctl knows no namespaces but the user's: root inside has root's user keyring outside."""
    if not Path("/proc/keys").exists():
        pytest.skip("this kernel keeps no keys")
    name = f"covey-canary-{os.getpid()}"
    text = (
        KIT.decode()
        + f"""
kept = call(248, ctypes.c_char_p(b"user"), ctypes.c_char_p({name.encode()!r}), ctypes.c_char_p(b"secret"), 6, -4)
print(kept)
"""
    )
    serial = int(subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True).stdout)
    program = f"""
import ctypes
link = kit.call(250, 8, -4, -3)
key = kit.call(250, 10, -4, ctypes.c_char_p(b"user"), ctypes.c_char_p({name.encode()!r}), 0)
buffer = ctypes.create_string_buffer(16)
read = kit.call(250, 11, key, buffer, 16)
text = buffer.value.decode()
kit.tell(link=link, key=key, read=read, text=text, by_serial=kit.call(250, 11, {serial}, buffer, 16))
"""
    try:
        found = await covey.python(program)
        control = await covey.python(program, host=UNCONFINED)
    finally:
        text = KIT.decode() + f"\nprint(call(250, 9, {serial}, -4), call(250, 3, {serial}))"
        subprocess.run([sys.executable, "-I", "-c", text], check=True, capture_output=True)
    outcome("keyctl", "seccomp=unconfined", control["text"] == "secret", str(control))
    assert found == {"link": EPERM, "key": EPERM, "read": EPERM, "text": "", "by_serial": EPERM}
    assert control["text"] == "secret"


async def test_containers_share_no_keyring(covey: Default):
    """A session keyring with a name is joined by every process of the same user that says the name."""
    if not Path("/proc/keys").exists():
        pytest.skip("this kernel keeps no keys")
    before = _session_keyrings()
    for _ in range(2):
        await covey.start(["sleep", "60"])
    made = {serial: name for serial, name in _session_keyrings().items() if serial not in before}
    assert len(made) >= 2, made
    assert set(made.values()) == {"_ses:"}


def _session_keyrings() -> dict[str, str]:
    """Serial → name of the keyrings that are no user's own (proc_keys(5))."""
    entries = [line.split() for line in Path("/proc/keys").read_text().splitlines()]
    return {fields[0]: fields[8] for fields in entries if fields[7] == "keyring" and not fields[8].startswith(("_uid", "."))}


async def test_exec_is_under_the_containers_filter(covey: Default):
    """The first process and every later one, root or not."""
    running = await covey.start(["sleep", "60"])
    for user in ({"uid": 0, "gid": 0}, {"uid": 1000, "gid": 1000}):
        script = "grep Seccomp: /proc/self/status; unshare -U true"
        status, out, err = await running.run_exec(f"e{user['uid']}", ["sh", "-c", script], user=user)
        assert status == 1
        assert out.split() == [b"Seccomp:", b"2"]
        assert b"Operation not permitted" in err
