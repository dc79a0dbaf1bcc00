"""An image, or a neighbour who shares a volume, arranges the file tree so that the runtime's mounts land elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from worker.kernel import safe_paths
from worker.kernel.mounts import mount_points
from worker.runtime.errors import RuntimeFault

from ..conftest import Boxes
from .conftest import Control, Default, discard, outcome, swapped

pytestmark = [pytest.mark.root, pytest.mark.asyncio]
SETTING = "/proc/sys/kernel/domainname"
ROUNDS = pytest.mark.parametrize("rounds", [40, pytest.param(1200, marks=[pytest.mark.long, pytest.mark.timeout(900)])])


def traps(base: Path, canary: Path, root: str) -> tuple[Path, Path]:
    """A directory and, beside it, a link that leads out to the canary where it is followed from the host."""
    real, link = base / "real", base / "link"
    real.mkdir()
    for name in ("sub", "dev"):
        (real / name).mkdir()
    (real / "file").write_text("")
    link.symlink_to(os.path.relpath(canary, base) if root == "relative" else canary)
    return real, link


def bind_dev(config: dict[str, Any], source: Path) -> None:
    """The container's /dev is the host's directory ``source``."""
    for mount in config["mounts"]:
        if mount["destination"] == "/dev":
            mount |= {"type": "bind", "source": str(source), "options": ["rbind"]}


@ROUNDS
@pytest.mark.parametrize("kind", ["absolute", "relative"])
async def test_places_exchanged_while_mounts_are_made(
    covey: Default, own_root: Path, canary: Path, tmp_path: Path, rounds: int, kind: str
):
    """CVE-2021-30465, CVE-2024-45310: a directory becomes a link between the look and the use, over and over.

    Every way in which a bundle names a place: mounts of all sorts, devices, masks, read-only paths, the working directory.
    """
    volume = tmp_path / "volume"
    volume.mkdir()
    real, link = traps(volume, canary, kind)
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("from the source\n")
    before = set(mount_points("/"))
    mounts = [
        {"destination": "/vol", "type": "bind", "source": str(volume), "options": ["rbind"]},
        {"destination": "/vol/real/tmpfs", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]},
        {"destination": "/vol/real/bind", "type": "bind", "source": str(source), "options": ["rbind"]},
        {"destination": "/vol/real/made", "type": "bind", "source": str(source / "file"), "options": ["bind"]},
        {"destination": "/vol/real/sub", "type": "bind", "source": str(source), "options": ["rbind", "ro"]},
    ]
    linux = {
        "maskedPaths": ["/vol/real/file", "/vol/real/dev"],
        "readonlyPaths": ["/vol/real/sub"],
        "devices": [{"path": "/vol/real/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 0, "gid": 0}],
    }
    changes: dict[str, Any] = {"mounts": mounts, "linux": linux, "root": {"path": str(own_root)}}
    run = 0
    with swapped(real, link):
        for _ in range(rounds):
            with contextlib.suppress(RuntimeFault):
                box = await covey.make(["true"], process={"cwd": "/vol/real/cwd"}, **changes)
                run += 1
                seen = Path(f"/proc/{box.init_pid}/mountinfo").read_text()
                assert f" {canary} " not in seen, seen
                await discard(box.shim)
    assert os.listdir(canary) == ["file"]
    assert {point for point in mount_points("/") if point not in before and str(tmp_path) in point} == set()
    print(f"{rounds} rounds, {run} made")


async def test_places_exchanged_under_a_runtime_that_trusts_paths(canary: Path, tmp_path: Path):
    """The control: look whether the path leads out, and then make it by the path, which older runtimes did."""
    volume = tmp_path / "volume"
    volume.mkdir()
    real, link = traps(volume, canary, "absolute")
    happened, tries, deadline = False, 0, time.monotonic() + 20
    with swapped(real, link):
        while not happened and time.monotonic() < deadline:
            tries += 1
            found = ""
            with contextlib.suppress(OSError):
                found = os.path.realpath(real)
            if found.startswith(str(volume)):
                # The moment between the look and the use, stretched to where the other one is in place.
                while not real.is_symlink() and time.monotonic() < deadline:
                    pass
                with contextlib.suppress(OSError):
                    os.makedirs(real / "made")
            happened = (canary / "made").exists()
    outcome("CVE-2024-45310", "realpath, then mkdir by path", happened, f"after {tries} tries")
    (canary / "made").rmdir()
    assert happened


@pytest.mark.parametrize("name", ["runc", "crun"])
async def test_places_exchanged_under_an_older_runtime(controls: dict[str, Control], canary: Path, tmp_path: Path, name: str):
    """The same on what the distribution has; some of these are patched, so what comes of it is told, not asserted."""
    if name not in controls:
        pytest.skip(f"no {name} here: apt-get install {name}")
    volume = tmp_path / "volume"
    volume.mkdir()
    real, link = traps(volume, canary, "absolute")
    mounts = [
        {"destination": "/vol", "type": "bind", "source": str(volume), "options": ["rbind"]},
        {"destination": "/vol/real/made", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]},
    ]
    happened, tries, deadline = False, 0, time.monotonic() + 3
    with swapped(real, link):
        while not happened and time.monotonic() < deadline:
            tries += 1
            controls[name].run(["true"], mounts=mounts)
            happened = sorted(os.listdir(canary)) != ["file"]
    outcome("CVE-2024-45310", controls[name].label, happened, f"{tries} tries")
    if happened:
        (canary / "made").rmdir()


@pytest.mark.parametrize("rounds", [3000, pytest.param(200_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
async def test_safe_paths_under_exchange(canary: Path, tmp_path: Path, rounds: int):
    """The library alone, which is quick enough for many rounds: nothing is ever opened or made outside the root."""
    root = tmp_path / "tree"
    root.mkdir()
    real, link = traps(root, canary, "relative")
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    outside = {os.stat(canary).st_ino, os.stat(canary / "file").st_ino}
    opened = 0
    with swapped(real, link):
        for number in range(rounds):
            for function, path in (
                (safe_paths.make_dirs_in_root, f"real/d{number % 7}/e"),
                (safe_paths.create_file_in_root, f"real/f{number % 7}"),
                (safe_paths.open_in_root, "real/file"),
            ):
                with contextlib.suppress(OSError):
                    fd = function(root_fd, path)
                    opened += 1
                    inode = os.fstat(fd).st_ino
                    os.close(fd)
                    assert inode not in outside, f"{function.__name__} {path}"
    os.close(root_fd)
    assert opened > rounds / 10
    assert os.listdir(canary) == ["file"]


async def test_a_mask_does_not_hand_out_the_hosts_null_device(boxes: Boxes):
    """CVE-2025-31133 in another form: what lies over a masked file is the host's own node."""
    before = os.stat("/dev/null")
    result = await boxes.sh("echo x >/proc/keys && echo written; chmod 600 /proc/keys; chown 7 /proc/keys")
    after = os.stat("/dev/null")
    os.chmod("/dev/null", stat.S_IMODE(before.st_mode))
    os.chown("/dev/null", before.st_uid, before.st_gid)
    assert (before.st_mode, before.st_uid) == (after.st_mode, after.st_uid)
    assert result.out == "written\n"
    assert result.err.count("Read-only file system") == 2


