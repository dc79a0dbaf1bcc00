"""Specs at the door: what passes survives untouched, what cannot be is refused by field and in known words."""

import base64
import contextlib
import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.engine_api.types import rules
from covey.engine_api.types.base import validate
from covey.engine_api.types.cluster import (
    NodeSpec,
    validate_config_spec,
    validate_secret_spec,
    validate_swarm_init,
    validate_swarm_join,
)
from covey.engine_api.types.container import check_container_name, validate_container_create, validate_exec_create
from covey.engine_api.types.network import validate_network_create, validate_volume_create
from covey.engine_api.types.service_rules import validate_service_spec
from covey.errors import InvalidArgument

SPEC = {
    "Name": "web",
    "Labels": {"a": "b"},
    "TaskTemplate": {
        "ContainerSpec": {
            "Image": "localhost:5000/team/nginx:1.25",
            "Env": ["A=1", "B"],
            "Mounts": [
                {"Type": "volume", "Source": "data", "Target": "/data"},
                {"Type": "bind", "Source": "/etc", "Target": "/host/etc", "ReadOnly": True},
                {"Type": "tmpfs", "Target": "/tmp", "TmpfsOptions": {"SizeBytes": 1048576, "Mode": 1023}},
            ],
            "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000},
            "StopGracePeriod": 10_000_000_000,
            "Future": {"deep": [1, None, 2.5]},
        },
        "Resources": {"Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864}, "Reservations": {}},
        "RestartPolicy": {"Condition": "any", "Delay": 0, "MaxAttempts": 3},
        "Placement": {"Constraints": ["node.role==worker"], "Preferences": [{"Spread": {"SpreadDescriptor": "x"}}]},
        "Networks": [{"Target": "net", "Aliases": ["web"]}],
        "ForceUpdate": 0,
        "Runtime": "container",
    },
    "Mode": {"Replicated": {"Replicas": 3}},
    "UpdateConfig": {"Parallelism": 1, "FailureAction": "pause", "MaxFailureRatio": 0.5, "Order": "stop-first"},
    "EndpointSpec": {"Mode": "vip", "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080}]},
    "Schedule": "* * * * *",
}


def changed(path, value):
    spec = copy.deepcopy(SPEC)
    *parents, last = path.split(".")
    at = spec
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    if isinstance(at, list):
        last = int(last)
    at[last] = value
    return spec


def test_a_spec_survives_the_round_trip_whole():
    assert validate_service_spec(SPEC).stored() == SPEC


def test_nulls_and_other_cases_of_names_are_read_as_go_reads_them():
    spec = changed("TaskTemplate.ContainerSpec.Env", None)
    spec["TaskTemplate"]["ContainerSpec"]["HealthCheck"] = spec["TaskTemplate"]["ContainerSpec"].pop("Healthcheck")
    spec["labels"] = spec.pop("Labels")
    stored = validate_service_spec(spec).stored()
    assert stored["Labels"] == {"a": "b"}
    assert stored["TaskTemplate"]["ContainerSpec"]["Healthcheck"]["Test"] == ["CMD", "true"]
    assert stored["TaskTemplate"]["ContainerSpec"]["Env"] == []


def test_the_docker_clis_spec_passes():
    validate_service_spec(
        {
            "Name": "x",
            "Labels": {},
            "TaskTemplate": {
                "ContainerSpec": {"Image": "busybox:latest", "Init": False, "DNSConfig": {}, "Isolation": "default"},
                "Resources": {"Limits": {}, "Reservations": {}},
                "Placement": {},
                "ForceUpdate": 0,
            },
            "Mode": {"Replicated": {}},
            "EndpointSpec": {},
        }
    )


CONTAINER = "TaskTemplate.ContainerSpec"


@pytest.mark.parametrize(
    ("path", "value", "field", "words"),
    [
        ("Name", "", "Name", "name must be provided"),
        ("Name", "a.b", "Name", "name must be valid as a DNS name component"),
        ("Name", "-a", "Name", "name must be valid as a DNS name component"),
        ("Name", "a" * 64, "Name", "63 characters or fewer"),
        ("Name", 3, "Name", "must be a string"),
        ("TaskTemplate.Runtime", "plugin", "TaskTemplate.Runtime", "not supported"),
        ("TaskTemplate.ContainerSpec", None, "TaskTemplate.ContainerSpec", "missing runtime"),
        (f"{CONTAINER}.Image", "", f"{CONTAINER}.Image", "image reference must be provided"),
        (f"{CONTAINER}.Image", "Foo:1", f"{CONTAINER}.Image", '"Foo:1" is not a valid repository/tag'),
        (f"{CONTAINER}.Image", "a b", f"{CONTAINER}.Image", "is not a valid repository/tag"),
        (f"{CONTAINER}.Image", "a" * 5000, f"{CONTAINER}.Image", "is not a valid repository/tag"),
        (f"{CONTAINER}.Env", ["=x"], f"{CONTAINER}.Env[0]", "invalid environment variable"),
        (f"{CONTAINER}.Env", [1], f"{CONTAINER}.Env[0]", "must be a string"),
        (f"{CONTAINER}.Dir", "srv", f"{CONTAINER}.Dir", "absolute path"),
        (f"{CONTAINER}.Mounts.0.Type", "nfs", f"{CONTAINER}.Mounts[0].Type", "mount type unknown"),
        (f"{CONTAINER}.Mounts.0.Target", "", f"{CONTAINER}.Mounts[0].Target", "field Target must not be empty"),
        (f"{CONTAINER}.Mounts.0.Target", "data", f"{CONTAINER}.Mounts[0].Target", "mount path must be absolute"),
        (f"{CONTAINER}.Mounts.0.Target", "/x/..", f"{CONTAINER}.Mounts[0].Target", "destination can't be '/'"),
        (f"{CONTAINER}.Mounts.0.Target", "/tmp/", f"{CONTAINER}.Mounts[2].Target", "duplicate mount point"),
        (f"{CONTAINER}.Mounts.0.Source", "../x", f"{CONTAINER}.Mounts[0].Source", "invalid characters"),
        (f"{CONTAINER}.Mounts.1.Source", "", f"{CONTAINER}.Mounts[1].Source", "field Source must not be empty"),
        (f"{CONTAINER}.StopGracePeriod", -1, f"{CONTAINER}.StopGracePeriod", "cannot be negative"),
        (f"{CONTAINER}.Healthcheck.Retries", -1, f"{CONTAINER}.Healthcheck.Retries", "cannot be negative"),
        (f"{CONTAINER}.Healthcheck.Interval", 10, f"{CONTAINER}.Healthcheck.Interval", "one millisecond"),
        (f"{CONTAINER}.Secrets", [{}], f"{CONTAINER}.Secrets[0]", "malformed secret reference"),
        ("TaskTemplate.Resources.Limits.NanoCPUs", -5, "TaskTemplate.Resources.Limits.NanoCPUs", "invalid cpu value"),
        (
            "TaskTemplate.Resources.Reservations.GenericResources",
            [{"NamedResourceSpec": {"Kind": "gpu", "Value": "UUID1"}}],
            "TaskTemplate.Resources.Reservations.GenericResources[0]",
            "a service reserves so many of a kind",
        ),
        (
            "TaskTemplate.Resources.Reservations.GenericResources",
            [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 1}}, {"DiscreteResourceSpec": {"Kind": "ssd", "Value": "2"}}],
            "TaskTemplate.Resources.Reservations.GenericResources[1]",
            "a service reserves so many of a kind",
        ),
        (
            "TaskTemplate.Resources.Reservations.GenericResources",
            [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": -1}}],
            "TaskTemplate.Resources.Reservations.GenericResources[0].DiscreteResourceSpec.Value",
            "cannot be negative",
        ),
        (
            "TaskTemplate.Resources.Reservations.MemoryBytes",
            -1,
            "TaskTemplate.Resources.Reservations.MemoryBytes",
            "invalid memory value -1: Must be at least 4MiB",
        ),
        (
            "TaskTemplate.Resources.Reservations.NanoCPUs",
            10**10,
            "TaskTemplate.Resources.Reservations.NanoCPUs",
            "more than the limit",
        ),
        ("TaskTemplate.Resources.Limits.NanoCPUs", 2**63, "TaskTemplate.Resources.Limits.NanoCPUs", "must be less than"),
        ("TaskTemplate.RestartPolicy.Condition", "maybe", "TaskTemplate.RestartPolicy.Condition", "RestartCondition"),
        ("TaskTemplate.RestartPolicy.Delay", -1, "TaskTemplate.RestartPolicy.Delay", "restart-delay cannot be negative"),
        ("TaskTemplate.RestartPolicy.MaxAttempts", -1, "TaskTemplate.RestartPolicy.MaxAttempts", "at least 0"),
        ("TaskTemplate.Placement.Constraints.0", "colour==red", "TaskTemplate.Placement.Constraints[0]", "unknown key"),
        ("TaskTemplate.Placement.Strategy", "tight", "TaskTemplate.Placement.Strategy", "use one of binpack, spread"),
        ("TaskTemplate.Placement.Priority", -1, "TaskTemplate.Placement", "no whole number from 0 to 1000"),
        ("TaskTemplate.Placement.Group", 7, "TaskTemplate.Placement", "no name of at most 128 characters"),
        ("TaskTemplate.Placement.Affinities", {}, "TaskTemplate.Placement", "must be a list"),
        ("TaskTemplate.Placement.Affinities", [{"Weight": 5}], "TaskTemplate.Placement", "either a Constraint or a Service"),
        ("TaskTemplate.Placement.Affinities", [{"Service": "a", "Weight": 0}], "TaskTemplate.Placement", "from -100 to 100"),
        ("TaskTemplate.Placement.Affinities", [{"Service": "a", "Wight": 1}], "TaskTemplate.Placement", "field 'Wight'"),
        ("TaskTemplate.Placement.Affinities", [{"Service": "a", "Topology": "x"}], "TaskTemplate.Placement", "no attribute"),
        ("Labels", {"covey.placement.affinities": "["}, "TaskTemplate.Placement", "is no JSON"),
        ("Labels", {"covey.placement.priority": "high"}, "TaskTemplate.Placement", "'high' is no whole number"),
        ("TaskTemplate.Networks.0.Target", "", "TaskTemplate.Networks[0].Target", "network"),
        ("Mode.Global", {}, "Mode", "must specify only one service mode"),
        ("Mode.Sometimes", {}, "Mode.Sometimes", "unknown service mode"),
        ("Mode.Replicated.Replicas", -1, "Mode.Replicated.Replicas", "Number of replicas must be non-negative"),
        ("Mode.Replicated.Replicas", "3", "Mode.Replicated.Replicas", "must be a whole number"),
        ("Mode.Replicated.Replicas", True, "Mode.Replicated.Replicas", "must be a whole number"),
        ("UpdateConfig.FailureAction", "panic", "UpdateConfig.FailureAction", "update failure action"),
        ("RollbackConfig.FailureAction", "rollback", "RollbackConfig.FailureAction", "rollback failure action"),
        ("UpdateConfig.Delay", -1, "UpdateConfig.Delay", "update-delay cannot be negative"),
        ("UpdateConfig.MaxFailureRatio", 1.5, "UpdateConfig.MaxFailureRatio", "less than 0 or bigger than 1"),
        ("UpdateConfig.Order", "sideways", "UpdateConfig.Order", "stop-first"),
        ("UpdateConfig.Order", "x - at `$.Name[0]`", "UpdateConfig.Order", "must be '', 'stop-first' or 'start-first'"),
        ("EndpointSpec.Ports.0.TargetPort", 0, "EndpointSpec.Ports[0].TargetPort", "target port"),
        ("EndpointSpec.Ports.0.PublishedPort", 65536, "EndpointSpec.Ports[0].PublishedPort", "at most 65535"),
        ("EndpointSpec.Mode", "dnsrr", "EndpointSpec.Ports[0].PublishMode", "can't be used with dnsrr mode"),
        (
            "EndpointSpec.Ports",
            [{"TargetPort": 80, "PublishedPort": 1}, {"Protocol": "tcp", "TargetPort": 81, "PublishedPort": 1}],
            "EndpointSpec.Ports[1].PublishedPort",
            "duplicate published ports provided",
        ),
    ],
)
def test_specs_that_cannot_be(path, value, field, words):
    def check(constraint):
        if not constraint.startswith("node."):
            raise ValueError(f"unknown key in constraint {constraint!r}")

    with pytest.raises(InvalidArgument) as error:
        validate_service_spec(changed(path, value), check)
    assert field in error.value.message
    assert words in error.value.message
    assert "\n" not in error.value.message


def test_the_same_port_of_two_protocols_is_no_clash():
    ports = [{"TargetPort": 53, "PublishedPort": 53}, {"Protocol": "udp", "TargetPort": 53, "PublishedPort": 53}]
    validate_service_spec(changed("EndpointSpec.Ports", [*ports, {"TargetPort": 1}, {"TargetPort": 2}]))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["TaskTemplate", CONTAINER, "Mode", "EndpointSpec", "Labels", f"{CONTAINER}.Mounts"]), values)
