"""What container a task is: templates, mounts, labels, limits, secrets; what can never run is refused by field."""

from __future__ import annotations

from typing import Any

import pytest

from covey.model.objects import PortConfig, Task, TaskNetwork
from covey.model.task_states import TaskState as S
from covey.wire.messages import AssignedSecret, AssignedTask
from worker.agent.container_of_task import TaskContainer, Unfit, container_of_task, extra_host

SECOND = 1_000_000_000
HEALTH = {"Test": ["CMD", "true"], "Interval": SECOND}


def build(
    spec: dict[str, Any] | None = None,
    *,
    task: dict[str, Any] | None = None,
    secrets: tuple[AssignedSecret, ...] = (),
    configs: tuple[AssignedSecret, ...] = (),
    ports: tuple[PortConfig, ...] = (),
    **fields: Any,
) -> TaskContainer:
    about = Task(
        id="t1",
        service_id="s1",
        service_name="web",
        service_labels={"tier": "front"},
        node_id="n1",
        slot=fields.pop("slot", 3),
        state=S.ASSIGNED,
        desired=S.RUNNING,
        spec={"ContainerSpec": {"Image": "busybox:1@sha256:00", **(spec or {})}, **(task or {})},
        **fields,
    )
    return container_of_task(
        AssignedTask(task=about, ports=ports),
        (),
        secrets,
        configs,
        node_id="n1",
        hostname="host-1",
        platform=("linux", "x86_64"),
    )


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{.Service.ID}}", "s1"),
        ("{{.Service.Name}}", "web"),
        ('{{.Service.Labels "tier"}}', "front"),
        ("{{.Service.Labels.tier}}", "front"),
        ("{{.Service.Labels.absent}}", ""),
        ("{{.Node.ID}}", "n1"),
        ("{{ .Node.Hostname }}", "host-1"),
        ("{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}", "linux/x86_64"),
        ("{{.Task.ID}}", "t1"),
        ("{{.Task.Name}}", "web.3.t1"),
        ("{{.Task.Slot}}", "3"),
        ("no template }}", "no template }}"),
    ],
)
def test_templates_are_filled_in_env_hostname_and_mounts(template: str, value: str) -> None:
    mount = {"Type": "volume", "Source": template, "Target": f"/data/{template}"}
    made = build({"Env": [f"X={template}"], "Hostname": template, "Mounts": [mount]}).body
    assert made["Env"] == [f"X={value}"]
    assert made.get("Hostname", "") == value
    assert made["HostConfig"]["Mounts"] == [{"Type": "volume", "Source": value, "Target": f"/data/{value}"}]


def test_a_template_that_does_not_exist_names_those_that_do() -> None:
    with pytest.raises(Unfit, match=r"\{\{\.Task\.Color\}\} is not known; known are .*Task\.Slot"):
        build({"Env": ["X={{.Task.Color}}"]})


def test_a_task_of_a_global_service_has_its_node_for_a_slot() -> None:
    made = build({"Env": ["X={{.Task.Slot}}"]}, slot=0)
    assert made.body["Env"] == ["X=n1"]
    assert made.name == "web.n1.t1"


def test_labels_are_the_user_s_with_ours_which_they_cannot_forge() -> None:
    labels = build({"Labels": {"mine": "1", "com.docker.swarm.task.id": "forged"}}).body["Labels"]
    assert labels == {
        "mine": "1",
        "com.docker.swarm.node.id": "n1",
        "com.docker.swarm.service.id": "s1",
        "com.docker.swarm.service.name": "web",
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": "t1",
        "com.docker.swarm.task.name": "web.3.t1",
    }


@pytest.mark.parametrize(
    ("given", "where", "value"),
    [
        ({"Command": ["/bin/x"]}, "Entrypoint", ["/bin/x"]),
        ({"Args": ["-v"]}, "Cmd", ["-v"]),
        ({"Dir": "/srv"}, "WorkingDir", "/srv"),
        ({"TTY": True}, "Tty", True),
        ({"StopSignal": "SIGINT"}, "StopSignal", "SIGINT"),
        ({"StopGracePeriod": 1}, "StopTimeout", 1),
        ({"StopGracePeriod": 10 * SECOND}, "StopTimeout", 10),
        ({"StopGracePeriod": 0}, "StopTimeout", 0),
        ({"Healthcheck": HEALTH}, "Healthcheck", HEALTH),
        ({"ReadOnly": True}, "HostConfig.ReadonlyRootfs", True),
        ({"CapabilityAdd": ["NET_ADMIN"]}, "HostConfig.CapAdd", ["NET_ADMIN"]),
        ({"Init": False}, "HostConfig.Init", False),
        ({"Hosts": ["10.0.0.1 db"]}, "HostConfig.ExtraHosts", ["db:10.0.0.1"]),
        ({"DNSConfig": {"Nameservers": ["9.9.9.9"]}}, "HostConfig.Dns", ["9.9.9.9"]),
        ({"Privileges": {"NoNewPrivileges": True}}, "HostConfig.SecurityOpt", ["no-new-privileges"]),
        ({"Privileges": {"Seccomp": {"Mode": "unconfined"}}}, "HostConfig.SecurityOpt", ["seccomp=unconfined"]),
        ({}, "Image", "busybox:1@sha256:00"),
        ({}, "HostConfig.RestartPolicy", {"Name": "no"}),
    ],
)
def test_fields_of_the_spec_become_fields_of_the_container(given: dict[str, Any], where: str, value: Any) -> None:
    found: Any = build(given).body
    for step in where.split("."):
        found = found[step]
    assert found == value