def _without(config: dict[str, Any], *destinations: str) -> dict[str, Any]:
    config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] not in destinations]
    return config


def _null_is_a_link(root: Path) -> None:
    (root / "dev/null").symlink_to(SETTING)


async def test_a_mask_is_no_link_of_the_image(covey: Default, own_root: Path):
    """CVE-2025-31133: /dev/null is a link of the image, so that its target, writable, lies over the masked path."""
    _null_is_a_link(own_root)
    shim, directory, _ = await covey.shim()
    config = _without(
        covey.bundle(["true"], directory.name, root={"path": str(own_root)}), "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"
    )
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeFault, match="another file at /dev/null"):
        await shim.create(directory)


@pytest.mark.parametrize("name", ["runc", "crun"])
async def test_a_mask_that_is_a_link_in_an_older_runtime(controls: dict[str, Control], own_root: Path, name: str):
    """The control: the mask is, writable, a setting; one of the container's own uts namespace, so that nothing is harmed.

    runc takes such a link for the null device and puts it in place of the standard streams, so the exit code tells.
    """
    if name not in controls:
        pytest.skip(f"no {name} here: apt-get install {name}")
    _null_is_a_link(own_root)
    control = controls[name]
    script = f'[ "$(cat /proc/interrupts)" = "$(cat {SETTING})" ] && [ -w /proc/interrupts ] && exit 42'
    leave = {mount["destination"] for mount in control.config([])["mounts"] if mount["destination"].startswith("/dev")}
    masks = {"maskedPaths": ["/proc/interrupts"]}
    ended = control.run(["sh", "-c", script], leave=leave, root={"path": str(own_root)}, linux=masks)
    outcome("CVE-2025-31133", control.label, ended.code == 42, ended.words)
    if control.label == "runc 1.1.5":
        assert ended.code == 42, ended


