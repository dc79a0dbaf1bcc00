"""Limits become the right files in the right order."""

from __future__ import annotations

import signal
import subprocess

import pytest

from worker.runtime import cgroups, limits
from worker.runtime.errors import SpecFault


def files(resources, version, current=(None, None), devices=True):
    return [(w.file, w.value) for w in limits.writes(resources, version, current, devices=devices)]


def test_v1():
    resources = {
        "cpu": {"shares": 512, "quota": 5, "period": 10, "cpus": "0-1", "mems": "0"},
        "memory": {"limit": 100, "swap": 200, "reservation": 50, "swappiness": 0},
        "pids": {"limit": 7},
    }
    assert files(resources, 1) == [
        ("cpu.shares", "512"),
        ("cpu.cfs_period_us", "10"),
        ("cpu.cfs_quota_us", "5"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("memory.limit_in_bytes", "100"),
        ("memory.memsw.limit_in_bytes", "200"),
        ("memory.soft_limit_in_bytes", "50"),
        ("memory.swappiness", "0"),
        ("pids.max", "7"),
    ]


def test_v2():
    resources = {
        "cpu": {"shares": 1024, "quota": 5},
        "memory": {"limit": 100, "swap": 150, "reservation": 50},
        "pids": {"limit": -1},
        "unified": {"memory.high": "90"},
    }
    assert files(resources, 2) == [
        ("cpu.weight", "39"),
        ("cpu.max", "5 100000"),
        ("memory.swap.max", "50"),
        ("memory.max", "100"),
        ("memory.low", "50"),
        ("pids.max", "max"),
        ("memory.high", "90"),
    ]


@pytest.mark.parametrize(("shares", "weight"), [(2, "1"), (262144, "10000"), (1, "1")])
def test_weights_meet_at_both_ends(shares, weight):
    assert files({"cpu": {"shares": shares}}, 2) == [("cpu.weight", weight)]


def test_memory_grows_with_the_sum_first_and_shrinks_with_it_last():
    memory = {"memory": {"limit": 50, "swap": 50}}
    assert [name for name, _ in files(memory, 1, (10, 10))] == ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]
    assert [name for name, _ in files(memory, 1, (99, 99))] == ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    unlimited = {"memory": {"limit": -1, "swap": -1}}
    assert [name for name, _ in files(unlimited, 1, (9, 9))] == ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]


@pytest.mark.parametrize("version", [1, 2])
def test_swap_below_memory(version):
    with pytest.raises(SpecFault, match="below"):
        limits.writes({"memory": {"limit": 100, "swap": 50}}, version)


def test_device_rules_keep_their_order_and_default_devices_follow_a_denial():
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rw"},
        {"allow": False, "type": "b", "major": 8, "access": "w"},
    ]
    wanted = files({"devices": rules}, 1)
    assert wanted[0] == ("devices.deny", "a")
    assert ("devices.allow", "c 1:3 rwm") in wanted[1:-2]
    assert wanted[-2:] == [("devices.allow", "c 10:200 rw"), ("devices.deny", "b 8:* w")]
    assert files({"devices": rules}, 1, devices=False) == []


V1 = """\
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
99 31 0:29 / /other/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
"""
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def test_hierarchies_of_v1():
    found = cgroups.hierarchies(V1.splitlines())
    assert [(h.mount, h.controllers, h.version) for h in found] == [
        ("/sys/fs/cgroup/cpu,cpuacct", ("cpu", "cpuacct"), 1),
        ("/sys/fs/cgroup/memory", ("memory",), 1),
    ]
    group = cgroups.Cgroup("/covey/x", found)
    assert group.directory("cpuacct") == "/sys/fs/cgroup/cpu,cpuacct/covey/x"
    assert group.directory("pids") is None
    assert group.mounts()[0] == ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/covey/x", ("cpu", "cpuacct"))


def test_hierarchies_of_v2():
    group = cgroups.Cgroup("covey/x/", cgroups.hierarchies(V2.splitlines()))
    assert (group.version, group.path) == (2, "/covey/x")
    assert group.directory("memory") == "/sys/fs/cgroup/covey/x"
    assert group.mounts() == [("", "/sys/fs/cgroup/covey/x", ())]


def test_no_hierarchy_at_all():
    from worker.runtime.errors import RuntimeFault

    with pytest.raises(RuntimeFault, match="no cgroup hierarchy"):
        cgroups.Cgroup("/covey/x", [])


