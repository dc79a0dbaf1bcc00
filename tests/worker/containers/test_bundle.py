"""The pure path from a ContainerCreate to an OCI config.json: merge, host config, mounts, limits, bundle."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from covey.errors import Internal, InvalidArgument
from worker.containers import bundle, host_config, limits, merge, mount_specs, network_requests, seccomp, surroundings, users
from worker.containers.record import Mount
from worker.runtime import spec

ROOT = users.User(0, 0, (), "/root")


def build(host: dict[str, Any] | None = None, **given: Any) -> dict[str, Any]:
    settings = host_config.completed(host or {}, 2)
    config = given.pop("config", {})
    inputs = bundle.Inputs(
        config=config, host_config=settings, argv=["sh"], rootfs="/r", cgroup="/covey/x", user=given.pop("user", ROOT), **given
    )
    return bundle.build(inputs)


def test_the_default_bundle_is_one_the_runtime_accepts() -> None:
    config = build(hostname="abc", files={"/etc/hosts": "/d/hosts"})
    spec.check(config)
    assert [one["type"] for one in config["linux"]["namespaces"]] == ["mount", "pid", "network", "ipc", "uts", "cgroup"]
    assert [one["destination"] for one in config["mounts"]] == [
        "/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm", "/etc/hosts",
    ]  # fmt: skip
    assert len(config["process"]["capabilities"]["bounding"]) == 14
    assert config["linux"]["resources"]["pids"] == {"limit": 4096}
    assert "/sys/devices/system/cpu/cpu1/thermal_throttle" in config["linux"]["maskedPaths"]
    assert config["process"]["env"] == [f"PATH={bundle.defaults.PATH}", "HOSTNAME=abc", "HOME=/root"]


@pytest.mark.parametrize(
    ("host", "path", "value"),
    [
        ({"Memory": 64 << 20}, "linux.resources.memory", {"limit": 64 << 20, "swap": 128 << 20}),
        ({"NanoCpus": 500_000_000}, "linux.resources.cpu", {"period": 100_000, "quota": 50_000}),
        ({"PidsLimit": -1}, "linux.resources.pids", {"limit": -1}),
        ({"CapDrop": ["ALL"], "CapAdd": ["net_raw"]}, "process.capabilities.bounding", ["CAP_NET_RAW"]),
        ({"Privileged": True}, "linux.maskedPaths", []),
        ({"Privileged": True}, "linux.resources.devices", [{"allow": True, "access": "rwm"}]),
        ({"MaskedPaths": []}, "linux.maskedPaths", []),
        ({"ReadonlyRootfs": True}, "root.readonly", True),
        ({"SecurityOpt": ["no-new-privileges"]}, "process.noNewPrivileges", True),
        ({"OomScoreAdj": 7}, "process.oomScoreAdj", 7),
    ],
)
def test_a_setting_becomes_this_field(host: dict[str, Any], path: str, value: Any) -> None:
    assert functools.reduce(lambda found, key: found[key], path.split("."), build(host)) == value


def test_a_process_that_is_not_root_has_only_its_bounding_set() -> None:
    config = build(user=users.User(1000, 1000, (5,), "/home"))
    assert set(config["process"]["capabilities"]) == {"bounding"}
    assert config["process"]["user"] == {"uid": 1000, "gid": 1000, "additionalGids": [1000, 5]}


def test_joined_namespaces() -> None:
    config = build(joins={"network": "/proc/7/ns/net", "pid": "", "uts": ""}, hostname="h")
    assert [one for one in config["linux"]["namespaces"] if "path" in one] == [{"type": "network", "path": "/proc/7/ns/net"}]
    assert "pid" not in [one["type"] for one in config["linux"]["namespaces"]]
    assert "hostname" not in config
    assert config["linux"]["sysctl"] == {}, "another's network namespace is not configured"


def test_user_mounts_take_the_place_of_default_ones() -> None:
    mounts = [
        Mount(type="bind", source="/s", destination="/dev/shm", read_write=False, propagation="rslave"),
        Mount(type="tmpfs", destination="/t", options=["nosuid", "size=1m"]),
    ]
    config = build(mounts=mounts)
    found = {one["destination"]: one for one in config["mounts"]}
    assert found["/dev/shm"] == {
        "destination": "/dev/shm", "type": "bind", "source": "/s", "options": ["rbind", "ro", "rslave"],
    }  # fmt: skip
    assert found["/t"]["options"] == ["nosuid", "size=1m", "mode=1777", "rw"]
    assert config["linux"]["rootfsPropagation"] == "slave"


def test_rlimits_never_pass_the_daemons_own() -> None:
    wanted = [{"Name": "nofile", "Soft": 100, "Hard": 90000}, {"Name": "core", "Soft": -1, "Hard": -1}]
    assert limits.rlimits(wanted, {"RLIMIT_NOFILE": 20000}) == [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 20000},
        {"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"Memory": 1 << 20}, "Minimum memory limit allowed is 6MB"),
        ({"NanoCpus": 3_000_000_000}, "as there are only 2 CPUs available"),
        ({"RestartPolicy": {"Name": "never"}}, "unknown policy 'never'"),
        ({"AutoRemove": True, "RestartPolicy": {"Name": "always"}}, "can't create 'AutoRemove'"),
        ({"CapAdd": ["NOPE"]}, 'invalid CapAdd: unknown capability: "CAP_NOPE"'),
        ({"LogConfig": {"Type": "syslog"}}, "no log driver named 'syslog'"),
        ({"LogConfig": {"Type": "json-file", "Config": {"max-size": "x"}}}, "error parsing option max-size: invalid size: 'x'"),
        ({"Ulimits": [{"Name": "nofiles"}]}, "invalid ulimit type"),
        ({"PidMode": "nonsense"}, "invalid PID mode"),
        ({"Links": ["a:b"]}, "HostConfig.Links"),
        ({"DeviceCgroupRules": ["x"]}, "invalid device cgroup rule"),
        ({"Runtime": "kata"}, "unknown or invalid runtime name"),
    ],
)
def test_host_config_refusals(host: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        host_config.completed(host, 2)
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("given", "image", "argv"),
    [
        ({}, {"Entrypoint": ["/e"], "Cmd": ["c"]}, ["/e", "c"]),
        ({"Cmd": ["x"]}, {"Entrypoint": ["/e"], "Cmd": ["c"]}, ["/e", "x"]),
        ({"Entrypoint": ["/o"]}, {"Entrypoint": ["/e"], "Cmd": ["c"]}, ["/o"]),
        ({"Entrypoint": [""], "Cmd": ["x"]}, {"Entrypoint": ["/e"]}, ["x"]),
        ({"Entrypoint": "/s", "Cmd": "x"}, {}, ["/s", "x"]),
    ],
)
def test_what_runs(given: dict[str, Any], image: dict[str, Any], argv: list[str]) -> None:
    assert merge.argv(merge.config(given, image)) == argv


def test_merging_environment_and_health() -> None:
    merged = merge.config(
        {"Env": ["A=1"], "Labels": {"x": "mine"}, "Healthcheck": {"Interval": 5}},
        {"Env": ["A=0", "B=2"], "Labels": {"x": "theirs", "y": "z"}, "Healthcheck": {"Test": ["CMD", "t"], "Retries": 4}},
    )
    assert merged["Env"] == ["A=1", "B=2"]
    assert merged["Labels"] == {"x": "mine", "y": "z"}
    check = merged["Healthcheck"]
    assert (check["Test"], check["Interval"], check["Retries"]) == (["CMD", "t"], 5, 4)
    with pytest.raises(InvalidArgument, match="no command specified"):
        merge.argv(merge.config({}, {}))


def test_mounts_of_all_kinds_in_order() -> None:
    found = mount_specs.requested(
        {"Volumes": {"/image": {}, "/data": {}}},
        {"Binds": ["/h:/data/deep:ro,rslave", "named:/data"], "Tmpfs": {"/t": "size=1m"}},
        {},
    )
    assert [(one.type, one.destination, one.read_write) for one in found] == [
        ("volume", "/data", True),
        ("volume", "/image", True),
        ("tmpfs", "/t", True),
        ("bind", "/data/deep", False),
    ]
    assert found[1].anonymous
    assert found[3].propagation == "rslave"


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"Binds": ["/a:b"]}, "mount path must be absolute"),
        ({"Binds": ["/a:/b:nope"]}, "invalid mode: nope"),
        ({"Binds": ["no/slash:/b"]}, "includes invalid characters for a local volume name"),
        ({"Binds": ["/a:/b", "/c:/b"]}, "Duplicate mount point: /b"),
        ({"Mounts": [{"Type": "bind", "Target": "/b"}]}, "field Source must not be empty"),
        ({"Mounts": [{"Type": "tmpfs", "Target": "/b", "Source": "x"}]}, "field Source must not be specified"),
        ({"Mounts": [{"Type": "volume", "Target": "/b", "BindOptions": {"Propagation": "shared"}}]}, "BindOptions"),
        ({"Mounts": [{"Type": "npipe", "Target": "/b"}]}, "mount type unknown"),
    ],
)
def test_mount_refusals(host: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        mount_specs.requested({}, host, {})
    assert words in refused.value.message


PASSWD = "root:x:0:0::/root:/bin/sh\nwww:x:1000:100::/srv:/bin/sh\n"
GROUP = "root:x:0:\nusers:x:100:\nextra:x:7:www,other\n"


@pytest.mark.parametrize(
    ("wanted", "user"),
    [
        ("", users.User(0, 0, (), "/root")),
        ("www", users.User(1000, 100, (7,), "/srv")),
        ("1000", users.User(1000, 100, (7,), "/srv")),
        ("www:extra", users.User(1000, 7, (), "/srv")),
        ("4242", users.User(4242, 0, (), "/")),
        ("4242:99", users.User(4242, 99, (), "/")),
    ],
)
def test_users(wanted: str, user: users.User) -> None:
    assert users.resolve(wanted, PASSWD, GROUP) == user


def test_unknown_users() -> None:
    with pytest.raises(InvalidArgument, match="unable to find user x: no matching entries in passwd file"):
        users.resolve("x", PASSWD, GROUP)
    with pytest.raises(InvalidArgument, match="unable to find group y"):
        users.resolve("www:y", PASSWD, GROUP)
    assert users.resolve("", PASSWD, GROUP, ["extra", "55"]).groups == (7, 55)


def test_ports_and_networks() -> None:
    host = {"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8000-8010"}], "53/udp": None}}
    found = network_requests.port_bindings({}, host, "service")
    assert [(one.container_port, one.protocol, one.host_ip, one.host_port, one.host_port_end) for one in found] == [
        (80, "tcp", "127.0.0.1", 8000, 8010),
        (53, "udp", "", 0, 0),
    ]
    assert {one.group for one in found} == {"service"}
    assert list(network_requests.endpoints({"NetworkMode": "default"}, {})) == ["bridge"]
    assert list(network_requests.endpoints({"NetworkMode": "n1"}, {"n1": {"Aliases": ["a"]}, "n2": {}})) == ["n1", "n2"]
    assert network_requests.endpoints({"NetworkMode": "container:x"}, {"n": {}}) == {}
    with pytest.raises(InvalidArgument, match="port publishing and the container type network mode"):
        network_requests.check({}, {"NetworkMode": "container:x", "PortBindings": {"80/tcp": []}})


def test_without_a_compiled_filter_a_container_is_refused_unless_configured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = seccomp.chosen([], False)
    assert text == seccomp.default_text()
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(Internal, match="cannot be compiled"):
        surroundings.compiled_seccomp(text, [], tmp_path / "file", True)
    assert surroundings.compiled_seccomp(text, [], tmp_path / "file", False) == ""
    assert "WITHOUT a filter" in caplog.text
    assert surroundings.compiled_seccomp(seccomp.chosen(["seccomp=unconfined"], False), [], tmp_path, True) == ""
    with pytest.raises(InvalidArgument, match="Decoding seccomp profile failed"):
        seccomp.chosen(["seccomp=/not/json"], False)
