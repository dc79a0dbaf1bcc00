"""Compose's forms → Docker's spec, and the words when a form is wrong."""

import pytest

from cli.stack import convert, units
from cli.stack.ports import ports
from cli.stack.volumes import mounts
from covey.errors import InvalidArgument


def spec(volumes=None, ids=None, **service):
    service.setdefault("image", "i")
    return convert.service_spec(
        "s", "web", service, {}, networks={"default": "s_default"}, volumes=volumes or {}, ids=ids or {}
    )


def container(**service):
    return spec(**service)["TaskTemplate"]["ContainerSpec"]


def test_the_least_service():
    made = spec()
    assert made["Name"] == "s_web"
    assert made["Mode"] == {"Replicated": {"Replicas": 1}}
    assert made["Labels"] == {"com.docker.stack.namespace": "s", "com.docker.stack.image": "i"}
    assert made["TaskTemplate"]["Networks"] == [{"Target": "s_default", "Aliases": ["web"]}]
    assert made["TaskTemplate"]["ContainerSpec"]["Labels"] == {"com.docker.stack.namespace": "s"}


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"command": "sh -c 'a b'"}, "Args", ["sh", "-c", "a b"]),
        ({"entrypoint": ["a", 1, True]}, "Command", ["a", "1", "true"]),
        ({"stop_grace_period": "1m30s"}, "StopGracePeriod", 90 * 10**9),
        ({"healthcheck": {"test": "x", "interval": "1s", "retries": 2}}, "Healthcheck",
         {"Test": ["CMD-SHELL", "x"], "Interval": 10**9, "Retries": 2}),
        ({"healthcheck": {"disable": True}}, "Healthcheck", {"Test": ["NONE"]}),
        ({"extra_hosts": ["a:1.2.3.4", "b=::1"]}, "Hosts", ["1.2.3.4 a", "::1 b"]),
        ({"dns": "1.1.1.1", "dns_search": ["x"]}, "DNSConfig", {"Nameservers": ["1.1.1.1"], "Search": ["x"]}),
        ({"ulimits": {"nofile": 9, "core": {"soft": 1, "hard": 2}}}, "Ulimits",
         [{"Name": "nofile", "Soft": 9, "Hard": 9}, {"Name": "core", "Soft": 1, "Hard": 2}]),
        ({"init": True}, "Init", True),
        ({"cap_add": ["NET_ADMIN"]}, "CapabilityAdd", ["NET_ADMIN"]),
        ({"sysctls": ["a=1"]}, "Sysctls", {"a": "1"}),
    ],
)  # fmt: skip
def test_container(given, field, value):
    assert container(**given)[field] == value


