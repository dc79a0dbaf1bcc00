"""A launch plan is data: which steps, in which order."""

from __future__ import annotations

import copy
import json

import pytest

from worker.kernel import mounts, syscalls
from worker.runtime import birth
from worker.runtime.capabilities import NAMES
from worker.runtime.errors import SpecFault
from worker.runtime.launch import Host, plan_container, plan_exec

ALL = (1 << len(NAMES)) - 1
ENTRANCES = ["/sys/fs/cgroup/pids/covey/x/tasks"]
HOST = Host(ALL, [("pids", "/sys/fs/cgroup/pids/covey/x", ())], ENTRANCES)
CONFIG = {
    "ociVersion": "1.0.2",
    "root": {"path": "/r", "readonly": True},
    "hostname": "box",
    "process": {
        "args": ["sh"],
        "cwd": "/w",
        "env": ["A=b"],
        "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
        "capabilities": {"bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"], "effective": ["CAP_CHOWN", "CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
        "oomScoreAdj": 3,
    },
    "mounts": [
        {"destination": "/proc", "type": "proc"},
        {"destination": "/data", "type": "bind", "source": "/s", "options": ["rbind", "ro", "rslave"]},
        {"destination": "/t", "type": "tmpfs", "options": ["nosuid", "size=1m", "mode=700"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]},
    ],
    "linux": {
        "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
        "cgroupsPath": "/covey/x",
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
    },
}


def config(**linux):
    result = copy.deepcopy(CONFIG)
    result["linux"].update(linux)
    return result


def names(steps):
    return [step.name for step in steps]


def find(steps, name):
    return [step.arguments for step in steps if step.name == name]


def test_order_until_the_process_waits():
    order = names(plan_container(CONFIG, HOST).create)
    assert [order.index(name) for name in ("oom_score_adj", "unshare", "private_mounts", "open_root")] == [0, 1, 2, 3]
    rest = ["mount_filesystem", "devices", "links", "make_directory", "sysctl", "readonly_path", "mask_paths"]
    rest += ["join_cgroup", "pivot", "readonly_root"]
    positions = [order.index(name) for name in rest]
    assert positions == sorted(positions)
    assert order[-1] == "readonly_root"


def test_mounts_keep_the_bundles_order_and_are_told_apart():
    steps = [step for step in plan_container(CONFIG, HOST).create if step.name.startswith("mount_")]
    assert [(step.name, step.arguments["destination"]) for step in steps] == [
        ("mount_filesystem", "/proc"),
        ("mount_bind", "/data"),
        ("mount_filesystem", "/t"),
        ("mount_cgroup", "/sys/fs/cgroup"),
    ]
    bind = steps[1].arguments
    assert (bind["source"], bind["recursive"]) == ("/s", True)
    assert bind["attributes"] == (syscalls.MOUNT_ATTR_RDONLY, 0)
    assert bind["propagation"] == [mounts.PROPAGATION["rslave"]]
    tmpfs = steps[2].arguments
    assert tmpfs["options"] == ["size=1m", "mode=700"]
    assert tmpfs["attributes"] == (syscalls.MOUNT_ATTR_NOSUID, 0)
    assert steps[3].arguments["directories"] == HOST.cgroup_mounts


def test_later_options_win_and_recursive_ones_are_apart():
    mount = {"destination": "/x", "type": "bind", "source": "/s", "options": ["ro", "rw", "rnoexec"]}
    step = find(plan_container({**config(), "mounts": [mount]}, HOST).create, "mount_bind")[0]
    assert step["attributes"] == (0, syscalls.MOUNT_ATTR_RDONLY)
    assert step["recursive_attributes"] == (syscalls.MOUNT_ATTR_NOEXEC, 0)
    assert step["recursive"] is False


def test_an_option_a_bind_cannot_have():
    mount = {"destination": "/x", "type": "bind", "source": "/s", "options": ["bind", "size=1m"]}
    with pytest.raises(SpecFault, match=r"mounts\[0\]\.options: size=1m"):
        plan_container({**config(), "mounts": [mount]}, HOST)


def test_namespaces_new_and_joined():
    spaces = [{"type": "mount"}, {"type": "network", "path": "/n"}, {"type": "pid", "path": "/p"}]
    plan = plan_container(config(namespaces=spaces), HOST)
    born = birth.of_container(config(namespaces=spaces))
    assert born.clone_flags == 0
    assert born.joins == [("pid", "/p")]
    assert find(plan.create, "join_namespace") == [{"kind": "network", "path": "/n"}]
    assert find(plan.create, "unshare") == [{"flags": syscalls.CLONE_NEWNS}]
    assert find(plan.create, "join_cgroup") == [{"namespace": False, "entrances": ENTRANCES}]
    whole = plan_container(CONFIG, HOST)
    assert birth.of_container(CONFIG).clone_flags == syscalls.CLONE_NEWPID
    assert find(whole.create, "join_cgroup") == [{"namespace": True, "entrances": ENTRANCES}]


def test_user_namespace_maps():
    mapping = [{"containerID": 0, "hostID": 1000, "size": 10}]
    spaces = [{"type": "mount"}, {"type": "user"}]
    mapped = config(namespaces=spaces, uidMappings=mapping, gidMappings=mapping)
    plan = plan_container(mapped, HOST)
    born = birth.of_container(mapped)
    assert born.clone_flags == syscalls.CLONE_NEWUSER
    assert born.id_maps == {"uid": "0 1000 10\n", "gid": "0 1000 10\n"}
    assert born.stdio_owner == 1005
    assert birth.Birth.from_json(json.loads(json.dumps(born.to_json()))).to_json() == born.to_json()
    assert all(step["bind"] for step in find(plan.create, "devices"))
    with pytest.raises(SpecFault, match="uidMappings"):
        birth.of_container(config(namespaces=spaces))


def test_a_user_namespace_by_path_is_gone_through_and_the_others_are_joined_before_it():
    spaces = [{"type": "mount"}, {"type": "user", "path": "/u"}, {"type": "network", "path": "/n"}, {"type": "pid"}]
    born = birth.of_container(config(namespaces=spaces))
    assert (born.user_namespace, born.joins, born.id_maps) == ("/u", [("network", "/n")], None)
    assert born.clone_flags == syscalls.CLONE_NEWPID
    assert born.placed_by_parent
    assert birth.Birth.from_json(json.loads(json.dumps(born.to_json()))).to_json() == born.to_json()
    plan = plan_container(config(namespaces=spaces), HOST)
    assert find(plan.create, "become_mapped_root") == [{"wait": False}]
    assert find(plan.create, "join_namespace") == []


def test_a_mount_namespace_by_path_is_joined_last_and_left_as_it_is():
    spaces = [{"type": "mount", "path": "/m"}, {"type": "cgroup", "path": "/c"}, {"type": "uts"}]
    plan = plan_container(config(namespaces=spaces), HOST)
    assert [step["kind"] for step in find(plan.create, "join_namespace")] == ["cgroup", "mount"]
    assert find(plan.create, "private_mounts") == []
    assert find(plan.create, "join_cgroup") == [{"namespace": False, "entrances": ENTRANCES}]


def test_a_time_namespace_comes_with_its_offsets():
    spaces = [{"type": "mount"}, {"type": "time"}]
    offsets = {"monotonic": {"secs": 5}, "boottime": {"secs": -1, "nanosecs": 7}}
    plan = plan_container(config(namespaces=spaces, timeOffsets=offsets), HOST)
    assert find(plan.create, "time_namespace") == [{"offsets": [("monotonic", 5, 0), ("boottime", -1, 7)]}]


def test_hooks_come_between_the_mounts_and_the_pivot():
    hook = {"path": "/bin/true"}
    plan = plan_container({**config(), "hooks": {"createRuntime": [hook], "startContainer": [hook]}}, HOST)
    order = names(plan.create)
    assert order.index("mask_paths") < order.index("hooks_of_create") < order.index("pivot")
    assert names(plan.start)[-2:] == ["hooks_of_start", "execve"]
    assert "hooks_of_create" not in names(plan_container(CONFIG, HOST).create)
    only_later = plan_container({**config(), "hooks": {"poststart": [hook], "poststop": [hook]}}, HOST)
    assert "hooks_of_create" not in names(only_later.create)


def test_what_the_parent_has_to_read_the_bundle_for():
    hook = {"path": "/bin/true"}
    mapped = {"destination": "/x", "type": "bind", "source": "/s", "options": ["idmap"]}
    notified = {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/l"}}
    assert not birth.of_container(CONFIG).outside
    assert birth.of_container({**config(), "hooks": {"poststop": [hook]}}).outside
    assert birth.of_container({**config(), "mounts": [mapped]}).outside
    assert birth.of_container(config(**notified)).outside


def test_credentials():
    start = plan_container(CONFIG, HOST).start
    assert find(start, "identity") == [{"uid": 5, "gid": 6, "groups": [7], "umask": 0o022}]
    assert find(start, "capabilities") == [{"effective": 1, "permitted": 1, "inheritable": 0, "ambient": 0}]
    order = names(start)
    positions = [order.index(name) for name in ("rlimit", "find_program", "bounding", "identity", "capabilities")]
    assert positions == sorted(positions)
    assert order[-1] == "execve"


def test_capabilities_the_machine_lacks_are_not_asked_for():
    start = plan_container(CONFIG, Host(0, [], [])).start
    assert find(start, "bounding") == [{"keep": 0}]


def test_seccomp_comes_last_when_no_new_privileges_allows_it():
    changed = {**config(), "covey": {"seccomp": {"instructions": b"x" * 8, "flags": ()}}}
    order = names(plan_container(changed, HOST).start)
    assert order.index("seccomp") < order.index("identity"), "without no_new_privs the filter needs CAP_SYS_ADMIN"
    changed["process"]["noNewPrivileges"] = True
    order = names(plan_container(changed, HOST).start)
    assert order[-3:] == ["no_new_privileges", "seccomp", "execve"]


@pytest.mark.parametrize(
    ("name", "flags"), [("", "rslave"), ("shared", "rshared"), ("private", "rprivate"), ("unbindable", "rprivate")]
)
def test_propagation_while_mounting(name, flags):
    plan = plan_container(config(rootfsPropagation=name), HOST)
    assert find(plan.create, "private_mounts") == [{"propagation": mounts.PROPAGATION[flags]}]
    assert ("private_parent" in names(plan.create)) == (name == "shared")
    assert ("root_propagation" in names(plan.create)) == bool(name)


def test_unknown_propagation():
    with pytest.raises(SpecFault, match="rootfsPropagation"):
        plan_container(config(rootfsPropagation="loud"), HOST)


def test_capabilities_that_cannot_be_given_are_warned_of():
    changed = config()
    changed["process"]["capabilities"] = {"bounding": ["CAP_FLY", "CAP_CHOWN"], "ambient": ["CAP_KILL"]}
    unknown, lacking = plan_container(changed, Host(1, [], ENTRANCES)).warnings
    assert "CAP_FLY" in unknown
    assert "CAP_KILL" in lacking
    assert "CAP_CHOWN" not in unknown + lacking
    assert plan_container(CONFIG, HOST).warnings == []


def test_console_only_with_a_terminal():
    changed = config()
    changed["process"].update(terminal=True, consoleSize={"height": 2, "width": 3})
    plan = plan_container(changed, HOST)
    assert birth.of_container(changed).terminal
    assert find(plan.create, "console") == [{"size": {"height": 2, "width": 3}, "bind": True, "uid": 5}]
    assert find(plan_container(CONFIG, HOST).create, "console") == []


def test_a_devices_own_numbers_replace_the_defaults():
    device = {"path": "/dev/null", "type": "c", "major": 9, "minor": 9, "fileMode": 0o600}
    (step,) = find(plan_container(config(devices=[device]), HOST).create, "devices")
    assert [node for node in step["nodes"] if node[0] == "/dev/null"] == [("/dev/null", "c", 9, 9, 0o600, 0, 0)]


def test_exec_enters_what_the_container_has():
    plan = plan_exec(CONFIG, {"args": ["id"], "cwd": "/"}, HOST)
    wanted = (
        syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWCGROUP
    )
    assert names(plan.create) == ["oom_score_adj", "join_cgroup", "enter"]
    assert find(plan.create, "join_cgroup") == [{"namespace": False, "entrances": ENTRANCES}]
    assert find(plan.create, "enter") == [{"flags": wanted, "user": False}]


def test_plans_of_equal_configs_are_equal():
    first, second = plan_container(CONFIG, HOST), plan_container(copy.deepcopy(CONFIG), HOST)
    assert (first.create, first.start) == (second.create, second.start)
