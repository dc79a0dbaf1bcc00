"""config.md: root, mounts, process, names, annotations."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.spec.table import Table, own_root
from worker.runtime.errors import RuntimeFault
from worker.runtime.labels import present

TABLE = Table("config.md")
MODES = ("bounding", "effective", "permitted", "inheritable", "ambient")


def tmpfs(*options: str, destination: str = "/mnt", **more: Any) -> dict[str, Any]:
    return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": list(options), **more}


def bind(source: object, *options: str, destination: str = "/mnt", **more: Any) -> dict[str, Any]:
    return {"destination": destination, "type": "none", "source": str(source), "options": list(options), **more}


async def mounted(
    boxes: Any, *mounts: dict[str, Any], place: str = "/mnt", **changes: Any
) -> tuple[set[str], list[str], set[str]]:
    """(mount options, propagation fields, superblock options) of the last mount at ``place``, as the container sees it."""
    root = {"root": {"path": str(own_root(boxes))}} if "root" not in changes else {}
    result = await boxes.sh("cat /proc/self/mountinfo", mounts=list(mounts), **root, **changes)
    assert result.code == 0, result
    line = [line for line in result.out.splitlines() if line.split(" ")[4] == place][-1]
    left, _, right = line.partition(" - ")
    fields = left.split(" ")
    return set(fields[5].split(",")), fields[6:], set(right.split(" ")[2].split(","))


# Specification version

for version in ("1.0.0", "1.0.2-dev", "1.1.0+build.5", "1.2.1", "1.3.0", "1.99.0"):

    @TABLE.row("ociVersion", f"{version} is compatible with a runtime of the same major version")
    async def _(boxes, version=version):
        assert (await boxes.sh("true", ociVersion=version)).code == 0


for version in ("", "1", "1.0", "01.0.0", "1.00.0", "0.1.0", "2.0.0", 1, None):
    TABLE.refuses("ociVersion", f"{version!r} is no semantic version of major 1", "ociVersion", version, "ociVersion")


@TABLE.row("extensibility", "unknown properties are ignored")
async def _(boxes):
    assert (await boxes.sh("true", somethingNew={"x": [1]}, vendor="y")).code == 0


# Root

TABLE.refuses("root", "is required on POSIX platforms", "root", None, "root.path")
TABLE.refuses("root.path", "is required", "root", {}, "root.path")


@TABLE.row("root.path", "a relative path is relative to the bundle")
async def _(boxes):
    relative = os.path.relpath(boxes.rootfs, boxes.base / "box0")
    assert (await boxes.sh("ls /etc", root={"path": relative})).out.split() == ["not-a-program", "passwd"]


@TABLE.row("root.path", "a directory must exist at the path")
async def _(boxes):
    with pytest.raises(RuntimeFault, match=r"root\.path.*/no/such"):
        await boxes.make(["true"], root={"path": "/no/such"})
    with pytest.raises(RuntimeFault, match=r"root\.path.*not a directory"):
        await boxes.make(["true"], root={"path": str(boxes.rootfs / "etc/passwd")})


@TABLE.row("root.readonly", "true makes the root read-only inside")
async def _(boxes):
    result = await boxes.sh("touch /x; touch /dev/x && echo dev", root={"path": str(own_root(boxes)), "readonly": True})
    assert "Read-only file system" in result.err
    assert result.out == "dev\n"


@TABLE.row("root.readonly", "defaults to false")
async def _(boxes):
    assert (await boxes.sh("touch /x && echo fine", root={"path": str(own_root(boxes))})).out == "fine\n"


# Mounts


@TABLE.row("mounts", "entries are mounted in the listed order")
async def _(boxes):
    mounts = [tmpfs("mode=755"), tmpfs(destination="/mnt/below"), tmpfs("mode=700")]
    result = await boxes.sh("ls /mnt; stat -c %a /mnt", mounts=mounts, root={"path": str(own_root(boxes))})
    assert result.out.split() == ["700"], "the third covers the first and what is mounted in it"


@TABLE.row("mounts.destination", "a relative one is relative to the root")
async def _(boxes):
    assert (await mounted(boxes, tmpfs("ro", destination="mnt")))[0] >= {"ro"}


@TABLE.row("mounts.destination", "links are resolved inside the root")
async def _(boxes):
    root = own_root(boxes)
    (root / "link").symlink_to("/etc/../target")
    options, _, _ = await mounted(boxes, tmpfs("ro", destination="/link"), place="/target", root={"path": str(root)})
    assert "ro" in options


TABLE.refuses("mounts.destination", "is required", "mounts", [{"type": "tmpfs"}], "mounts[0].destination")


@TABLE.row("mounts.source", "a bind's path is absolute or relative to the bundle")
async def _(boxes):
    (boxes.base / "given").write_text("words\n")
    result = await boxes.sh("cat /etc/given", mounts=[bind("../given", "bind", destination="/etc/given")],
                            root={"path": str(own_root(boxes))})  # fmt: skip
    assert result.out == "words\n"


@TABLE.row("mounts.options", "it is bind or rbind that makes a bind mount, whatever the type")
async def _(boxes):
    (boxes.base / "given").mkdir()
    (boxes.base / "given/file").touch()
    root = {"path": str(own_root(boxes))}
    for kind in ("none", "ext4", ""):
        changes = {"mounts": [bind(boxes.base / "given", "rbind", type=kind)], "root": root}
        assert (await boxes.sh("ls /mnt", **changes)).out == "file\n"


ON = ("ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "nosymfollow")
for option in ON:

    @TABLE.row("Linux mount options", f"{option} on a bind mount")
    async def _(boxes, option=option):
        (boxes.base / "given").mkdir()
        assert option in (await mounted(boxes, bind(boxes.base / "given", "rbind", option)))[0]

    @TABLE.row("Linux mount options", f"{option} on a new filesystem")
    async def _(boxes, option=option):
        assert option in (await mounted(boxes, tmpfs(option)))[0]


OFF = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "atime": "noatime", "diratime": "nodiratime",
       "symfollow": "nosymfollow", "strictatime": "relatime", "norelatime": "noatime", "nostrictatime": "noatime"}  # fmt: skip
for option, undone in OFF.items():

    @TABLE.row("Linux mount options", f"{option} undoes {undone} before it")
    async def _(boxes, option=option, undone=undone):
        assert undone not in (await mounted(boxes, tmpfs(undone, option)))[0]


for option in ("sync", "dirsync", "lazytime"):

    @TABLE.row("Linux mount options", f"{option} is the filesystem's")
    async def _(boxes, option=option):
        assert option in (await mounted(boxes, tmpfs(option)))[2]


for option in ("async", "nolazytime", "defaults", "silent", "loud", "iversion", "noiversion", "mand", "nomand"):

    @TABLE.row("Linux mount options", f"{option} is known, and is no option of the filesystem")
    async def _(boxes, option=option):
        (boxes.base / "given").mkdir(exist_ok=True)
        options, _, _ = await mounted(boxes, tmpfs(option), bind(boxes.base / "given", "bind", option, destination="/tmp"))
        assert {"rw", "relatime"} <= options


RECURSIVE = ("rro", "rnosuid", "rnodev", "rnoexec", "rnoatime", "rnodiratime", "rnosymfollow", "rrelatime")
for option in RECURSIVE:

    @TABLE.row("Linux mount options", f"{option} holds for what is mounted below too")
    async def _(boxes, option=option):
        result = await boxes.sh("grep ' /mnt' /proc/self/mountinfo", mounts=[bind("/sys", "rbind", "atime", option)],
                                root={"path": str(own_root(boxes))})  # fmt: skip
        lines = [line.split(" ")[5].split(",") for line in result.out.splitlines()]
        assert len(lines) > 1, "the test needs mounts below /sys"
        assert all(option[1:] in options for options in lines), result.out


for option, plain in {"rrw": "ro", "rsuid": "nosuid", "rdev": "nodev", "rexec": "noexec", "rdiratime": "nodiratime",
                      "rsymfollow": "nosymfollow", "ratime": "noatime", "rnorelatime": "noatime", "rstrictatime": "relatime",
                      "rnostrictatime": "noatime"}.items():  # fmt: skip

    @TABLE.row("Linux mount options", f"{option} is the recursive inverse of r{plain}")
    async def _(boxes, option=option, plain=plain):
        result = await boxes.sh("grep ' /mnt' /proc/self/mountinfo", mounts=[bind("/sys", "rbind", f"r{plain}", option)],
                                root={"path": str(own_root(boxes))})  # fmt: skip
        lines = [line.split(" ")[5].split(",") for line in result.out.splitlines()]
        assert len(lines) > 1
        assert not any(plain in options for options in lines), result.out


for name, wanted in {"shared": "shared:", "rshared": "shared:", "private": "", "rprivate": "", "slave": "", "rslave": "",
                     "unbindable": "unbindable", "runbindable": "unbindable"}.items():  # fmt: skip

    @TABLE.row("Linux mount options", f"{name} is a propagation, wherever it stands")
    async def _(boxes, name=name, wanted=wanted):
        (boxes.base / "given").mkdir()
        for index, options in enumerate(([name, "rbind", "ro"], ["rbind", "ro", name])):
            shutil.rmtree(boxes.base / "own-root", ignore_errors=True)
            found, fields, _ = await mounted(boxes, bind(boxes.base / "given", *options))
            assert "ro" in found, index
            assert [field for field in fields if not field.startswith("master:")] == [field for field in fields if wanted and
                                                                                     field.startswith(wanted)]  # fmt: skip
            assert bool(wanted) == bool(fields), fields


@TABLE.row("Linux mount options", "remount changes what is mounted there, and its filesystem's own options")
async def _(boxes):
    options, _, superblock = await mounted(boxes, tmpfs("size=1m"), tmpfs("remount", "nosuid", "ro", "size=2m"))
    assert {"nosuid", "ro"} <= options
    assert "size=2048k" in superblock
    with pytest.raises(RuntimeFault, match="nothing is mounted at /etc"):
        await boxes.make(["true"], mounts=[tmpfs("remount", "ro", destination="/etc")])


@TABLE.row("Linux mount options", "tmpcopyup copies what the place held into the tmpfs")
async def _(boxes):
    root = own_root(boxes)
    (root / "mnt/sub").mkdir(parents=True)
    (root / "mnt/sub/file").write_text("words\n")
    (root / "mnt/sub/file").chmod(0o640)
    os.chown(root / "mnt/sub/file", 5, 6)
    (root / "mnt/link").symlink_to("sub/file")
    script = "cat /mnt/link; stat -c '%a %u:%g' /mnt/sub/file; readlink /mnt/link; echo new >/mnt/sub/file; stat -f -c %T /mnt"
    result = await boxes.sh(script, mounts=[tmpfs("tmpcopyup")], root={"path": str(root)})
    assert result.out.split() == ["words", "640", "5:6", "sub/file", "tmpfs"], result
    assert (root / "mnt/sub/file").read_text() == "words\n"


MAPS = [{"containerID": 1000, "hostID": 2000, "size": 10}]


@TABLE.row("Linux mount options", "idmap applies the mount's uidMappings and gidMappings")
async def _(boxes):
    (boxes.base / "given").mkdir()
    (boxes.base / "given/file").touch()
    os.chown(boxes.base / "given/file", 1001, 1002)
    mount = bind(boxes.base / "given", "bind", "idmap", uidMappings=MAPS, gidMappings=MAPS)
    result = await boxes.sh("stat -c '%u:%g' /mnt/file", mounts=[mount], root={"path": str(own_root(boxes))})
    assert result.out == "2001:2002\n", result


@TABLE.row("Linux mount options", "ridmap maps what is mounted below too, and fails where a filesystem there cannot")
async def _(boxes):
    (boxes.base / "given").mkdir()
    mount = bind(boxes.base / "given", "rbind", "ridmap", uidMappings=MAPS, gidMappings=MAPS)
    assert (await boxes.sh("stat -c %u /mnt", mounts=[mount], root={"path": str(own_root(boxes))})).out == "65534\n"
    with pytest.raises(RuntimeFault, match=r"mounts\[7\]: idmap"):
        await boxes.make(["true"], mounts=[bind("/sys", "rbind", "ridmap", uidMappings=MAPS, gidMappings=MAPS)])


@TABLE.row("Linux mount options", "idmap without any mapping is an error")
async def _(boxes):
    with pytest.raises(RuntimeFault, match=r"mounts\[7\]\.options: idmap needs uidMappings"):
        await boxes.make(["true"], mounts=[bind("/tmp", "bind", "idmap")])


@TABLE.row("Linux mount options", "idmap without a mapping of its own takes the container's user namespace's")
async def _(boxes):
    root = own_root(boxes)
    for path in (boxes.base, boxes.base.parent, boxes.base.parent.parent):
        path.chmod(path.stat().st_mode | 0o011)
    (boxes.base / "given").mkdir(mode=0o755)
    (boxes.base / "given/file").touch()
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    kinds = ("pid", "network", "ipc", "uts", "mount", "cgroup", "user")
    linux = {"namespaces": [{"type": kind} for kind in kinds], "uidMappings": maps, "gidMappings": maps}
    (root / "mnt").mkdir()
    mounts = [bind(boxes.base / "given", "bind", "idmap")]
    result = await boxes.sh("stat -c '%u:%g' /mnt/file; touch /mnt/new", mounts=mounts, linux=linux, root={"path": str(root)})
    assert result.out == "0:0\n", result
    assert (boxes.base / "given/new").stat().st_uid == 0, "the container's root writes as the filesystem's owner"


@TABLE.row("mounts", "flags the host has set hold in a user namespace; undoing one is an error that says so")
async def _(boxes):
    for path in (boxes.base, boxes.base.parent, boxes.base.parent.parent):
        path.chmod(path.stat().st_mode | 0o011)
    place = boxes.base / "locked"
    place.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,nosuid,mode=755", "tmpfs", str(place)], check=True)
    try:
        kinds = ("pid", "network", "ipc", "uts", "mount", "cgroup", "user")
        maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        linux = {"namespaces": [{"type": kind} for kind in kinds], "uidMappings": maps, "gidMappings": maps}
        options, _, _ = await mounted(boxes, bind(place, "rbind", "noexec", destination="/tmp"), place="/tmp", linux=linux,
                                      root={"path": str(boxes.rootfs)})  # fmt: skip
        assert {"ro", "nosuid", "noexec"} <= options
        with pytest.raises(RuntimeFault, match="undo what the host has set"):
            await boxes.make(["true"], mounts=[bind(place, "rbind", "rw", destination="/tmp")], linux=linux)
    finally:
        subprocess.run(["umount", str(place)], check=True)


TABLE.refuses("mounts.uidMappings", "must be specified along with gidMappings", "mounts",
              [bind("/x", "bind", "idmap", uidMappings=MAPS)], "mounts[0].gidMappings")  # fmt: skip
TABLE.refuses("mounts.gidMappings", "must be specified along with uidMappings", "mounts",
              [bind("/x", "bind", "idmap", gidMappings=MAPS)], "mounts[0].uidMappings")  # fmt: skip


@TABLE.row("Linux mount options", "unknown ones are the filesystem's own")
async def _(boxes):
    result = await boxes.sh("stat -c %a /mnt", mounts=[tmpfs("mode=711", "size=1m")], root={"path": str(own_root(boxes))})
    assert result.out == "711\n"
    with pytest.raises(RuntimeFault, match="Unknown parameter 'colour'"):
        await boxes.make(["true"], mounts=[tmpfs("colour=red", destination="/tmp")])


# Process

TABLE.refuses("process", "is required when start is called", "process", None, "process")
TABLE.refuses("process.cwd", "is required", "process", {"args": ["true"]}, "process.cwd")
TABLE.refuses("process.cwd", "must be an absolute path", "process.cwd", "tmp", "process.cwd")
TABLE.refuses("process.args", "at least one entry is required", "process.args", [], "process.args")


@TABLE.row("process.terminal", "true attaches a terminal to the standard streams")
async def _(boxes):
    result = await boxes.sh("tty; test -t 0 && test -t 1 && test -t 2 && echo all", process={"terminal": True})
    assert result.out.split() == ["/dev/pts/0", "all"]


@TABLE.row("process.terminal", "defaults to false")
async def _(boxes):
    assert (await boxes.sh("test -t 0 || test -t 1 || test -t 2 || echo none")).out == "none\n"


@TABLE.row("process.consoleSize", "is the size of the terminal")
async def _(boxes):
    size = {"height": 33, "width": 77}
    assert (await boxes.sh("stty size", process={"terminal": True, "consoleSize": size})).out.split() == ["33", "77"]


@TABLE.row("process.consoleSize", "is ignored without a terminal")
async def _(boxes):
    assert (await boxes.sh("true", process={"consoleSize": {"height": 33, "width": 77}})).code == 0


@TABLE.row("process.cwd", "is the working directory, made where it is missing")
async def _(boxes):
    result = await boxes.sh("pwd", process={"cwd": "/made/for/it"}, root={"path": str(own_root(boxes))})
    assert result.out == "/made/for/it\n"


@TABLE.row("process.env", "is the environment, as it is given")
async def _(boxes):
    assert (await boxes.run(["/bin/env"], process={"env": ["A=1", "B=x=y", "C="]})).out.split() == ["A=1", "B=x=y", "C="]


@TABLE.row("process.args", "the first entry has execvp's semantics")
async def _(boxes):
    root = own_root(boxes)
    (root / "opt").mkdir()
    (root / "opt/tool").symlink_to("/bin/busybox")
    changes = {"root": {"path": str(root)}, "process": {"env": ["PATH=/none:/opt"]}}
    (root / "opt/echo").symlink_to("/bin/busybox")
    assert (await boxes.run(["echo", "found"], **changes)).out == "found\n"
    box = await boxes.make(["ls"], **changes)
    with pytest.raises(RuntimeFault) as caught:
        await box.shim.start()
    assert caught.value.code == "not-found"


@TABLE.row("process.rlimits", "getrlimit answers soft and hard as configured")
async def _(boxes):
    limits = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096}]
    result = await boxes.sh("ulimit -Sn; ulimit -Hn; grep 'core file' /proc/self/limits", process={"rlimits": limits})
    assert result.out.split()[:2] == ["100", "200"]
    assert result.out.split()[-3:-1] == ["0", "4096"]


TABLE.refuses("process.rlimits", "a type that is no limit of the kernel's is an error", "process.rlimits",
              [{"type": "RLIMIT_FUN", "soft": 1, "hard": 1}], "process.rlimits[0].type")  # fmt: skip
TABLE.refuses("process.rlimits", "two entries of the same type are an error", "process.rlimits",
              [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2, "process.rlimits[1].type")  # fmt: skip


@TABLE.row("process.capabilities", "each of the five sets is as configured")
async def _(boxes):
    names = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID"]
    sets = {"bounding": names, "permitted": names[:4], "effective": names[:3], "inheritable": names[:2], "ambient": names[:1]}
    user = {"uid": 1000, "gid": 1000}
    result = await boxes.sh("grep Cap /proc/self/status", process={"capabilities": sets, "user": user})
    found = {line.split(":")[0]: int(line.split()[1], 16) for line in result.out.splitlines()}
    # execve keeps of permitted and effective what is ambient (capabilities(7)); the others show as they were set.
    assert found["CapBnd"] == sum(1 << number for number in (0, 1, 3, 5, 6))
    assert found["CapInh"] == 0b11
    assert found["CapAmb"] == found["CapPrm"] == found["CapEff"] == 0b1


@TABLE.row("process.capabilities", "what cannot be mapped or granted is warned of, and is no failure")
async def _(boxes):
    sets = {mode: ["CAP_CHOWN", "CAP_LEVITATE"] for mode in MODES}
    box = await boxes.start(["sleep", "60"], process={"capabilities": sets})
    assert any("CAP_LEVITATE" in words for words in box.shim.warnings), box.shim.warnings
    status = Path(f"/proc/{box.init_pid}/status").read_text()
    assert int(status.split("CapBnd:")[1].split()[0], 16) == 1


for wanted in (True, False):

    @TABLE.row("process.noNewPrivileges", f"{wanted} is so")
    async def _(boxes, wanted=wanted):
        result = await boxes.sh("grep NoNewPrivs /proc/self/status", process={"noNewPrivileges": wanted})
        assert result.out.split()[1] == str(int(wanted))


@TABLE.row("process.oomScoreAdj", "is set to the given value")
async def _(boxes):
    assert (await boxes.sh("cat /proc/self/oom_score_adj", process={"oomScoreAdj": 321})).out == "321\n"


@TABLE.row("process.oomScoreAdj", "is not changed where it is not set")
async def _(boxes):
    assert (await boxes.sh("cat /proc/self/oom_score_adj")).out == Path("/proc/self/oom_score_adj").read_text()


@TABLE.row("process.scheduler", "SCHED_IDLE, for which the kernel knows no nice value")
async def _(boxes):
    box = await boxes.start(["sleep", "60"], process={"scheduler": {"policy": "SCHED_IDLE"}})
    assert os.sched_getscheduler(box.init_pid) == os.SCHED_IDLE


for policy, wanted in {"SCHED_OTHER": os.SCHED_OTHER, "SCHED_BATCH": os.SCHED_BATCH}.items():

    @TABLE.row("process.scheduler", f"{policy} with a nice value")
    async def _(boxes, policy=policy, wanted=wanted):
        box = await boxes.start(["sleep", "60"], process={"scheduler": {"policy": policy, "nice": 7}})
        assert os.sched_getscheduler(box.init_pid) == wanted
        assert os.getpriority(os.PRIO_PROCESS, box.init_pid) == 7


for policy, wanted in {"SCHED_FIFO": os.SCHED_FIFO, "SCHED_RR": os.SCHED_RR}.items():

    @TABLE.row("process.scheduler", f"{policy} with a priority and flags")
    async def _(boxes, policy=policy, wanted=wanted):
        scheduler = {"policy": policy, "priority": 3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}
        # A v1 group may use real-time policies only with a runtime, and only so much as its parent has: the root has.
        linux = {"cgroupsPath": f"/covey-test-runtime-rt-{os.getpid()}"}
        if Path("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists():
            linux["resources"] = {"cpu": {"realtimePeriod": 1000000, "realtimeRuntime": 1000}}
        box = await boxes.start(["sleep", "60"], process={"scheduler": scheduler}, linux=linux)
        assert os.sched_getscheduler(box.init_pid) == wanted | os.SCHED_RESET_ON_FORK
        assert os.sched_getparam(box.init_pid).sched_priority == 3


@TABLE.row("process.scheduler", "SCHED_DEADLINE with runtime, deadline and period")
async def _(boxes):
    times = {"runtime": 2_000_000, "deadline": 20_000_000, "period": 20_000_000}
    box = await boxes.start(["sleep", "60"], process={"scheduler": {"policy": "SCHED_DEADLINE", **times}})
    assert os.sched_getscheduler(box.init_pid) == 6


TABLE.refuses("process.scheduler.policy", "is one of the listed", "process.scheduler", {"policy": "SCHED_LUCK"},
              "process.scheduler.policy")  # fmt: skip
TABLE.refuses("process.scheduler.flags", "are of the listed", "process.scheduler", {"policy": "SCHED_RR", "flags": ["X"]},
              "process.scheduler.flags")  # fmt: skip

for name, priority, words in (("IOPRIO_CLASS_BE", 6, "best-effort: prio 6"), ("IOPRIO_CLASS_IDLE", 0, "idle"),
                              ("IOPRIO_CLASS_RT", 2, "realtime: prio 2")):  # fmt: skip

    @TABLE.row("process.ioPriority", f"{name} {priority}")
    async def _(boxes, name=name, priority=priority, words=words):
        result = await boxes.sh("busybox ionice -p $$", process={"ioPriority": {"class": name, "priority": priority}})
        assert result.out.strip().startswith(words), result


TABLE.refuses("process.ioPriority.class", "is one of the listed", "process.ioPriority", {"class": "BEST"},
              "process.ioPriority.class")  # fmt: skip
TABLE.refuses("process.ioPriority.priority", "is within 0 to 7", "process.ioPriority",
              {"class": "IOPRIO_CLASS_BE", "priority": 8}, "process.ioPriority.priority")  # fmt: skip


@TABLE.row("process.execCPUAffinity", "is for executed processes, not for the container's init")
async def _(boxes):
    last = max(os.sched_getaffinity(0))
    box = await boxes.start(["sleep", "60"], process={"execCPUAffinity": {"final": str(last)}})
    assert os.sched_getaffinity(box.init_pid) == os.sched_getaffinity(0)
    affinity = {"initial": "0", "final": str(last)}
    _, out, err = await box.run_exec("e", ["grep", "Cpus_allowed_list", "/proc/self/status"], execCPUAffinity=affinity)
    assert out.split()[1:] == [str(last).encode()], err


for field, module in (("apparmorProfile", "apparmor"), ("selinuxLabel", "selinux")):

    @TABLE.row(f"process.{field}", "cannot be applied without the module, which is an error that names it")
    async def _(boxes, field=field, module=module):
        if present(module):
            pytest.skip(f"this machine runs {module}")
        with pytest.raises(RuntimeFault, match=rf"process\.{field}: this machine runs no ") as caught:
            await boxes.make(["true"], process={field: "some"})
        assert caught.value.code == "invalid"


@TABLE.row("process.user", "uid, gid and additionalGids are those of the process")
async def _(boxes):
    user = {"uid": 1000, "gid": 1001, "additionalGids": [5, 6]}
    result = await boxes.sh("id -u; id -g; id -G", process={"user": user})
    assert result.out.split() == ["1000", "1001", "1001", "5", "6"]


@TABLE.row("process.user.umask", "is set")
async def _(boxes):
    assert (await boxes.sh("umask", process={"user": {"uid": 0, "gid": 0, "umask": 0o027}})).out == "0027\n"


# Names and annotations


@TABLE.row("hostname and domainname", "are what processes inside see")
async def _(boxes):
    result = await boxes.sh("hostname; cat /proc/sys/kernel/domainname", hostname="inside", domainname="example.test")
    assert result.out.split() == ["inside", "example.test"]
    assert os.uname().nodename != "inside"


TABLE.refuses("annotations", "must be a key-value map", "annotations", ["x"], "annotations")
TABLE.refuses("annotations", "keys must not be empty", "annotations", {"": "x"}, "annotations")
TABLE.refuses("annotations", "values are strings", "annotations", {"x": 1}, "annotations")


@TABLE.row("annotations", "unknown ones are no error, nor is an empty map")
async def _(boxes):
    assert (await boxes.sh("true", annotations={"org.example.key": "v"})).code == 0
    assert (await boxes.sh("true", annotations={})).code == 0


@TABLE.row("process", "standard streams that are pipes can be opened again by the process's user")
async def _(boxes):
    result = await boxes.sh("echo words >/dev/stdout", process={"user": {"uid": 1000, "gid": 1000}})
    assert result.out == "words\n"
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


test_rows, test_refusals = TABLE.tests()
