"""config-linux.md, what holds a container: cgroups, sysctls, propagation, masks, personality, memory policy."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.spec.table import KINDS, Table, own_root, spaces
from worker.runtime.cgroups import Cgroup, read
from worker.runtime.errors import RuntimeFault
from worker.runtime.labels import present

TABLE = Table("config-linux.md bounds")
DENY_ALL = {"allow": False, "access": "rwm"}


# Control groups


@TABLE.row("Control groups", "a group that is unfit, as one with others in it, is an error")
async def _(boxes):
    first = await boxes.start(["sleep", "60"])
    with pytest.raises(RuntimeFault, match="holds 1 processes"):
        await boxes.make(["true"], linux={"cgroupsPath": first.cgroup.path})


@TABLE.row("cgroupsPath", "an absolute path is below the cgroup mount, and is made")
async def _(boxes):
    path = f"{boxes.parent}/absolute/deep"
    box = await boxes.start(["sleep", "60"], linux={"cgroupsPath": path})
    assert all(place.endswith(path) and os.path.isdir(place) for place in box.cgroup.directories())
    assert box.init_pid in box.cgroup.pids()
    await box.shim.kill(9)
    await box.exit()
    await box.shim.delete()
    assert Cgroup(f"{boxes.parent}/absolute").remove()


@TABLE.row("cgroupsPath", "a relative path is below /covey, the same place for the same value")
async def _(boxes):
    name = f"test-{os.getpid()}-relative"
    box = await boxes.start(["sleep", "60"], linux={"cgroupsPath": name})
    assert box.init_pid in Cgroup(f"/covey/{name}").pids()


@TABLE.row("cgroupsPath", "an absent one is the container's id below /covey")
async def _(boxes):
    shim, directory, _ = await boxes.shim()
    config = boxes.bundle(["sleep", "60"], directory.name)
    del config["linux"]["cgroupsPath"]
    (directory / "config.json").write_text(json.dumps(config))
    pid, _ = await shim.create(directory)
    assert pid in Cgroup(f"/covey/{directory.name}").pids()


TABLE.refuses("cgroupsPath", "must not lead out of the hierarchy", "linux.cgroupsPath", "../x", "linux.cgroupsPath")
TABLE.refuses("cgroupsPath", "systemd's form is invalid here", "linux.cgroupsPath", "a.slice:b:c", "linux.cgroupsPath")

FULL = {"allow": True, "type": "c", "major": 1, "minor": 7, "access": "rwm"}


@TABLE.row("resources.devices", "entries hold in the listed order")
async def _(boxes):
    script = "for d in full zero; do head -c1 /dev/$d >/dev/null && echo $d; done 2>/dev/null"
    denied = {"allow": False, "type": "c", "major": 1, "minor": 7, "access": "r"}
    for rules, wanted in (([DENY_ALL, denied], "zero"), ([DENY_ALL, denied, FULL], "full zero"), ([DENY_ALL], "full zero")):
        result = await boxes.sh(script, linux={"resources": {"devices": rules}})
        assert " ".join(result.out.split()) == wanted, rules


@TABLE.row("resources.devices", "unset type and numbers mean all")
async def _(boxes):
    if Cgroup(boxes.parent).version != 1:
        pytest.skip("names a file of cgroup v1")
    rules = [DENY_ALL, {"allow": True, "major": 10, "access": "r"}, {"allow": True, "type": "b", "access": "m"}]
    box = await boxes.start(["sleep", "60"], linux={"resources": {"devices": rules}})
    lines = read(f"{box.cgroup.directory('devices')}/devices.list").splitlines()
    assert {"b 10:* r", "c 10:* r", "b *:* m"} <= set(lines)
    assert "a *:* rwm" not in lines


V1: list[tuple[str, dict[str, Any], str, str, str]] = [
    ("memory.limit", {"memory": {"limit": 1 << 26}}, "memory", "memory.limit_in_bytes", str(1 << 26)),
    ("memory.reservation", {"memory": {"reservation": 1 << 25}}, "memory", "memory.soft_limit_in_bytes", str(1 << 25)),
    ("memory.swap", {"memory": {"limit": 1 << 26, "swap": 1 << 27}}, "memory", "memory.memsw.limit_in_bytes", str(1 << 27)),
    ("memory.limit -1 is unlimited", {"memory": {"limit": -1}}, "memory", "memory.limit_in_bytes", "9223372036854771712"),
    ("memory.swappiness", {"memory": {"swappiness": 0}}, "memory", "memory.swappiness", "0"),
    ("memory.disableOOMKiller", {"memory": {"disableOOMKiller": True}}, "memory", "memory.oom_control", "oom_kill_disable 1"),
    ("cpu.shares", {"cpu": {"shares": 77}}, "cpu", "cpu.shares", "77"),
    ("cpu.period", {"cpu": {"period": 20000}}, "cpu", "cpu.cfs_period_us", "20000"),
    ("cpu.quota", {"cpu": {"quota": 30000}}, "cpu", "cpu.cfs_quota_us", "30000"),
    ("cpu.burst", {"cpu": {"quota": 30000, "burst": 10000}}, "cpu", "cpu.cfs_burst_us", "10000"),
    ("cpu.idle", {"cpu": {"idle": 1}}, "cpu", "cpu.idle", "1"),
    ("cpu.cpus", {"cpu": {"cpus": "0"}}, "cpuset", "cpuset.cpus", "0"),
    ("cpu.mems", {"cpu": {"mems": "0"}}, "cpuset", "cpuset.mems", "0"),
    ("pids.limit", {"pids": {"limit": 9}}, "pids", "pids.max", "9"),
    ("blockIO.weight", {"blockIO": {"weight": 300}}, "blkio", "blkio.bfq.weight", "300"),
]  # fmt: skip
for name, resources, controller, file, wanted in V1:

    @TABLE.row("resources", f"{name} is set (cgroup v1)")
    async def _(boxes, resources=resources, controller=controller, file=file, wanted=wanted):
        if Cgroup(boxes.parent).version != 1:
            pytest.skip("names files of cgroup v1")
        box = await boxes.make(["true"], linux={"resources": {"devices": [DENY_ALL], **resources}})
        assert read(f"{box.cgroup.directory(controller)}/{file}").strip().startswith(wanted)


for key, file in (("throttleReadBpsDevice", "read_bps"), ("throttleWriteBpsDevice", "write_bps"),
                  ("throttleReadIOPSDevice", "read_iops"), ("throttleWriteIOPSDevice", "write_iops")):  # fmt: skip

    @TABLE.row("resources", f"blockIO.{key} is set for its device (cgroup v1)")
    async def _(boxes, key=key, file=file):
        if Cgroup(boxes.parent).version != 1:
            pytest.skip("names files of cgroup v1")
        disks = sorted(Path("/sys/block").iterdir()) if Path("/sys/block").exists() else []
        if not disks:
            pytest.skip("no block device to limit")
        major, minor = (disks[-1] / "dev").read_text().strip().split(":")
        entry = {"major": int(major), "minor": int(minor), "rate": 4096}
        box = await boxes.make(["true"], linux={"resources": {"blockIO": {key: [entry]}}})
        found = read(f"{box.cgroup.directory('blkio')}/blkio.throttle.{file}_device").split()
        assert found == [f"{major}:{minor}", "4096"]


@TABLE.row("resources.memory", "kernel and kernelTCP, given up by the kernel, are passed over")
async def _(boxes):
    assert (await boxes.sh("true", linux={"resources": {"memory": {"kernel": 1 << 20, "kernelTCP": 1 << 20}}})).code == 0


for name, resources in {
    "hugepageLimits": {"hugepageLimits": [{"pageSize": "2MB", "limit": 1 << 21}]},
    "network.classID": {"network": {"classID": 5}},
    "network.priorities": {"network": {"priorities": [{"name": "lo", "priority": 5}]}},
    "rdma": {"rdma": {"mlx5_1": {"hcaHandles": 3}}},
    "unified": {"unified": {"memory.high": "1000000"}},
    "cpu.cpus": {"cpu": {"cpus": "1000"}},
}.items():

    @TABLE.row("resources", f"{name} that cannot apply is an error naming it")
    async def _(boxes, name=name, resources=resources):
        group = Cgroup(boxes.parent)
        controller = {"hugepageLimits": "hugetlb", "rdma": "rdma"}.get(name, "net_cls" if "class" in name else "net_prio")
        if group.version == 2 or (not name.startswith(("unified", "cpu")) and group.directory(controller)):
            pytest.skip(f"this machine has {name}")
        with pytest.raises(RuntimeFault, match=name.replace(".", r"\.")):
            await boxes.make(["true"], linux={"resources": resources})


for key, entry, field in (
    ("blockIO", {"weightDevice": [{"major": 8, "minor": 0}]}, "blockIO.weightDevice"),
    ("rdma", {"mlx5_1": {}}, "rdma.mlx5_1"),
    ("hugepageLimits", [{"pageSize": "2mb", "limit": 1}], "hugepageLimits.pageSize"),
    ("cpu", {"quota": 5, "burst": 6}, "cpu.burst"),
):

    @TABLE.row("resources", f"{field} that the specification forbids is an error")
    async def _(boxes, key=key, entry=entry, field=field):
        with pytest.raises(RuntimeFault, match=field.replace(".", r"\.")):
            await boxes.make(["true"], linux={"resources": {key: entry}})


@TABLE.row("resources", "an error leaves no group behind")
async def _(boxes):
    path = f"{boxes.parent}/failing"
    with pytest.raises(RuntimeFault):
        await boxes.make(["true"], linux={"cgroupsPath": path, "resources": {"cpu": {"cpus": "1000"}}})
    deadline = asyncio.get_running_loop().time() + 5
    while Cgroup(path).exists():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)


# Intel RDT

TABLE.refuses("intelRdt", "cannot be met here, which is an error", "linux.intelRdt", {"closID": "x"}, "linux.intelRdt")


# Sysctl

for key, value in {"net.ipv4.ip_forward": "1", "kernel.shmmax": "65536", "fs.mqueue.msg_max": "33", "kernel.msgmax": "9000",
                   "net/ipv4/conf/lo/rp_filter": "1", "kernel.domainname": "set.by.sysctl"}.items():  # fmt: skip

    @TABLE.row("sysctl", f"{key} is set in the container")
    async def _(boxes, key=key, value=value):
        path = f"/proc/sys/{key if '/' in key else key.replace('.', '/')}"
        assert (await boxes.sh(f"cat {path}", linux={"sysctl": {key: value}})).out.strip() == value
        assert Path(path).read_text().strip() != value or value == "1"


for key in ("kernel.panic", "vm.swappiness", "fs.file-max", "kernel/core_pattern"):
    TABLE.refuses("sysctl", f"{key} of the whole machine is refused", "linux.sysctl", {key: "1"}, f"linux.sysctl.{key}")
TABLE.refuses("sysctl", "values are strings", "linux.sysctl", {"kernel.shmmax": 1}, "linux.sysctl.kernel.shmmax")
TABLE.refuses("sysctl", "needs its namespace", "linux", {"namespaces": [{"type": "mount"}], "sysctl": {"net.x": "1"}},
              "linux.sysctl.net.x")  # fmt: skip


@TABLE.row("sysctl", "is refused in a namespace that is the machine's own, joined by path")
async def _(boxes):
    own = f"/proc/{os.getpid()}/ns/net"
    linux = {**spaces(*[kind for kind in KINDS if kind != "network"], network=own), "sysctl": {"net.ipv4.ip_forward": "1"}}
    with pytest.raises(RuntimeFault, match="machine's own network namespace"):
        await boxes.make(["true"], linux=linux)


# Rootfs propagation, masked and read-only paths

for name, wanted in {"shared": ["shared:"], "slave": [], "private": [], "unbindable": ["unbindable"]}.items():

    @TABLE.row("rootfsPropagation", f"{name} is the root's")
    async def _(boxes, name=name, wanted=wanted):
        result = await boxes.sh("cat /proc/self/mountinfo", linux={"rootfsPropagation": name})
        (line,) = [line for line in result.out.splitlines() if line.split(" ")[4] == "/"]
        fields = [field for field in line.partition(" - ")[0].split(" ")[6:] if not field.startswith("master:")]
        assert len(fields) == len(wanted), line
        assert all(field.startswith(begin) for field, begin in zip(fields, wanted, strict=True))


@TABLE.row("maskedPaths", "cannot be read, files and directories alike")
async def _(boxes):
    root = own_root(boxes)
    (root / "secret").mkdir()
    (root / "secret/file").write_text("words")
    result = await boxes.sh("cat /etc/passwd; ls /secret; touch /secret/x",
                            linux={"maskedPaths": ["/etc/passwd", "/secret", "/none"]}, root={"path": str(root)})  # fmt: skip
    assert result.out == ""
    assert "Read-only file system" in result.err


@TABLE.row("readonlyPaths", "are read-only, with what is mounted below")
async def _(boxes):
    mounts = [{"destination": "/data/below", "type": "tmpfs"}]
    result = await boxes.sh("touch /data/x; touch /data/below/x; ls -d /data", mounts=mounts,
                            linux={"readonlyPaths": ["/data", "/none"]}, root={"path": str(own_root(boxes))})  # fmt: skip
    assert result.err.count("Read-only file system") == 2
    assert result.out == "/data\n"


for key in ("maskedPaths", "readonlyPaths"):
    TABLE.refuses(key, "must be absolute", f"linux.{key}", ["etc"], f"linux.{key}[0]")


@TABLE.row("mountLabel", "cannot be applied without SELinux, which is an error")
async def _(boxes):
    if present("selinux"):
        pytest.skip("this machine runs SELinux")
    with pytest.raises(RuntimeFault, match=r"linux\.mountLabel: this machine runs no SELinux"):
        await boxes.make(["true"], linux={"mountLabel": "system_u:object_r:svirt_sandbox_file_t:s0"})


# Personality, memory policy

for domain, wanted in {"LINUX32": "00000008", "LINUX": "00000000"}.items():

    @TABLE.row("personality", f"{domain} is the execution domain")
    async def _(boxes, domain=domain, wanted=wanted):
        may = {mode: ["CAP_SYS_PTRACE"] for mode in ("bounding", "permitted", "effective")}
        changes = {"linux": {"personality": {"domain": domain}}, "process": {"capabilities": may}}
        result = await boxes.sh("cat /proc/self/personality", **changes)
        assert result.out.strip() == wanted


TABLE.refuses("personality.domain", "is LINUX or LINUX32", "linux.personality", {"domain": "BSD"}, "linux.personality.domain")
TABLE.refuses("personality.flags", "no flag value is supported", "linux.personality",
              {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}, "linux.personality.flags")  # fmt: skip


@TABLE.row("memoryPolicy", "is the process's")
async def _(boxes):
    result = await boxes.sh("head -1 /proc/self/numa_maps", linux={"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}})
    assert result.out.split()[1] == "bind:0", result


TABLE.refuses("memoryPolicy.mode", "is one of the listed", "linux.memoryPolicy", {"mode": "MPOL_X"}, "linux.memoryPolicy.mode")
TABLE.refuses("memoryPolicy.nodes", "is a list of numbers", "linux.memoryPolicy", {"mode": "MPOL_BIND", "nodes": "a"},
              "linux.memoryPolicy.nodes")  # fmt: skip


test_rows, test_refusals = TABLE.tests()
