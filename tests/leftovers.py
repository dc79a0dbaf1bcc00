"""What tests must not leave behind: processes, namespaces, mounts, links, cgroups, nft tables, files. Counted before and after.

``pytest --leftovers`` takes a census when the session starts and fails the session by what is there at its end and was
not at its start. Things of a process that is still ending get a few seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PLACES = ("/run", "/var/run", "/var/lib", "/tmp")
OWN_NAMES = ("covey", "cv-", "cluster-lab")


def processes() -> Iterator[str]:
    """Processes that could be ours: anything whose command line names Covey, its etcd, or a test's."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if line and any(word in line for word in ("covey", "cluster ", "worker.", "manager.", "etcd", "unshare")):
            yield f"{entry.name} {line[:160]}"


def namespaces() -> Iterator[str]:
    """Network namespaces that have a name."""
    folder = Path("/run/netns")
    yield from (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()


def mounts() -> Iterator[str]:
    """Mount points of this mount namespace."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield line.split()[4]


def links() -> Iterator[str]:
    """Network links of this network namespace."""
    yield from (entry.name for entry in Path("/sys/class/net").iterdir())


def cgroups() -> Iterator[str]:
    """Cgroup directories with a name of ours, in every hierarchy."""
    for root, folders, _ in os.walk("/sys/fs/cgroup"):
        yield from (os.path.join(root, folder) for folder in folders if "covey" in folder or "covey" in root)


def tables() -> Iterator[str]:
    """nftables tables of this network namespace."""
    if shutil.which("nft") is None:
        return
    seen = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, timeout=20, check=False)
    yield from seen.stdout.splitlines()


def files() -> Iterator[str]:
    """Files with a name of ours in the places where programs leave things."""
    for place in PLACES:
        if os.path.isdir(place):
            yield from (os.path.join(place, name) for name in os.listdir(place) if name.startswith(OWN_NAMES))


KINDS: dict[str, Callable[[], Iterator[str]]] = {
    "process": processes,
    "namespace": namespaces,
    "mount": mounts,
    "link": links,
    "cgroup": cgroups,
    "nft table": tables,
    "file": files,
}

Census = dict[str, set[str]]


def census() -> Census:
    """Everything there is now, by kind."""
    return {kind: set(look()) for kind, look in KINDS.items()}


def difference(before: Census, deadline: float = 8.0) -> list[str]:
    """What is there now and was not ``before``, one line each; waits up to ``deadline`` seconds for it to go."""
    end = time.monotonic() + deadline
    while True:
        after = census()
        left = [f"{kind}: {thing}" for kind in KINDS for thing in sorted(after[kind] - before[kind])]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.2)
