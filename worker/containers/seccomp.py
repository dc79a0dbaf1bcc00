"""Which system calls a container may make: the profile that its security options choose.

Pure but for reading the shipped profile, which is Docker's, as data (seccomp-default.json; origin moby, Apache-2.0). What
of a profile applies on this machine is worker.runtime.seccomp_compile's.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from pathlib import Path

from covey.errors import InvalidArgument

DEFAULT_FILE = Path(__file__).with_name("seccomp-default.json")


#: Calls that Docker's profile allows and Covey's refuses as if the kernel had none. socketcall, of 32-bit programs, takes
#: its address family from memory, where no filter sees it: AF_ALG and AF_VSOCK would be open to whoever has an i386 entry
#: (CVE-2026-31431; Docker's newest leaves that to AppArmor and SELinux). C libraries have used socket itself since Linux 4.3.
CLOSED = ("socketcall",)
_ENOSYS = 38


@cache
def default_text() -> str:
    """The profile a container gets: the shipped one without ``CLOSED``.

    These come first, with another errno than the profile's own: libseccomp else allows socketcall along with socket.
    """
    profile = json.loads(DEFAULT_FILE.read_text(encoding="utf-8"))
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in CLOSED]
    closed = {"names": list(CLOSED), "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS}
    return json.dumps({**profile, "syscalls": [closed, *profile["syscalls"]]})


def chosen(security_options: Collection[str], privileged: bool) -> str | None:
    """The profile's JSON text that ``--security-opt`` and ``--privileged`` ask for; None is unconfined.

    The CLI sends the text of a profile's file, not its path. Raises InvalidArgument for other text.
    """
    wanted = ""
    for option in security_options:
        key, _, value = option.partition("=")
        if not value:
            key, _, value = option.partition(":")
        if key == "seccomp":
            wanted = value
    if wanted == "unconfined" or (privileged and not wanted):
        return None
    if wanted in ("", "builtin", "default"):
        return default_text()
    try:
        json.loads(wanted)
    except ValueError as error:
        raise InvalidArgument(f"Decoding seccomp profile failed: {error}: send the profile's JSON text") from None
    return wanted
