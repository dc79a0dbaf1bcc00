"""What a container does to get at its host, each a way that some runtime once left open, tried on real containers.

Names are those of the advisories (CVE) that described the way first.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import struct
import sys
from pathlib import Path

import pytest

from worker.containers.shim_client import exit_record, sweep
from worker.kernel import process
from worker.runtime.errors import RuntimeFault

from .conftest import wait_until

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
PATH = {"env": ["PATH=/bin:/sbin"], "cwd": "/"}


@pytest.fixture
def own_root(rootfs: Path, tmp_path: Path) -> Path:
    """A copy of the root file system that a test may change."""
    return Path(shutil.copytree(rootfs, tmp_path / "own-root", symlinks=True))


async def test_the_hosts_interpreter_is_held_read_only(boxes):
    """CVE-2019-5736: a program /proc/self/exe runs what the runtime ran from, and holds that file."""
    interpreter = Path(sys.executable).resolve()
    waiting = await boxes.make(["true"])
    running = await boxes.start(["sleep", "60"])
    entering = await running.shim.exec("e", {**PATH, "args": ["true"]})
    for pid in (boxes.zygote.pid, waiting.shim_pid, waiting.init_pid, entering):
        held = Path(f"/proc/{pid}/exe")
        assert held.stat().st_ino == interpreter.stat().st_ino
        with pytest.raises(OSError, match="Read-only file system"):
            held.chmod(stat.S_IMODE(interpreter.stat().st_mode))


@pytest.mark.parametrize("number", range(3, 12))
async def test_no_directory_of_the_host_is_left_open(boxes, number):
    """CVE-2024-21626: a working directory of /proc/self/fd/N reached the host through a descriptor left open."""
    running = await boxes.start(["sleep", "60"])
    body = {**PATH, "cwd": f"/proc/self/fd/{number}", "args": ["sh", "-c", "ls -di ../../../../../.. ."]}
    root = os.stat("/").st_ino
    for start in ("container", "exec"):
        try:
            if start == "container":
                result = await boxes.run([], process=body)
                code, out = result.code, result.out
            else:
                code, raw, _ = await running.run_exec(start, body["args"], cwd=body["cwd"])
                out = raw.decode()
        except RuntimeFault:
            continue
        assert code == 0, out
        assert str(root) not in re.findall(r"^\s*(\d+)", out, re.M), f"{start}: {out}"


async def test_the_starting_process_is_closed_to_the_container(boxes):
    """CVE-2016-9962: what enters a container may not be read by those in it before it has become its program."""
    running = await boxes.start(["sleep", "60"])
    await running.shim.exec("e", {**PATH, "args": ["true"]})
    each = "for f in exe cwd root fd/3; do readlink $p/$f || echo no; done"
    look = f"for p in /proc/[0-9]*; do n=${{p#/proc/}}; [ $n = 1 ] || [ $n = $$ ] || {each}; done"
    _, out, _ = await running.run_exec("look", ["sh", "-c", look])
    assert out.split() == [b"no"] * 4, out


async def test_a_mask_does_not_hand_out_the_hosts_null_device(boxes):
    """CVE-2025-31133 in another form: what lies over a masked file is the host's own node."""
    before = os.stat("/dev/null")
    result = await boxes.sh("echo x >/proc/keys && echo written; chmod 600 /proc/keys; chown 7 /proc/keys")
    after = os.stat("/dev/null")
    os.chmod("/dev/null", stat.S_IMODE(before.st_mode))
    os.chown("/dev/null", before.st_uid, before.st_gid)
    assert (before.st_mode, before.st_uid) == (after.st_mode, after.st_uid)
    assert result.out == "written\n"
    assert result.err.count("Read-only file system") == 2


async def test_masks_follow_the_images_links_inside(boxes, own_root):
    (own_root / "etc/secret").write_text("secret\n")
    (own_root / "etc/directory").mkdir()
    (own_root / "etc/directory/file").write_text("secret\n")
    (own_root / "etc/link").symlink_to("/etc/secret")
    (own_root / "etc/up").symlink_to("../../../../etc/directory")
    masks = {"maskedPaths": ["/etc/link", "/etc/up", "/etc/nothing/below", "/etc/secret/below"]}
    result = await boxes.sh(
        "cat /etc/secret; ls /etc/directory; touch /etc/directory/x", root={"path": str(own_root)}, linux=masks
    )
    assert result.out == ""
    assert "Read-only" in result.err
    assert (own_root / "etc/secret").read_text() == "secret\n"


@pytest.mark.parametrize("name", ["proc", "sys"])
async def test_kernel_filesystems_are_not_mounted_through_links(boxes, own_root, name):
    """CVE-2023-27561: who holds the link's target could move the mount away from its masks."""
    (own_root / name).rmdir()
    (own_root / "elsewhere").mkdir()
    (own_root / name).symlink_to("elsewhere")
    with pytest.raises(RuntimeFault, match=f"link at /{name}"):
        await boxes.make(["true"], root={"path": str(own_root)})