def test_v2_files_as_the_kernel_has_them(tmp_path):
    """The calls on a directory that has the files of a v2 group."""
    group = cgroups.Cgroup("/g", [cgroups.Hierarchy(str(tmp_path), (), 2)])
    directory = tmp_path / "g"
    directory.mkdir()
    (directory / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n")
    (directory / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    (directory / "cpu.stat").write_text("usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 4\n")
    (directory / "memory.current").write_text("123\n")
    (directory / "memory.max").write_text("max\n")
    (directory / "io.stat").write_text("8:0 rbytes=10 wbytes=20 rios=1 wios=2\n")
    (directory / "pids.current").write_text("2\n")
    assert group.oom_kills() == 1
    assert group.is_frozen()
    stats = group.stats()
    assert (stats["cpu"]["total_ns"], stats["cpu"]["throttled_periods"]) == (5000, 4)
    assert (stats["memory"]["usage"], stats["memory"]["limit"], stats["memory"]["failures"]) == (123, None, 3)
    assert [(e["op"], e["bytes"], e["operations"]) for e in stats["blkio"]] == [("read", 10, 1), ("write", 20, 2)]


def test_v2_kill_is_the_kernels_own_where_it_has_one(tmp_path):
    group = cgroups.Cgroup("/g", [cgroups.Hierarchy(str(tmp_path), (), 2)])
    directory = tmp_path / "g"
    directory.mkdir()
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        (directory / "cgroup.procs").write_text(f"{sleeper.pid}\n")
        (directory / "cgroup.kill").write_text("")
        assert group.kill() == 1
        assert (directory / "cgroup.kill").read_text() == "1"
        assert sleeper.poll() is None
        (directory / "cgroup.kill").unlink()
        assert group.kill() == 1
        assert sleeper.wait(10) == -signal.SIGKILL
    finally:
        sleeper.kill()
        sleeper.wait()


def test_entrances_of_each_version():
    v1 = cgroups.Cgroup("/g", [cgroups.Hierarchy("/c/pids", ("pids",), 1), cgroups.Hierarchy("/c/memory", ("memory",), 1)])
    assert v1.entrances() == ["/c/pids/g/tasks", "/c/memory/g/tasks"]
    assert cgroups.Cgroup("/g", [cgroups.Hierarchy("/c", (), 2)]).entrances() == ["/c/g/cgroup.procs"]


def test_v1_of_everything_else():
    resources = {
        "cpu": {"quota": 9, "burst": 5, "idle": 1, "realtimePeriod": 7, "realtimeRuntime": 6},
        "memory": {"kernel": 5, "kernelTCP": 6, "disableOOMKiller": True},
        "blockIO": {
            "weight": 100,
            "leafWeight": 7,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 300, "leafWeight": 9}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 3}],
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
        "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 500}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10}, "rxe3": {"hcaObjects": 0}},
    }
    assert files(resources, 1) == [
        ("cpu.cfs_quota_us", "9"),
        ("cpu.cfs_burst_us", "5"),
        ("cpu.rt_period_us", "7"),
        ("cpu.rt_runtime_us", "6"),
        ("cpu.idle", "1"),
        ("memory.oom_control", "1"),
        ("blkio.bfq.weight", "100"),
        ("blkio.leaf_weight", "7"),
        ("blkio.bfq.weight_device", "8:0 300"),
        ("blkio.leaf_weight_device", "8:0 9"),
        ("blkio.throttle.read_bps_device", "8:0 600"),
        ("blkio.throttle.write_iops_device", "8:16 3"),
        ("hugetlb.2MB.limit_in_bytes", "4"),
        ("hugetlb.2MB.rsvd.limit_in_bytes", "4"),
        ("net_cls.classid", "1048577"),
        ("net_prio.ifpriomap", "eth0 500"),
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10"),
        ("rdma.max", "rxe3 hca_object=0"),
    ]
    optional = {w.file for w in limits.writes(resources, 1) if w.optional}
    assert optional == {
        "blkio.bfq.weight",
        "blkio.leaf_weight",
        "blkio.bfq.weight_device",
        "blkio.leaf_weight_device",
        "hugetlb.2MB.rsvd.limit_in_bytes",
    }, "only what the kernel has dropped may be skipped"


def test_v2_of_everything_else():
    resources = {
        "cpu": {"shares": 512, "quota": 9, "period": 20, "burst": 5, "idle": 1},
        "blockIO": {
            "weight": 1000,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
            "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 600}],
        },
        "hugepageLimits": [{"pageSize": "1GB", "limit": 4}],
        "rdma": {"mlx5_1": {"hcaHandles": 3}},
        "unified": {"io.max": "8:0 rbps=1\n8:16 rbps=2"},
    }
    assert files(resources, 2) == [
        ("cpu.max", "9 20"),
        ("cpu.max.burst", "5"),
        ("cpu.idle", "1"),
        ("io.bfq.weight", "1000"),
        ("io.bfq.weight", "8:0 10"),
        ("io.max", "8:0 wbps=600"),
        ("hugetlb.1GB.max", "4"),
        ("hugetlb.1GB.rsvd.max", "4"),
        ("rdma.max", "mlx5_1 hca_handle=3"),
        ("io.max", "8:0 rbps=1"),
        ("io.max", "8:16 rbps=2"),
    ]
    assert [w.instead for w in limits.writes(resources, 2) if w.instead] == [("io.weight", "10000"), ("io.weight", "8:0 1")]


@pytest.mark.parametrize(
    ("resources", "version", "field"),
    [
        ({"unified": {"memory.high": "1"}}, 1, "unified"),
        ({"unified": {"../x": "1"}}, 2, "unified"),
        ({"network": {"classID": 1}}, 2, "network"),
        ({"memory": {"swappiness": 0}}, 2, "memory.swappiness"),
        ({"memory": {"disableOOMKiller": True}}, 2, "memory.disableOOMKiller"),
        ({"cpu": {"realtimeRuntime": 5}}, 2, "cpu.realtimeRuntime"),
        ({"cpu": {"burst": 5, "quota": 4}}, 1, "cpu.burst"),
        ({"blockIO": {"weightDevice": [{"major": 8, "minor": 0}]}}, 1, "blockIO.weightDevice"),
        ({"hugepageLimits": [{"pageSize": "2mb", "limit": 1}]}, 1, "hugepageLimits.pageSize"),
        ({"rdma": {"mlx": {}}}, 2, "rdma.mlx"),
    ],
)
def test_what_cannot_be_is_an_error_of_its_field(resources, version, field):
    with pytest.raises(SpecFault) as caught:
        limits.writes(resources, version)
    assert caught.value.field.startswith(f"linux.resources.{field}")
