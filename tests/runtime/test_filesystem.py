"""The tree a container sees: mounts, devices, masks, and that an image cannot lead us out of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.runtime.errors import RuntimeFault

pytestmark = [pytest.mark.root, pytest.mark.asyncio]


def bind(source: Path, destination: str, *options: str) -> dict:
    return {"destination": destination, "type": "bind", "source": str(source), "options": list(options)}


@pytest.fixture
def own_root(rootfs: Path, tmp_path: Path) -> Path:
    """A copy of the root file system that a test may change; of /dev nothing, as to read /dev/full has no end."""
    return Path(shutil.copytree(rootfs, tmp_path / "own-root", symlinks=True, ignore=lambda directory, names: (
        names if Path(directory) == rootfs / "dev" else [])))  # fmt: skip


async def test_root_is_the_bundles_and_nothing_else(boxes, rootfs):
    result = await boxes.sh("ls /proc/1/root/etc; ls -d /work /root /home")
    assert result.out.split() == ["not-a-program", "passwd"]
    assert result.err.count("No such file") == 3
    mounts = (await boxes.sh("cat /proc/self/mountinfo")).out
    assert str(rootfs) not in "".join(line.split(" ")[4] for line in mounts.splitlines())


async def test_devices_and_links(boxes):
    extra = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6}
    script = (
        'for d in null zero full random urandom tty fuse; do stat -c "%n %t:%T %a %u:%g" /dev/$d; done;'
        "for l in fd ptmx stdout; do readlink /dev/$l; done"
    )
    result = await boxes.sh(script, linux={"devices": [extra]})
    lines = result.out.splitlines()
    assert lines[0] == "/dev/null 1:3 666 0:0"
    assert lines[6] == "/dev/fuse a:e5 640 5:6"
    assert lines[7:] == ["/proc/self/fd", "pts/ptmx", "/proc/self/fd/1"]


async def test_an_images_own_file_in_place_of_a_device_is_an_error(boxes, own_root):
    (own_root / "extra").write_text("")
    device = {"path": "/extra", "type": "c", "major": 1, "minor": 3}
    with pytest.raises(RuntimeFault, match="another file at /extra"):
        await boxes.make(["true"], root={"path": str(own_root)}, linux={"devices": [device]})


async def test_masked_and_readonly_paths(boxes):
    script = (
        "wc -c </proc/keys; ls /sys/firmware | wc -l; touch /sys/firmware/x;echo x >/proc/sys/kernel/hostname; touch /sys/x"
    )
    result = await boxes.sh(script)
    assert result.out.split() == ["0", "0"]
    assert result.err.count("Read-only file system") == 3


async def test_bind_read_only_and_writable(boxes, tmp_path):
    (tmp_path / "ro").mkdir()
    (tmp_path / "rw").mkdir()
    (tmp_path / "file").write_text("hello\n")
    mounts = [
        bind(tmp_path / "ro", "/mnt/ro", "rbind", "ro"),
        bind(tmp_path / "rw", "/mnt/deep/er/rw", "rbind", "noexec"),
        bind(tmp_path / "file", "/etc/mounted", "bind", "ro"),
    ]
    tmpfs = {"destination": "/mnt", "type": "tmpfs", "options": ["mode=755"]}
    result = await boxes.sh(
        "touch /mnt/ro/x; echo out >/mnt/deep/er/rw/y; cat /etc/mounted; echo no >/etc/mounted", mounts=[tmpfs, *mounts]
    )
    assert result.out == "hello\n"
    assert result.err.count("Read-only file system") == 2
    assert (tmp_path / "rw/y").read_text() == "out\n"


async def test_recursive_read_only(boxes, tmp_path):
    """``ro`` holds for the top mount alone, ``rro`` for all below it (mount_setattr)."""
    (tmp_path / "in").mkdir()
    with host_tmpfs(tmp_path / "in"):
        for option, refused in (("ro", 1), ("rro", 2)):
            result = await boxes.sh("touch /m/x; touch /m/in/y", mounts=[bind(tmp_path, "/m", "rbind", option)])
            assert result.err.count("Read-only file system") == refused, (option, result)


@contextlib.contextmanager
def host_tmpfs(path: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


async def test_missing_bind_source(boxes, tmp_path):
    with pytest.raises(RuntimeFault, match=r"bind source .*nowhere does not exist") as caught:
        await boxes.make(["true"], mounts=[bind(tmp_path / "nowhere", "/mnt", "bind")])
    assert (caught.value.code, caught.value.step) == ("invalid", "mount_bind /mnt")


async def test_tmpfs_options(boxes):
    options = ["nosuid", "noexec", "size=1m", "mode=1770", "uid=7"]
    result = await boxes.sh(
        "grep ' /t ' /proc/mounts; stat -c '%a %u' /t; dd if=/dev/zero of=/t/x bs=1M count=2; cp /bin/busybox /t",
        mounts=[{"destination": "/t", "type": "tmpfs", "options": options}],
    )
    assert "noexec" in result.out
    assert "size=1024k" in result.out
    assert result.out.splitlines()[1] == "1770 7"
    assert "No space left" in result.err


async def test_unknown_tmpfs_option_names_it(boxes):
    with pytest.raises(RuntimeFault, match="colour"):
        await boxes.make(["true"], mounts=[{"destination": "/t", "type": "tmpfs", "options": ["colour=red"]}])


async def test_links_of_an_image_do_not_lead_out(boxes, own_root, tmp_path):
    """A mount point that is a link to a path of the host is made inside the root."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (own_root / "escape").symlink_to(outside)
    (own_root / "up").symlink_to("../../../../../../.." + str(outside))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("data\n")
    mounts = [bind(tmp_path / "data", "/escape/a", "bind"), bind(tmp_path / "data", "/up/b", "bind")]
    result = await boxes.sh(f"cat {outside}/a/file {outside}/b/file", mounts=mounts, root={"path": str(own_root)})
    assert result.out == "data\ndata\n", result
    assert list(outside.iterdir()) == []