def test_deploy():
    made = spec(
        deploy={
            "replicas": "3",
            "labels": {"k": True},
            "resources": {"limits": {"cpus": "0.5", "memory": "64M", "pids": 9}, "reservations": {"memory": "1g"}},
            "restart_policy": {"condition": "on-failure", "delay": "0s", "max_attempts": 2},
            "placement": {
                "constraints": ["node.role==worker"],
                "preferences": [{"spread": "node.labels.z"}],
                "max_replicas_per_node": 1,
                "strategy": "pack",
            },
            "update_config": {"parallelism": 2, "order": "start-first"},
            "endpoint_mode": "dnsrr",
        }
    )
    task = made["TaskTemplate"]
    assert made["Mode"] == {"Replicated": {"Replicas": 3}}
    assert made["Labels"]["k"] == "true"
    assert made["Labels"]["covey.placement.strategy"] == "pack"
    assert task["Resources"] == {
        "Limits": {"NanoCPUs": 5 * 10**8, "MemoryBytes": 64 << 20, "Pids": 9},
        "Reservations": {"MemoryBytes": 1 << 30},
    }
    assert task["RestartPolicy"] == {"Condition": "on-failure", "Delay": 0, "MaxAttempts": 2}
    assert task["Placement"] == {
        "Constraints": ["node.role==worker"],
        "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.z"}}],
        "MaxReplicas": 1,
    }
    assert made["UpdateConfig"] == {"Parallelism": 2, "Order": "start-first"}
    assert made["EndpointSpec"]["Mode"] == "dnsrr"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": ""}, "services.web.image is missing"),
        ({"command": "a 'b"}, "services.web.command"),
        ({"healthcheck": {"test": ["x"]}}, "services.web.healthcheck.test"),
        ({"deploy": {"mode": "global", "replicas": 1}}, "services.web.deploy.replicas"),
        ({"deploy": {"mode": "some"}}, "services.web.deploy.mode"),
        ({"deploy": {"replicas": -1}}, "services.web.deploy.replicas: -1 is less than 0"),
        ({"deploy": {"placement": {"constraints": ["node.colour==red"]}}}, "unknown key 'node.colour'"),
        ({"deploy": {"replicas": "many"}}, "services.web.deploy.replicas: 'many' is not a whole number"),
        ({"deploy": {"resources": {"limits": {"cpus": "-1"}}}}, "services.web.deploy.resources.limits.cpus"),
        ({"deploy": {"resources": {"limits": {"memory": "lots"}}}}, "services.web.deploy.resources.limits.memory"),
        ({"deploy": {"restart_policy": {"condition": "never"}}}, "services.web.deploy.restart_policy.condition"),
        ({"deploy": {"placement": {"strategy": "x"}}}, "services.web.deploy.placement.strategy"),
        ({"stop_grace_period": "soon"}, "services.web.stop_grace_period"),
        ({"init": "maybe"}, "services.web.init"),
        ({"networks": {"default": {"ipv4_address": "x"}}}, "services.web.networks.default.ipv4_address"),
        ({"cap_add": "X"}, "services.web.cap_add must be a list, not text"),
        ({"ulimits": {"nofile": {"soft": 1}}}, "services.web.ulimits.nofile"),
    ],
)
def test_refused_by_place(given, words):
    with pytest.raises(InvalidArgument) as caught:
        spec(**given)
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("80", [(0, 80, "tcp", None)]),
        (80, [(0, 80, "tcp", None)]),
        ("8080:80/udp", [(8080, 80, "udp", None)]),
        ("127.0.0.1:8080:80", [(8080, 80, "tcp", "127.0.0.1")]),
        ("[::1]:8080:80", [(8080, 80, "tcp", "::1")]),
        ("8000-8001:80-81", [(8000, 80, "tcp", None), (8001, 81, "tcp", None)]),
        ({"target": 80, "published": "8080", "mode": "host"}, [(8080, 80, "tcp", None)]),
    ],
)
def test_ports(text, want):
    got = ports([text], "p")
    assert [(one.get("PublishedPort", 0), one["TargetPort"], one["Protocol"], one.get("HostIP")) for one in got] == want


@pytest.mark.parametrize(
    "text",
    ["x", "80:", "70000", "0", "90-80", "8000-8002:80-81", "80/icmp", "1.2.3:80:80", {"published": 1}, {"target": 1, "x": 1}],
)
def test_ports_refused(text):
    with pytest.raises(InvalidArgument, match=r"p\.0"):
        ports([text], "p")


def mount(entry, declared=None, **service):
    return mounts("s", {"volumes": [entry], **service}, "services.web", declared or {})