def test_any_json_is_accepted_or_refused_never_a_fault(path, value):
    with contextlib.suppress(InvalidArgument):
        validate_service_spec(changed(path, value))


@pytest.mark.parametrize(
    "text",
    ["nginx", "nginx:1.25", "a/b/c", "host.x:5000/a__b/c-d:T_1", "a@sha256:" + "0" * 64, "sha256:" + "a" * 64, "[::1]:5/a"],
)
def test_image_references(text):
    assert rules.is_reference(text)


@pytest.mark.parametrize("text", ["", ":", "a:", "a//b", "/a", "a:b:c d", "A/b:", "a@sha256:1", "a" * 513, "a-/b", "a\n"])
def test_what_is_no_image_reference(text):
    assert not rules.is_reference(text)


CREATE = {
    "Image": "busybox",
    "Cmd": "sleep 1",
    "Env": None,
    "ExposedPorts": {"80/tcp": {}},
    "Healthcheck": None,
    "HostConfig": {
        "NetworkMode": "default",
        "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": ""}], "53/udp": None, "90": [{"HostPort": "1-9"}]},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "Memory": 0,
        "ConsoleSize": [0, 0],
        "LogConfig": {"Type": "", "Config": {}},
        "BlkioDeviceReadBps": [],
    },
    "NetworkingConfig": {"EndpointsConfig": {"net": None}},
}