@ROUNDS
async def test_a_mask_under_exchange_of_null(covey: Default, own_root: Path, tmp_path: Path, rounds: int):
    """CVE-2025-31133 as a race: /dev lies in a volume in which null is exchanged for a link all the time."""
    shared = tmp_path / "dev"
    shared.mkdir()
    os.mknod(shared / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (shared / "link").symlink_to(SETTING)
    null = os.stat("/dev/null")
    made = 0
    with swapped(shared / "null", shared / "link"):
        for _ in range(rounds):
            shim, directory, _ = await covey.shim()
            config = covey.bundle(
                ["true"],
                directory.name,
                root={"path": str(own_root)},
                linux={"maskedPaths": ["/proc/interrupts", "/etc/passwd"]},
            )
            bind_dev(config, shared)
            (directory / "config.json").write_text(json.dumps(config))
            with contextlib.suppress(RuntimeFault):
                pid, _ = await shim.create(directory)
                made += 1
                mask = os.stat(f"/proc/{pid}/root/etc/passwd")
                assert (mask.st_rdev, mask.st_ino, mask.st_dev) == (null.st_rdev, null.st_ino, null.st_dev)
            await discard(shim)
    print(f"{made} of {rounds} made")
    assert made


async def test_masks_follow_the_images_links_inside(boxes: Boxes, own_root: Path):
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


@pytest.mark.parametrize("target", ["elsewhere", "/elsewhere", "/", "../../../../../../proc", "/tmp/volume"])
@pytest.mark.parametrize("name", ["proc", "sys"])
async def test_kernel_filesystems_are_not_mounted_through_links(boxes: Boxes, own_root: Path, name: str, target: str):
    """CVE-2019-16884, CVE-2019-19921, CVE-2023-27561: who holds the link's target could move the mount from its masks."""
    (own_root / name).rmdir()
    (own_root / "elsewhere").mkdir()
    (own_root / "tmp/volume").mkdir()
    (own_root / name).symlink_to(target)
    with pytest.raises(RuntimeFault, match=f"link at /{name}|symbolic links"):
        await boxes.make(["true"], root={"path": str(own_root)})


@pytest.mark.parametrize("runtime", ["runc", "crun"])
async def test_proc_through_a_link_in_an_older_runtime(controls: dict[str, Control], own_root: Path, runtime: str):
    if runtime not in controls:
        pytest.skip(f"no {runtime} here: apt-get install {runtime}")
    (own_root / "proc").rmdir()
    (own_root / "elsewhere").mkdir()
    (own_root / "proc").symlink_to("elsewhere")
    ended = controls[runtime].run(["sh", "-c", "cat /elsewhere/1/comm"], root={"path": str(own_root)})
    outcome("CVE-2023-27561", controls[runtime].label, ended.code == 0, ended.words)


async def test_mounts_by_name_go_where_links_lead(own_root: Path, tmp_path: Path, canary: Path):
    """The control of these, and of CVE-2025-52565: mount(8), which takes names, in a mount namespace of its own."""
    (own_root / "proc").rmdir()
    (own_root / "elsewhere").mkdir()
    (own_root / "proc").symlink_to("elsewhere")
    (tmp_path / "console").write_text("")
    (tmp_path / "terminal").symlink_to(canary / "file")
    script = (
        f"mount -t proc proc {own_root}/proc && cut -d' ' -f5 /proc/self/mountinfo | grep {own_root}; "
        f"mount --bind {tmp_path}/terminal {tmp_path}/console && cat {tmp_path}/console"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    outcome("CVE-2023-27561", "mount by name", f"{own_root}/elsewhere" in done.stdout)
    outcome("CVE-2025-52565", "bind by name", done.stdout.endswith("canary\n"))
    assert done.stdout.split() == [f"{own_root}/elsewhere", "canary"]


async def test_proc_cannot_lie_in_a_volume_that_is_a_link(covey: Default, own_root: Path, tmp_path: Path, canary: Path):
    """CVE-2019-19921: a volume at /proc's parent in which proc is a link; the masks would go to the link's place."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "proc").symlink_to("/tmp")
    shim, directory, _ = await covey.shim()
    config = covey.bundle(["true"], directory.name, root={"path": str(own_root)})
    proc = next(mount for mount in config["mounts"] if mount["destination"] == "/proc")
    proc["destination"] = "/vol/proc"
    config["mounts"].insert(0, {"destination": "/vol", "type": "bind", "source": str(volume), "options": ["rbind"]})
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeFault, match="link at /vol/proc"):
        await shim.create(directory)


@pytest.mark.parametrize("target", ["/tmp", "../../../../../..", "/etc", "elsewhere"])
async def test_dev_as_a_link_of_the_image_stays_inside(covey: Default, own_root: Path, canary: Path, target: str):
    """A link at /dev leads to a place of the image: nothing of the host's /dev changes or is seen."""
    for place in ("dev/pts", "dev"):
        with contextlib.suppress(OSError):
            (own_root / place).rmdir()
    (own_root / "dev").symlink_to(target)
    before = {name: os.lstat(f"/dev/{name}").st_ino for name in os.listdir("/dev")}
    with contextlib.suppress(RuntimeFault):
        result = await covey.run(["sh", "-c", "ls /dev/; cat /dev/null"], root={"path": str(own_root)})
        seen = set(result.out.split())
        assert not {name for name in before if stat.S_ISBLK(os.lstat(f"/dev/{name}").st_mode)} & seen
    assert {name: os.lstat(f"/dev/{name}").st_ino for name in os.listdir("/dev")} == before


async def test_an_image_cannot_pass_something_else_off_as_its_terminals(boxes: Boxes, own_root: Path):
    """CVE-2025-52565: the console is of the container's devpts or none."""
    (own_root / "dev/pts").mkdir()
    (own_root / "dev/pts/ptmx").symlink_to("/dev/zero")
    shim, directory, _ = await boxes.shim()
    config = boxes.bundle(["true"], directory.name, process={"terminal": True}, root={"path": str(own_root)})
    (directory / "config.json").write_text(json.dumps(_without(config, "/dev", "/dev/pts")))
    with pytest.raises(RuntimeFault, match="terminal multiplexer"):
        await shim.create(directory)


@ROUNDS
async def test_a_console_under_exchange(covey: Default, own_root: Path, tmp_path: Path, rounds: int):
    """CVE-2025-52565: /dev lies in a volume where console, and the directory of the terminals, are exchanged for links.

    What lies on /dev/console in the end is a terminal of the container's own devpts, or nothing was started.
    """
    shared = tmp_path / "dev"
    (shared / "pts").mkdir(parents=True)
    (shared / "elsewhere").symlink_to("/tmp")
    (shared / "console").write_text("")
    (shared / "link").symlink_to(SETTING)
    made = 0
    with swapped(shared / "pts", shared / "elsewhere"), swapped(shared / "console", shared / "link"):
        for _ in range(rounds):
            shim, directory, _ = await covey.shim()
            config = covey.bundle(["true"], directory.name, process={"terminal": True}, root={"path": str(own_root)})
            bind_dev(config, shared)
            (directory / "config.json").write_text(json.dumps(config))
            with contextlib.suppress(RuntimeFault):
                pid, _ = await shim.create(directory)
                made += 1
                lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
                over = [line for line in lines if line.split()[4] in ("/dev/console", SETTING)]
                assert all(" - devpts " in line or line.split()[4] == SETTING for line in over), over
            await discard(shim)
    print(f"{made} of {rounds} made")