def test_volumes():
    assert mount("/a:/b:ro") == [{"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}]
    assert mount("/b") == [{"Type": "volume", "Target": "/b"}]
    (named,) = mount("d:/d", {"d": None})
    assert named["Source"] == "s_d"
    assert named["VolumeOptions"]["Labels"] == {"com.docker.stack.namespace": "s"}
    assert mount("d:/d", {"d": {"external": True}}) == [{"Type": "volume", "Source": "d", "Target": "/d"}]
    assert mount({"type": "tmpfs", "target": "/t", "tmpfs": {"size": "1m"}}) == [
        {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 1 << 20}}
    ]


@pytest.mark.parametrize(
    "entry",
    ["a:b:c:d", "d:relative", "nope:/d", "/a:/b:fast", {"type": "x", "target": "/a"}, {"type": "bind", "target": "/a"}, ":/a"],
)
def test_volumes_refused(entry):
    with pytest.raises(InvalidArgument, match=r"services\.web\.volumes\.0"):
        mount(entry)


def test_one_target_once():
    with pytest.raises(InvalidArgument, match="duplicate mount point /t"):
        mount("/a:/t", tmpfs="/t")


def test_secrets_and_configs():
    made = container(
        secrets=["s", {"source": "s", "target": "t", "mode": "0400"}],
        configs=["c"],
        ids={("secret", "s"): ("id1", "x_s"), ("config", "c"): ("id2", "x_c")},
    )
    assert made["Secrets"][0] == {
        "SecretID": "id1", "SecretName": "x_s", "File": {"Name": "s", "UID": "0", "GID": "0", "Mode": 0o444},
    }  # fmt: skip
    assert made["Secrets"][1]["File"] == {"Name": "t", "UID": "0", "GID": "0", "Mode": 0o400}
    assert made["Configs"][0]["File"]["Name"] == "/c"


@pytest.mark.parametrize(("text", "value"), [("10s", 10**10), ("1h2m", 3720 * 10**9), (5, 5 * 10**9), ("1.5s", 1500000000)])
def test_durations(text, value):
    assert units.nanoseconds(text, "p") == value


@pytest.mark.parametrize("text", ["", "10", "s", "1s ago", "-1s", None])
def test_durations_refused(text):
    with pytest.raises(InvalidArgument):
        units.nanoseconds(text, "p")


@pytest.mark.parametrize(("text", "value"), [("64M", 64 << 20), ("1.5g", 3 << 29), (7, 7), ("1KiB", 1024), ("9b", 9)])
def test_sizes(text, value):
    assert units.size(text, "p") == value


@pytest.mark.parametrize("text", ["", "M", "-1", "1x", True, None, "nan"])
def test_sizes_refused(text):
    with pytest.raises(InvalidArgument):
        units.size(text, "p")


@pytest.mark.parametrize("text", ["nan", "inf", "-0.5", "x", None])
def test_cpus_refused(text):
    with pytest.raises(InvalidArgument):
        units.nano_cpus(text, "p")


@pytest.mark.parametrize(
    ("deploy", "mode"),
    [
        ({"mode": "replicated-job"}, {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 1}}),
        ({"mode": "replicated-job", "replicas": 4}, {"ReplicatedJob": {"MaxConcurrent": 4, "TotalCompletions": 4}}),
        ({"mode": "replicated-job", "replicas": 4, "max_concurrent": 2},
         {"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 4}}),
        ({"mode": "global-job"}, {"GlobalJob": {}}),
    ],
)  # fmt: skip
def test_jobs(deploy, mode):
    assert spec(deploy=deploy)["Mode"] == mode


@pytest.mark.parametrize(
    ("deploy", "words"),
    [
        ({"mode": "sometimes"}, "is none of replicated, global, replicated-job, global-job"),
        ({"mode": "global-job", "replicas": 2}, "a global-job service has one task a node"),
        ({"max_concurrent": 2}, "goes with mode: replicated-job only"),
        ({"mode": "replicated-job", "replicas": -1}, "-1 is less than 0"),
    ],
)
def test_modes_that_cannot_be(deploy, words):
    with pytest.raises(InvalidArgument, match=words):
        spec(deploy=deploy)


def stack_of(**services):
    """Cluster name → spec of a stack ``s`` with these services."""
    services = {name: {"image": "i", **body} for name, body in services.items()}
    made = (
        convert.service_spec(
            "s", name, body, {}, networks={"default": "s_default"}, volumes={}, ids={}, services=services
        )
        for name, body in services.items()
    )  # fmt: skip
    return {one["Name"]: one for one in made}


def test_depends_on_travels_as_a_label_and_what_is_to_complete_is_a_job():
    web = {
        "depends_on": {
            "db": {"condition": "service_healthy"},
            "migrate": {"condition": "service_completed_successfully", "required": True},
            "cache": {"required": False},
        }
    }
    made = stack_of(web=web, worker={"depends_on": ["db"]}, db={}, migrate={})
    assert made["s_web"]["Labels"]["covey.depends_on"] == "s_db=healthy,s_migrate=completed"
    assert made["s_worker"]["Labels"]["covey.depends_on"] == "s_db=started"
    assert made["s_migrate"]["Mode"] == {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 1}}
    assert made["s_db"]["Mode"] == {"Replicated": {"Replicas": 1}}
    said = stack_of(web=web, db={}, migrate={"deploy": {"mode": "replicated"}})
    assert said["s_migrate"]["Mode"] == {"Replicated": {"Replicas": 1}}


@pytest.mark.parametrize(
    ("depends_on", "words"),
    [
        (["nosuch"], "'nosuch' is no service of the stack"),
        (["web"], "web cannot wait for itself"),
        ({"db": {"condition": "service_happy"}}, "service_happy"),
        ({"db": {"restart": True}}, "depends_on.db.restart is not supported"),
        ({"db": {"when": 1}}, "unknown key services.web.depends_on.db.when"),
    ],
)
def test_dependencies_that_cannot_be(depends_on, words):
    with pytest.raises(InvalidArgument, match=words):
        stack_of(web={"depends_on": depends_on}, db={})
