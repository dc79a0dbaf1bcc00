"""Programs of the host that run inside a container: its init. Nobody inside may change them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from .conftest import Default, outcome

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
TINIS = ("/usr/bin/tini-static", "/usr/bin/tini")

_OVERWRITE = """
import kit, os, stat
found = {}
for name in ("/sbin/docker-init", "/proc/1/exe"):
    for how, flags in (("write", os.O_WRONLY), ("append", os.O_WRONLY | os.O_APPEND), ("read and write", os.O_RDWR)):
        found[f"{how} {name}"] = kit.tried(os.open, name, flags)
    found[f"chmod {name}"] = kit.tried(os.chmod, name, 0o755)
    found[f"chown {name}"] = kit.tried(os.chown, name, 0, 0)
    found[f"utime {name}"] = kit.tried(os.utime, name)
found["unlink"] = kit.tried(os.unlink, "/sbin/docker-init")
found["rename"] = kit.tried(os.rename, "/sbin/docker-init", "/sbin/x")
kit.tell(**found)
"""


@pytest.mark.parametrize("added", ["none", "ALL"])
async def test_the_hosts_init_cannot_be_changed(covey: Default, own_root: Path, added: str):
    """CVE-2019-5736's kin: `--init` puts a program of the host into the container, as a bind."""
    there = [Path(path) for path in TINIS if os.path.exists(path)]
    if not there:
        pytest.skip("no tini on this machine: apt-get install tini")
    before = [(hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mode, path.stat().st_mtime) for path in there]
    host = {"CapAdd": ["ALL"]} if added == "ALL" else {}
    found = await covey.python(_OVERWRITE, init=True, host=host, root={"path": str(own_root)})
    after = [(hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mode, path.stat().st_mtime) for path in there]
    outcome("the host's init", f"Covey, capabilities added: {added}", after != before, str(sorted(set(found.values()))))
    assert after == before
    assert {name: answer for name, answer in found.items() if answer == "ok"} == {}
