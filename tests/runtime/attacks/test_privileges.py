"""Getting more rights inside than were given: capabilities, identities, set-id programs."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from covey.errors import InvalidArgument
from worker.containers import bundle, host_config, users
from worker.containers.users import User
from worker.runtime.errors import RuntimeFault

from .conftest import PYTHON, Control, Default, outcome, told

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
#: Docker's fourteen, as a mask.
FOURTEEN = 0xA80425FB
_SHOW = "\n".join(
    (
        "lines = dict(line.split(':\\t', 1) for line in open('/proc/self/status').read().splitlines() if ':\\t' in line)",
        f"kit.tell(**{{name: int(lines[name], 16) for name in {SETS}}})",
    )
)


async def test_the_five_sets_of_a_default_container(covey: Default):
    """CVE-2022-24769: inheritable and ambient are empty; the others are Docker's fourteen, for users bounding only."""
    root = await covey.python(_SHOW)
    assert root == {"CapInh": 0, "CapPrm": FOURTEEN, "CapEff": FOURTEEN, "CapBnd": FOURTEEN, "CapAmb": 0}
    user = await covey.python(_SHOW, process={"user": {"uid": 1000, "gid": 1000}})
    assert user == {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": FOURTEEN, "CapAmb": 0}


@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize("uid", [0, 1000])
async def test_the_five_sets_of_an_exec(covey: Default, uid: int, privileged: bool):
    """CVE-2022-29162: the same for an exec, also a privileged one."""
    running = await covey.start(["sleep", "60"])
    settings = host_config.completed({}, 1)
    request = {"Cmd": [*PYTHON, f"import kit\n{_SHOW}"], "Privileged": privileged}
    body = bundle.exec_process({}, settings, User(uid, uid, (), "/"), request, "box")
    code, out, err = await running.run_exec("e", body.pop("args"), **body)
    assert code == 0, err
    found = json.loads(out)
    assert (found["CapInh"], found["CapAmb"]) == (0, 0)
    assert (found["CapPrm"] != 0) == (uid == 0)
    if not privileged:
        assert found["CapBnd"] == FOURTEEN


def _inheriting(root: Path) -> str:
    """A copy of Python whose file has every capability inheritable and effective (capabilities(7), VFS_CAP_REVISION_2)."""
    place = root / "py/bin/inheriting"
    place.write_bytes((root / "py/bin/python3").read_bytes())
    place.chmod(0o755)
    every = FOURTEEN
    os.setxattr(place, "security.capability", struct.pack("<5I", 0x02000001, 0, every, 0, 0))
    return "/py/bin/inheriting"


async def test_a_file_with_inheritable_capabilities_gives_none(covey: Default, own_root: Path):
    """CVE-2022-24769's use: an unprivileged user runs a file that passes on what the process may inherit."""
    program = [_inheriting(own_root), "-I", "-S", "-c", f"import kit\n{_SHOW}"]
    user = {"uid": 1000, "gid": 1000}
    changes: dict[str, Any] = {"root": {"path": str(own_root)}, "process": {"user": user}}
    assert told(await covey.run(program, **changes))["CapPrm"] == 0
    fourteen = list(bundle.defaults.CAPABILITIES)
    changes["process"]["capabilities"] = {"bounding": fourteen, "inheritable": fourteen}
    control = told(await covey.run(program, **changes))
    outcome("CVE-2022-24769", "a bundle that fills inheritable", control["CapPrm"], f"{control['CapPrm']:#x}")
    assert control["CapPrm"] == FOURTEEN


@pytest.mark.parametrize("name", ["runc", "crun"])
async def test_older_runtimes_set_what_a_bundle_says(controls: dict[str, Control], name: str):
    if name not in controls:
        pytest.skip(f"no {name} here: apt-get install {name}")
    ended = controls[name].run(["grep", "CapInh", "/proc/self/status"])
    outcome("CVE-2022-24769", controls[name].label, int(ended.out.split()[-1], 16) if ended.out else 0, ended.words)
    assert ended.code == 0


_WHO = "kit.tell(uid=os.getuid(), euid=os.geteuid(), gid=os.getegid())"


async def test_a_set_id_program_under_no_new_privileges(covey: Default):
    """The set-id bit counts for nothing once the container asked for it; without, which is the control, it counts."""
    program = ["/py/bin/setuid-python", "-I", "-S", "-c", f"import kit, os\n{_WHO}"]
    user = {"user": {"uid": 1000, "gid": 1000}}
    closed = told(await covey.run(program, host={"SecurityOpt": ["no-new-privileges"]}, process=user))
    control = told(await covey.run(program, process=user))
    outcome("set-id program", "without no-new-privileges", control["euid"] == 0)
    assert closed == {"uid": 1000, "euid": 1000, "gid": 1000}
    assert control["euid"] == 0
    running = await covey.start(["sleep", "60"], host={"SecurityOpt": ["no-new-privileges"]})
    body = bundle.exec_process({}, {"SecurityOpt": ["no-new-privileges"]}, User(1000, 1000, (), "/"), {"Cmd": program}, "box")
    code, out, err = await running.run_exec("e", body.pop("args"), **body)
    assert code == 0, err
    assert json.loads(out)["euid"] == 1000


@pytest.mark.parametrize("number", [2**32 - 1, 2**32, 2**32 + 1000, -1, 2**64, True, 1.5, "0"])
@pytest.mark.parametrize("field", ["uid", "gid", "additionalGids"])
async def test_identities_that_would_wrap_are_refused(covey: Default, field: str, number: Any):
    """setuid(2**32 - 1) is setuid(-1), which leaves root; 2**32 is 0."""
    user: dict[str, Any] = {"uid": 0, "gid": 0, field: [number] if field == "additionalGids" else number}
    shim, directory, _ = await covey.shim()
    config = covey.bundle(["true"], directory.name)
    config["process"]["user"] = user
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeFault, match=field):
        await shim.create(directory)
    running = await covey.start(["sleep", "60"])
    with pytest.raises(RuntimeFault, match=field):
        await running.shim.exec("e", {"cwd": "/", "env": [], "args": ["true"], "user": user})


@pytest.mark.parametrize(
    "wanted", ["4294967295", "4294967296", "-1", "0:4294967295", "0:-1", "18446744073709551616", "big", "odd", "x"]
)
async def test_identities_of_a_request_or_an_image_that_would_wrap(wanted: str):
    passwd = "root:x:0:0::/:/bin/sh\nbig:x:4294967296:0::/:/bin/sh\nodd:x:²:0::/:/bin/sh\nx:x:4294967295:4294967295::/:\n"
    with pytest.raises(InvalidArgument):
        users.resolve(wanted, passwd, "root:x:0:\nodd:x:²:\n")


async def test_the_highest_identity_is_fine(covey: Default):
    highest = 2**32 - 2
    found = told(await covey.run([*PYTHON, f"import kit, os\n{_WHO}"], process={"user": {"uid": highest, "gid": highest}}))
    assert found == {"uid": highest, "euid": highest, "gid": highest}