async def test_an_image_cannot_pass_something_else_off_as_its_terminals(boxes, own_root):
    """CVE-2025-52565: the console is of the container's devpts or none."""
    (own_root / "dev/pts").mkdir()
    (own_root / "dev/pts/ptmx").symlink_to("/dev/zero")
    kinds = {"/dev", "/dev/pts"}
    mounts = [mount for mount in boxes.bundle(["true"], "x")["mounts"] if mount["destination"] not in kinds]
    shim, directory, _ = await boxes.shim()
    config = boxes.bundle(["true"], directory.name, process={"terminal": True}, root={"path": str(own_root)})
    config["mounts"] = mounts
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeFault, match="terminal multiplexer"):
        await shim.create(directory)


async def test_containers_share_no_keyring(boxes):
    """A session keyring with a name is joined by every process of the same user that says the name."""
    if not Path("/proc/keys").exists():
        pytest.skip("this kernel keeps no keys")
    before = _session_keyrings()
    for _ in range(2):
        await boxes.start(["sleep", "60"])
    made = {serial: name for serial, name in _session_keyrings().items() if serial not in before}
    assert len(made) >= 2, made
    assert set(made.values()) == {"_ses:"}


def _session_keyrings() -> dict[str, str]:
    """Serial → name of the keyrings that are no user's own (proc_keys(5))."""
    entries = [line.split() for line in Path("/proc/keys").read_text().splitlines()]
    return {fields[0]: fields[8] for fields in entries if fields[7] == "keyring" and not fields[8].startswith(("_uid", "."))}


async def test_exec_is_under_the_containers_filter(boxes, tmp_path):
    """One that forbids mkdir: the first process and every later one."""
    code = struct.pack("=HBBI", 0x20, 0, 0, 0)
    for number in (83, 258, 34):
        code += struct.pack("=HBBI", 0x15, 0, 1, number) + struct.pack("=HBBI", 0x06, 0, 0, 0x00050001)
    code += struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    (tmp_path / "filter").write_bytes(code)
    running = await boxes.start(["sleep", "60"], covey={"seccomp": {"path": str(tmp_path / "filter")}})
    for user in ({"uid": 0, "gid": 0}, {"uid": 1000, "gid": 1000}):
        script = "grep Seccomp: /proc/self/status; mkdir /tmp/x"
        status, out, err = await running.run_exec(f"e{user['uid']}", ["sh", "-c", script], user=user)
        assert status == 1
        assert out.split() == [b"Seccomp:", b"2"]
        assert b"Operation not permitted" in err


async def test_an_execs_user_has_no_capability_and_only_its_groups(boxes):
    running = await boxes.start(["sleep", "60"])
    script = "id -G; grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status"
    _, out, _ = await running.run_exec("u", ["sh", "-c", script], user={"uid": 33, "gid": 33, "additionalGids": [44]})
    groups, *sets = out.decode().splitlines()
    assert groups.split() == ["33", "44"]
    assert [line.split()[1] for line in sets] == ["0000000000000000"] * 4


async def test_a_name_of_a_hundred_kibibytes_breaks_no_handshake(boxes):
    running = await boxes.start(["sleep", "60"])
    await running.shim.exec("long", {**PATH, "args": ["x" * 100_000]})
    with pytest.raises(RuntimeFault) as caught:
        await running.shim.exec_start("long")
    assert caught.value.code == "not-found"
    assert (await running.shim.state())["state"] == "running"


async def test_a_disk_that_takes_no_exit_record(boxes):
    """The shim lives, tells the exit itself, and writes the record as soon as it can."""
    box = await boxes.start(["sleep", "60"])
    (box.directory / "exit.json.tmp").mkdir()
    await box.shim.kill(signal.SIGKILL)
    assert (await box.exit())["code"] == 137
    assert exit_record(box.directory) is None
    (box.directory / "exit.json.tmp").rmdir()
    async with asyncio.timeout(5):
        while (record := exit_record(box.directory)) is None:
            await asyncio.sleep(0.01)
    assert record["exit_code"] == 137


async def test_a_container_that_changed_its_user_ends_with_its_shim_when_swept(boxes):
    """The kernel forgets the death signal of a process that changes its user itself; the daemon's sweep ends it."""
    box = await boxes.start(["busybox", "su", "-s", "/bin/sh", "user", "-c", "echo ready; exec sleep 60"])
    await box.logged("ready")
    started, shim_started = process.start_time(box.init_pid), process.start_time(box.shim_pid)
    os.kill(box.shim_pid, signal.SIGKILL)
    await wait_until("end of the shim", lambda: not process.is_alive(box.shim_pid, shim_started))
    async with asyncio.timeout(5):
        while not sweep(box.directory):
            await asyncio.sleep(0.01)
    assert not process.is_alive(box.init_pid, started)
    assert not box.cgroup.exists()


async def test_a_cgroup_that_others_are_in_is_refused_and_they_live(boxes):
    """Its processes would be killed when the container ends."""
    other = await boxes.start(["sleep", "60"])
    started = process.start_time(other.init_pid)
    shim, directory, _ = await boxes.shim()
    config = boxes.bundle(["true"], directory.name, linux={"cgroupsPath": other.cgroup.path})
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeFault, match=r"holds 1 processes.*cgroupsPath"):
        await shim.create(directory)
    await shim.delete()
    assert process.is_alive(other.init_pid, started)
    assert other.cgroup.pids() == [other.init_pid]
