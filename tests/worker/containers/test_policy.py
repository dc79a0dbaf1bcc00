"""What an administrator takes away: each option refuses its fields with 403 and words that name both; the default nothing."""

from __future__ import annotations

from typing import Any

import pytest

from cli.process import _POLICY
from covey.errors import Forbidden, InvalidArgument
from worker.containers import host_config, mount_specs
from worker.containers.policy import OPTIONS, Policy, asked

ASKED: list[tuple[str, dict[str, Any], str]] = [
    ("privileged", {"Privileged": True}, "HostConfig.Privileged"),
    *(
        ("host-namespaces", {field: "host"}, f"HostConfig.{field} host")
        for field in ("PidMode", "IpcMode", "UTSMode", "CgroupnsMode", "NetworkMode", "UsernsMode")
    ),
    ("devices", {"Devices": [{"PathOnHost": "/dev/kmsg"}]}, "HostConfig.Devices"),
    ("devices", {"DeviceCgroupRules": ["c 1:11 r"]}, "HostConfig.DeviceCgroupRules"),
    ("capabilities", {"CapAdd": ["NET_RAW", "sys_admin"]}, "HostConfig.CapAdd sys_admin"),
    ("capabilities", {"CapAdd": ["ALL"]}, "HostConfig.CapAdd ALL"),
    ("unconfined", {"SecurityOpt": ["seccomp=unconfined"]}, "HostConfig.SecurityOpt seccomp=unconfined"),
    ("unconfined", {"SecurityOpt": ["seccomp:unconfined"]}, "HostConfig.SecurityOpt seccomp=unconfined"),
    ("unconfined", {"SecurityOpt": ['seccomp={"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}']}, "a profile of its own"),
    ("unconfined", {"SecurityOpt": ["apparmor=unconfined"]}, "HostConfig.SecurityOpt apparmor"),
    ("unconfined", {"SecurityOpt": ["label=disable"]}, "HostConfig.SecurityOpt label"),
    ("unconfined", {"SecurityOpt": ["systempaths=unconfined"]}, "HostConfig.SecurityOpt systempaths"),
    ("unconfined", {"MaskedPaths": []}, "HostConfig.MaskedPaths"),
    ("unconfined", {"ReadonlyPaths": ["/proc/bus"]}, "HostConfig.ReadonlyPaths"),
    ("binds", {"Binds": ["/etc:/host:ro"]}, "the mount of /etc"),
    ("binds", {"Mounts": [{"Type": "bind", "Source": "/", "Target": "/host"}]}, "the mount of /"),
    (
        "binds",
        {
            "Mounts": [
                {
                    "Type": "volume",
                    "Source": "data",
                    "Target": "/host",
                    "VolumeOptions": {"DriverConfig": {"Options": {"type": "none", "o": "bind", "device": "/"}}},
                }
            ]
        },
        "DriverConfig.Options",
    ),
]


def checked(policy: Policy, given: dict[str, Any]) -> None:
    settings = host_config.completed(given, 2)
    policy.check(settings, mount_specs.requested({}, settings, {}))


@pytest.mark.parametrize(("option", "given", "words"), ASKED)
def test_an_option_refuses_its_fields_and_only_these(option: str, given: dict[str, Any], words: str):
    with pytest.raises(Forbidden) as caught:
        checked(Policy((option,)), given)
    assert caught.value.status == 403
    assert words in caught.value.message
    assert f"--no-{option}" in caught.value.message
    checked(Policy(tuple(other for other in OPTIONS if other != option)), given)
    checked(Policy(), given)


def test_what_a_plain_container_asks_for_is_refused_by_nothing():
    plain = {
        "Binds": ["data:/data"],
        "Mounts": [{"Type": "volume", "Source": "xyz", "Target": "/x"}, {"Type": "tmpfs", "Target": "/t"}],
        "CapAdd": ["NET_RAW"],
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", "seccomp=builtin"],
        "PidMode": "container:abc",
        "NetworkMode": "bridge",
    }
    checked(Policy(OPTIONS), plain)
    checked(Policy(OPTIONS), {})


def test_a_tasks_own_secrets_are_no_bind_of_its_users():
    mounts = mount_specs.requested({}, {"Binds": ["/run/covey/tasks/t1/s:/run/secrets/s:ro"]}, {})
    assert asked(mounts, "t1", "/run/covey/tasks") == []
    assert asked(mounts, "", "/run/covey/tasks") == mounts
    outside = mount_specs.requested({}, {"Binds": ["/run/covey/tasks/../x:/x"]}, {})
    assert asked(outside, "t1", "/run/covey/tasks") == outside


def test_execs_and_volumes():
    Policy().check_exec({"Privileged": True})
    Policy().check_volume({"device": "/"})
    Policy(OPTIONS).check_exec({"Privileged": False})
    Policy(OPTIONS).check_volume({})
    with pytest.raises(Forbidden, match="--no-privileged"):
        Policy(("privileged",)).check_exec({"Privileged": True})
    with pytest.raises(Forbidden, match="--no-binds"):
        Policy(("binds",)).check_volume({"device": "/", "o": "bind"})


def test_the_commands_flags_are_the_policys_options():
    assert [flag.names.removeprefix("--no-") for flag in _POLICY] == list(OPTIONS)
    with pytest.raises(InvalidArgument, match="--no-such"):
        Policy(("such",))
