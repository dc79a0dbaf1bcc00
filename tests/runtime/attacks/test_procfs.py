"""Writes meant for /proc are led to another file, or to another file of /proc."""

from __future__ import annotations

import ast
import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.kernel import safe_paths
from worker.runtime.errors import RuntimeFault

from .conftest import Default, outcome

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
REPOSITORY = Path(__file__).resolve().parents[3]

#: In a mount namespace of its own: cover a file, a link and a directory of /proc, then write both ways.
_REDIRECT = """
import json, os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from worker.kernel import safe_paths, syscalls
canary, how = sys.argv[2:]
syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS)
syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
path = "sys/kernel/domainname"
if how == "file":
    syscalls.mount(canary + "/file", "/proc/" + path, None, syscalls.MS_BIND)
elif how == "proc":
    syscalls.mount("/proc/sys/kernel/hostname", "/proc/" + path, None, syscalls.MS_BIND)
elif how == "directory":
    os.makedirs(canary + "/made/kernel")
    open(canary + "/made/kernel/domainname", "w").close()
    syscalls.mount(canary + "/made", "/proc/sys", None, syscalls.MS_BIND)
elif how == "whole":
    os.makedirs(canary + "/made/" + os.path.dirname(path))
    open(canary + "/made/" + path, "w").close()
    syscalls.mount(canary + "/made", "/proc", None, syscalls.MS_BIND)
elif how == "tmpfs-link":
    syscalls.mount("tmpfs", "/proc/sys", "tmpfs", 0)
    os.mkdir("/proc/sys/kernel")
    os.symlink(canary + "/file", "/proc/" + path)
elif how == "self":
    syscalls.mount("tmpfs", "/proc/fs", "tmpfs", 0)
    path = "self/root" + canary + "/file"
def attempt(write):
    try:
        write()
    except OSError as error:
        return error.errno
    return "written"
def plain():
    with open("/proc/" + path, "w") as file:
        file.write("redirected")
safe = attempt(lambda: safe_paths.write_proc(path, "redirected"))
print(json.dumps([safe, attempt(plain)]))
"""


@pytest.mark.parametrize("how", ["file", "proc", "directory", "whole", "tmpfs-link", "self"])
async def test_a_write_to_proc_lands_there_or_nowhere(tmp_path: Path, how: str):
    """CVE-2025-52881: each way of covering the place; a plain open, the control, writes wherever it is led."""
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "file").write_text("canary\n")
    argv = [sys.executable, "-c", _REDIRECT, str(REPOSITORY), str(canary), how]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    safe, plain = json.loads(done.stdout)
    outcome("CVE-2025-52881", f"open and write, {how}", plain == "written")
    assert plain == "written"
    assert safe in (errno.EXDEV, errno.ELOOP), safe


async def test_settings_of_a_bundle_are_not_led_away_by_its_mounts(covey: Default, canary: Path):
    """CVE-2025-52881: the bundle covers the setting it asks for: the setting is made, the covering file stays as it is."""
    mounts = [
        {"destination": "/proc/sys/kernel/domainname", "type": "bind", "source": str(canary / "file"), "options": ["bind"]},
        {"destination": "/proc/self/oom_score_adj", "type": "bind", "source": str(canary / "file"), "options": ["bind"]},
    ]
    linux = {"sysctl": {"kernel.domainname": "redirected"}}
    for some, process in ((mounts[:1], {}), (mounts, {"oomScoreAdj": 500})):
        # Refused or made; the canary's fixture sees whether it was written to.
        with contextlib.suppress(RuntimeFault):
            result = await covey.run(["cat", "/proc/sys/kernel/domainname"], mounts=some, linux=linux, process=process)
            assert result.out == "canary\n"


async def test_an_exec_is_not_led_away_by_what_covers_proc(covey: Default, canary: Path):
    """A container that may mount covers its /proc; what enters it later writes oom_score_adj and cgroups beforehand."""
    host = {"CapAdd": ["SYS_ADMIN"], "SecurityOpt": ["seccomp=unconfined"]}
    running = await covey.start(
        ["sh", "-c", "mount -t tmpfs tmpfs /proc && mkdir -p /proc/self/attr && echo ready; sleep 60"], host=host
    )
    await running.logged("ready")
    code, out, _ = await running.run_exec("e", ["sh", "-c", "find /proc -type f 2>/dev/null || ls -R /proc"], oomScoreAdj=700)
    assert code == 0
    assert b"oom_score_adj" not in out
    pids = set(running.cgroup.pids())
    assert running.init_pid in pids


def _writes_to_proc(tree: ast.AST) -> list[int]:
    """Lines that open a /proc path for writing by name: os.open, open or write_text on a literal that starts there."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in ("open", "write_text", "write_bytes"):
            continue
        text = ast.unparse(node).replace('"', "'")
        if "'/proc/" in text and (
            name != "open" or any(word in text for word in ("O_WRONLY", "O_RDWR", "'w'", "'a'", "'wb'", "'r+'"))
        ):
            found.append(node.lineno)
    return found


async def test_no_code_of_the_worker_writes_below_proc_by_name():
    """Every such write goes through safe_paths.write_proc, which is verified above."""
    for bad in ('os.open(f"/proc/{pid}/uid_map", os.O_WRONLY)', 'Path("/proc/sys/x").write_text("1")', 'open("/proc/x", "w")'):
        assert _writes_to_proc(ast.parse(bad)) == [1]
    found = {}
    for source in (REPOSITORY / "worker").rglob("*.py"):
        name = str(source.relative_to(REPOSITORY))
        if lines := _writes_to_proc(ast.parse(source.read_text())):
            found[name] = lines
    # A fresh shim names itself: it has its own /proc, the host's, and its container does not exist yet.
    found.pop("worker/shim/main.py", None)
    assert found == {}


async def test_procfs_is_told_from_what_looks_like_it(tmp_path: Path):
    fd = os.open(tmp_path, os.O_RDONLY)
    assert not safe_paths.is_procfs(fd)
    os.close(fd)
    fd = safe_paths.open_proc("self/status")
    assert safe_paths.is_procfs(fd)
    os.close(fd)