def test_a_container_of_the_docker_cli_passes_and_survives():
    stored = validate_container_create(CREATE).stored()
    assert stored == {**CREATE, "Env": []}


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"Image": ""}, "no image specified"),
        ({"WorkingDir": "x"}, "absolute path"),
        ({"ExposedPorts": {"http": {}}}, "invalid port specification"),
        ({"HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "x"}]}}}, "invalid port specification"),
        ({"HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "70000"}]}}}, "invalid port specification"),
        ({"HostConfig": {"Memory": 1024}}, "Minimum memory limit allowed is 6MB"),
        ({"HostConfig": {"NanoCpus": -1}}, "invalid cpu value"),
        ({"HostConfig": {"NanoCpus": 1, "CpuQuota": 5}}, "Conflicting options"),
        ({"HostConfig": {"PidsLimit": -2}}, "pids"),
        ({"HostConfig": {"RestartPolicy": {"Name": "often"}}}, "unknown policy 'often'"),
        ({"HostConfig": {"RestartPolicy": {"Name": "always"}, "AutoRemove": True}}, "AutoRemove"),
        ({"HostConfig": {"Mounts": [{"Target": "/x"}]}}, "mount type unknown"),
        ({"HostConfig": {"Binds": "x"}}, "HostConfig.Binds: must be a list"),
    ],
)
def test_containers_that_cannot_be(part, words):
    with pytest.raises(InvalidArgument) as error:
        validate_container_create({"Image": "busybox", **part})
    assert words in error.value.message


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"Labels": {"a": "b", "c": 1}}, "Labels.c: must be a string"),
        ({"Volumes": {"/a": 3}}, "Volumes./a: must be an object"),
        (
            {"HostConfig": {"PortBindings": {"53/udp": None, "80/tcp": [{}, {"HostPort": 80}]}}},
            "HostConfig.PortBindings.80/tcp[1].HostPort: must be a string",
        ),
        (
            {"networkingconfig": {"EndpointsConfig": {"n": {"aliases": ["a", 1]}}}},
            "NetworkingConfig.EndpointsConfig.n.Aliases[1]: must be a string",
        ),
        ({"HostConfig": {"Devices": [{"PathOnHost": "/dev/null"}, {}]}}, "HostConfig.Devices[1].PathOnHost: is required"),
        ({"HostConfig": {"CpuShares": 2**70}}, f"HostConfig.CpuShares: must be less than {2**63}"),
        ({"HostConfig": {"Memory": 1.0}}, "HostConfig.Memory: must be a whole number"),
        ({"HostConfig": {"Privileged": 1}}, "HostConfig.Privileged: must be true or false"),
        ({"HostConfig": []}, "HostConfig: must be an object"),
        ({"Cmd": 3}, "Cmd: must be a string or a list"),
        ({"Cmd": ["a", 3]}, "Cmd[1]: must be a string"),
    ],
)
def test_the_place_of_a_fault_is_named(part, message):
    with pytest.raises(InvalidArgument) as error:
        validate_container_create({"Image": "busybox", **part})
    assert error.value.message == message