async def test_magic_links_do_not_lead_out(boxes, own_root, tmp_path):
    (own_root / "escape").symlink_to("/proc/1/root")
    with pytest.raises(RuntimeFault):
        await boxes.make(["true"], mounts=[bind(tmp_path, "/escape/tmp/x", "bind")], root={"path": str(own_root)})


async def test_read_only_root(boxes):
    result = await boxes.sh("touch /x; touch /tmp/x; echo ok >/dev/shm/y && cat /dev/shm/y", root={"readonly": True})
    assert result.out == "ok\n"
    assert result.err.count("Read-only file system") == 2


async def test_cgroup_mount_shows_the_containers_own_read_only(boxes):
    result = await boxes.sh("cd /sys/fs/cgroup; ls -d pids memory || ls -d cgroup.procs; touch pids/x x; mkdir pids/y y")
    assert result.out.split() in (["pids", "memory"], ["memory", "pids"], ["cgroup.procs"])
    assert result.err.count("Read-only file system") >= 2
    result = await boxes.sh("cat /sys/fs/cgroup/pids/cgroup.procs 2>/dev/null || cat /sys/fs/cgroup/cgroup.procs")
    assert result.out.split()[0] == "1"


async def test_working_directory_is_made(boxes, own_root):
    result = await boxes.sh("pwd", root={"path": str(own_root)}, process={"args": ["sh", "-c", "pwd"], "cwd": "/a/b"})
    assert result.out == "/a/b\n"


async def test_working_directory_that_is_a_file(boxes):
    box = await boxes.make(["true"], process={"args": ["true"], "cwd": "/etc/passwd"})
    with pytest.raises(RuntimeFault, match="cwd /etc/passwd: Not a directory"):
        await box.shim.start()


@pytest.mark.parametrize("propagation", ["private", "slave", "shared", "unbindable"])
async def test_root_propagation(boxes, propagation):
    result = await boxes.sh("grep ' / / \\| / ' /proc/self/mountinfo | head -1", linux={"rootfsPropagation": propagation})
    tag = {"shared": "shared:", "slave": "", "private": "", "unbindable": "unbindable"}[propagation]
    assert result.code == 0
    assert tag in result.out


async def test_host_sees_no_mount_of_a_running_container(boxes, rootfs):
    await boxes.start(["sleep", "60"], linux={"rootfsPropagation": "shared"})
    assert str(rootfs) not in Path("/proc/self/mountinfo").read_text()


async def test_overlay_as_root(boxes, rootfs, tmp_path):
    """What the daemon does: an overlay mounted at the bundle's rootfs."""
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={rootfs},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, tmp_path / "merged"], check=True)
    try:
        result = await boxes.sh("echo new >/tmp/new; ls /bin/busybox", root={"path": str(tmp_path / "merged")})
        assert result.out == "/bin/busybox\n"
        assert (tmp_path / "upper/tmp/new").read_text() == "new\n"
    finally:
        subprocess.run(["umount", tmp_path / "merged"], check=True)
    assert not os.listdir(tmp_path / "merged")