def test_what_the_spec_leaves_out_is_left_to_the_image() -> None:
    body = build().body
    assert not {"Entrypoint", "Cmd", "User", "Healthcheck", "StopTimeout", "Hostname"} & set(body)


def test_limits_and_reservations_and_the_log() -> None:
    resources = {
        "Limits": {"NanoCPUs": 500_000_000, "MemoryBytes": 64 << 20, "Pids": 50},
        "Reservations": {"MemoryBytes": 32 << 20, "NanoCPUs": 100_000_000},
    }
    log = {"Name": "json-file", "Options": {"max-size": "1m"}}
    host = build(task={"Resources": resources, "LogDriver": log}).body["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["PidsLimit"]) == (500_000_000, 64 << 20, 50)
    assert host["MemoryReservation"] == 32 << 20
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m"}}


def test_generic_resources_are_told_by_environment() -> None:
    asked = [{"DiscreteResourceSpec": {"Kind": kind, "Value": number}} for kind, number in (("ssd", 3), ("gpu", 2))]
    template = {"Resources": {"Reservations": {"GenericResources": asked}}}
    made = build({"Env": ["A=b"]}, task=template, generic_named={"gpu": ("UUID1", "UUID2")})
    assert made.body["Env"] == ["A=b", "DOCKER_RESOURCE_GPU=UUID1,UUID2", "DOCKER_RESOURCE_SSD=3"]
    assert build({"Env": ["A=b"]}).body["Env"] == ["A=b"]


def test_secrets_and_configs_become_files() -> None:
    spec = {
        "Secrets": [
            {"SecretID": "x", "SecretName": "key", "File": {"Name": "key", "UID": "7", "GID": "8", "Mode": 0o400}},
            {"SecretID": "x", "SecretName": "key", "File": {"Name": "/etc/key", "UID": "0", "GID": "0", "Mode": 0o444}},
        ],
        "Configs": [{"ConfigID": "y", "ConfigName": "conf", "File": {"Name": "conf", "UID": "0", "GID": "0", "Mode": 0o444}}],
    }
    sent = AssignedSecret(id="x", name="key", data=b"k"), AssignedSecret(id="y", name="conf", data=b"c")
    files = build(spec, secrets=sent[:1], configs=sent[1:]).files
    assert [(file.target, file.data, file.uid, file.gid, file.mode) for file in files] == [
        ("/run/secrets/key", b"k", 7, 8, 0o400),
        ("/etc/key", b"k", 0, 0, 0o444),
        ("/conf", b"c", 0, 0, 0o444),
    ]


@pytest.mark.parametrize(
    ("file", "words"),
    [({"Name": "f", "UID": "root"}, "UID and GID are numbers"), (None, "")],
)
def test_a_secret_that_cannot_be_placed(file: dict[str, Any] | None, words: str) -> None:
    spec = {"Secrets": [{"SecretID": "x", "SecretName": "key", "File": file}]}
    sent = (AssignedSecret(id="x", name="key", data=b"k"),)
    if words:
        with pytest.raises(Unfit, match=words):
            build(spec, secrets=sent)
    else:
        assert build(spec, secrets=sent).files == ()


def test_a_secret_that_was_not_sent_is_named() -> None:
    with pytest.raises(Unfit, match="secret 'key' was not sent to this node"):
        build({"Secrets": [{"SecretID": "x", "SecretName": "key", "File": {"Name": "f"}}]})


def test_networks_and_ports_are_beside_the_body() -> None:
    network = TaskNetwork(network_id="net1", addresses=("10.0.1.5/24",), aliases=("web", "www"))
    port = PortConfig(target=80, published=8080, protocol="tcp")
    made = build(networks=(network,), ports=(port,))
    assert [(one.network_id, one.addresses, one.aliases) for one in made.attachments] == [
        ("net1", ("10.0.1.5/24",), ("web", "www"))
    ]
    assert made.ports == (port,)
    assert made.body["ExposedPorts"] == {"80/tcp": {}}
    assert made.service == "web"


@pytest.mark.parametrize(("line", "entry"), [("10.0.0.1 db", "db:10.0.0.1"), ("db:10.0.0.1", "db:10.0.0.1")])
def test_lines_of_hosts_turn_round(line: str, entry: str) -> None:
    assert extra_host(line) == entry