def test_a_field_called_as_the_object_is_internally_stays_a_field_that_nobody_knows():
    given = {"Image": "busybox", "(received)": 1, "received": 2, "HostConfig": {"(received)": {}}}
    assert validate_container_create(given).stored() == given


def test_container_names():
    assert check_container_name("/web_1.x") == "web_1.x"
    for name in ("", "/", "a", "-ab", "a b", "a/b", "x\n"):
        with pytest.raises(InvalidArgument, match="Invalid container name"):
            check_container_name(name)


def test_exec_needs_a_command():
    assert validate_exec_create({"Cmd": ["ls"], "Tty": True}).Tty
    with pytest.raises(InvalidArgument, match="No exec command specified"):
        validate_exec_create({"Cmd": []})


def test_nodes():
    assert validate(NodeSpec, {"Role": "worker", "Availability": "drain"}).stored()["Availability"] == "drain"
    with pytest.raises(InvalidArgument, match="Availability: must be 'active', 'pause' or 'drain'"):
        validate(NodeSpec, {"Role": "worker", "Availability": "off"})
    with pytest.raises(InvalidArgument, match="Role: is required"):
        validate(NodeSpec, {"Availability": "active"})


def test_swarm_requests():
    validate_swarm_init({"ListenAddr": "0.0.0.0:2377", "DefaultAddrPool": None, "Spec": {}})
    with pytest.raises(InvalidArgument, match=r"DefaultAddrPool\[0\]"):
        validate_swarm_init({"DefaultAddrPool": ["10.0.0.1/8"]})
    with pytest.raises(InvalidArgument, match="do not fit"):
        validate_swarm_init({"DefaultAddrPool": ["10.0.0.0/24"], "SubnetSize": 8})
    with pytest.raises(InvalidArgument, match=r"1h0m0s \(Spec\.CAConfig\.NodeCertExpiry\)"):
        validate_swarm_init({"Spec": {"CAConfig": {"NodeCertExpiry": 1}}})
    with pytest.raises(InvalidArgument, match="RemoteAddr"):
        validate_swarm_join({"JoinToken": "x"})
    with pytest.raises(InvalidArgument, match="JoinToken"):
        validate_swarm_join({"RemoteAddrs": ["m:2377"]})


def test_secrets_and_configs():
    data = base64.b64encode(b"\xfb\xff secret").decode()
    assert validate_secret_spec({"Name": "a.b", "Data": data}).Data == data
    validate_secret_spec({"Name": "a", "Data": data.replace("+", "-").replace("/", "_")})
    validate_secret_spec({"Name": "a"}, update=True)
    big = base64.b64encode(b"x" * 500 * 1024).decode()
    for raw, words in (
        ({"Name": "a b", "Data": data}, "64 "),
        ({"Name": "a"}, "secret data must be larger than 0 and less than 512000 bytes"),
        ({"Name": "a", "Data": big}, "less than 512000"),
        ({"Name": "a", "Data": "?"}, "base64"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            validate_secret_spec(raw)
    assert validate_config_spec({"Name": "a", "Data": big})


def test_networks_and_volumes():
    validate_network_create({"Name": "n", "IPAM": {"Config": [{"Subnet": "10.1.0.0/16", "Gateway": "10.1.0.1"}]}})
    for raw, words in (
        ({"Name": ""}, "name is empty"),
        ({"Name": "a b"}, "invalid network name"),
        ({"Name": "n", "IPAM": {"Config": [{"Subnet": "10.1.0.1/16"}]}}, r"IPAM\.Config\[0\]\.Subnet"),
        ({"Name": "n", "IPAM": {"Config": [{"Subnet": "10.1.0.0/16", "Gateway": "10.2.0.1"}]}}, "not in the subnet"),
        ({"Name": "n", "IPAM": {"Config": [{"Subnet": "10.1.0.0/16", "IPRange": "10.2.0.0/24"}]}}, "not in the subnet"),
        ({"Name": "n", "IPAM": {"Config": [{"Subnet": "10.1.0.0/16", "IPRange": "fd00::/64"}]}}, "not in the subnet"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            validate_network_create(raw)
    assert validate_volume_create({}).Name is None
    with pytest.raises(InvalidArgument, match="invalid characters for a local volume name"):
        validate_volume_create({"Name": "/etc"})
