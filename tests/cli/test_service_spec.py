"""Options of service create and update → the spec, as tables; and what is refused before anybody is asked."""

import click
import pytest

from cli import lazy
from cli.service import app
from cli.service_spec import created, updated
from covey.errors import InvalidArgument


def parsed(verb, *argv):
    command = lazy.command_of(app, verb)
    return command.make_context(verb, list(argv)).params


def make(*argv):
    flags = parsed("create", *argv)
    return created(flags.pop("image"), flags.pop("words") or [], flags)


def change(spec, *argv):
    flags = parsed("update", "web", *argv)
    flags.pop("service")
    return updated(spec, flags)


def dig(spec, path):
    for step in path.split("."):
        spec = spec[step]
    return spec


C = "TaskTemplate.ContainerSpec"


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        (["i"], f"{C}.Image", "i"),
        (["i", "sh", "-c", "x --replicas 9"], f"{C}.Args", ["sh", "-c", "x --replicas 9"]),
        (["i", "ls", "--env", "A"], f"{C}.Args", ["ls", "--env", "A"]),
        (["--replicas", "3", "i"], "Mode", {"Replicated": {"Replicas": 3}}),
        (["i"], "Mode", {"Replicated": {"Replicas": 1}}),
        (["--mode=global", "i"], "Mode", {"Global": {}}),
        (["-e", "A=1", "--env", "B=x=y", "i"], f"{C}.Env", ["A=1", "B=x=y"]),
        (["-l", "a=1", "--label", "b", "i"], "Labels", {"a": "1", "b": ""}),
        (["--strategy", "spread", "i"], "Labels", {"covey.placement.strategy": "spread"}),
        (["--container-label", "a=1", "i"], f"{C}.Labels", {"a": "1"}),
        (["-p", "8080:80", "i"], "EndpointSpec.Ports",
         [{"Protocol": "tcp", "TargetPort": 80, "PublishMode": "ingress", "PublishedPort": 8080}]),
        (["-p", "published=8080,target=80,protocol=udp,mode=host", "i"], "EndpointSpec.Ports",
         [{"Protocol": "udp", "TargetPort": 80, "PublishMode": "host", "PublishedPort": 8080}]),
        (["--mount", "type=bind,src=/a,dst=/b,ro", "i"], f"{C}.Mounts",
         [{"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True}]),
        (["--network", "n", "--network", "name=m,alias=a", "i"], "TaskTemplate.Networks",
         [{"Target": "n"}, {"Target": "m", "Aliases": ["a"]}]),
        (["--constraint", "node.role==worker", "i"], "TaskTemplate.Placement.Constraints", ["node.role==worker"]),
        (["--placement-pref", "spread=node.labels.z", "i"], "TaskTemplate.Placement.Preferences",
         [{"Spread": {"SpreadDescriptor": "node.labels.z"}}]),
        (["--replicas-max-per-node", "2", "i"], "TaskTemplate.Placement.MaxReplicas", 2),
        (["--limit-cpu", ".5", "--limit-memory", "64M", "--limit-pids", "9", "i"], "TaskTemplate.Resources.Limits",
         {"NanoCPUs": 5 * 10**8, "MemoryBytes": 64 << 20, "Pids": 9}),
        (["--reserve-cpu", "1", "--reserve-memory", "1g", "i"], "TaskTemplate.Resources.Reservations",
         {"NanoCPUs": 10**9, "MemoryBytes": 1 << 30}),
        (["--generic-resource", "gpu=2", "--generic-resource", "ssd=1", "i"],
         "TaskTemplate.Resources.Reservations.GenericResources",
         [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 2}}, {"DiscreteResourceSpec": {"Kind": "ssd", "Value": 1}}]),
        (["--restart-condition", "on-failure", "--restart-delay", "1s", "--restart-max-attempts", "2",
          "--restart-window", "1m", "i"],
         "TaskTemplate.RestartPolicy", {"Condition": "on-failure", "Delay": 10**9, "MaxAttempts": 2, "Window": 60 * 10**9}),
        (["--health-cmd", "x", "--health-interval", "1s", "--health-retries", "2", "i"], f"{C}.Healthcheck",
         {"Interval": 10**9, "Retries": 2, "Test": ["CMD-SHELL", "x"]}),
        (["--no-healthcheck", "i"], f"{C}.Healthcheck", {"Test": ["NONE"]}),
        (["--update-parallelism", "2", "--update-delay", "1s", "--update-order", "start-first", "i"], "UpdateConfig",
         {"Parallelism": 2, "Delay": 10**9, "Order": "start-first"}),
        (["--stop-grace-period", "2s", "--stop-signal", "USR1", "-u", "1:2", "-w", "/x", "--hostname", "h", "-t", "--read-only",
          "--init", "i"], C,
         {"Image": "i", "Hostname": "h", "User": "1:2", "Dir": "/x", "StopSignal": "USR1", "StopGracePeriod": 2 * 10**9,
          "TTY": True, "ReadOnly": True, "Init": True}),
        (["--entrypoint", "a 'b c'", "i"], f"{C}.Command", ["a", "b c"]),
        (["--cap-add", "A", "--cap-add", "A", "--cap-drop", "B", "i"], f"{C}.CapabilityAdd", ["A"]),
        (["--dns", "1.1.1.1", "i"], f"{C}.DNSConfig", {"Nameservers": ["1.1.1.1"]}),
        (["--host", "a:1.2.3.4", "i"], f"{C}.Hosts", ["1.2.3.4 a"]),
        (["--log-driver", "json-file", "--log-opt", "max-size=1m", "i"], "TaskTemplate.LogDriver",
         {"Name": "json-file", "Options": {"max-size": "1m"}}),
        (["--secret", "s", "i"], f"{C}.Secrets",
         [{"SecretName": "s", "File": {"Name": "s", "UID": "0", "GID": "0", "Mode": 0o444}}]),
        (["--config", "source=c,target=/x,mode=0400", "i"], f"{C}.Configs",
         [{"ConfigName": "c", "File": {"Name": "/x", "UID": "0", "GID": "0", "Mode": 0o400}}]),
        (["--endpoint-mode", "dnsrr", "i"], "EndpointSpec.Mode", "dnsrr"),
        (["--detach=false", "--tty=true", "i"], f"{C}.TTY", True),
    ],
)  # fmt: skip
def test_create(argv, path, value):
    assert dig(make(*argv), path) == value


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--replicas", "x", "i"], "--replicas"),
        (["--replicas", "-1", "i"], "negative"),
        (["--mode", "global", "--replicas", "1", "i"], "--replicas goes with replicated"),
        (["--mode", "x", "i"], "--mode 'x'"),
        (["--env", "=x", "i"], "--env"),
        (["--env-file", "/none", "i"], "cannot read env file /none"),
        (["-p", "x", "i"], "--publish"),
        (["-p", "target=x", "i"], "--publish"),
        (["-p", "published=1,target=2,what=3", "i"], "'what'"),
        (["--mount", "type=bind,source=a,target=/b", "i"], "absolute path"),
        (["--mount", "type=x,target=/b", "i"], "type 'x'"),
        (["--mount", "target=/b,what=1", "i"], "unknown key 'what'"),
        (["--mount", "source=a", "i"], "target is required"),
        (["--mount", "type=tmpfs,target=/b,volume-nocopy", "i"], "volume options"),
        (["--mount", "target=/b", "--mount", "target=/b", "i"], "duplicate mount point /b"),
        (["--limit-memory", "lots", "i"], "--limit-memory"),
        (["--limit-cpu", "-1", "i"], "--limit-cpu"),
        (["--restart-condition", "never", "i"], "--restart-condition 'never'"),
        (["--restart-delay", "5", "i"], "--restart-delay"),
        (["--strategy", "x", "i"], "--strategy 'x'"),
        (["--placement-pref", "x", "i"], "--placement-pref"),
        (["--update-order", "x", "i"], "--update-order 'x'"),
        (["--secret", "source=s,x=1", "i"], "unknown key 'x'"),
        (["--config", "source=c,mode=999", "i"], "mode"),
        (["--no-healthcheck", "--health-cmd", "x", "i"], "--no-healthcheck"),
        (["--host", "a", "i"], "host:address"),
        (["--ulimit", "nofile", "i"], "--ulimit"),
        (["--entrypoint", "a 'b", "i"], "No closing quotation"),
    ],
)
def test_create_refused(argv, words):
    with pytest.raises(InvalidArgument) as caught:
        make(*argv)
    assert words in caught.value.message


def test_usage():
    with pytest.raises(click.UsageError):
        parsed("create", "--bogus", "i")
    with pytest.raises(click.UsageError):
        parsed("create")


def test_env_of_the_caller_is_passed_on(monkeypatch, tmp_path):
    monkeypatch.setenv("MINE", "here")
    (tmp_path / "f").write_text("# c\nA=file\nB='kept'\nMINE\nNONE\n")
    spec = make("--env-file", str(tmp_path / "f"), "-e", "A=1", "-e", "NONE", "i")
    assert dig(spec, f"{C}.Env") == ["A=1", "B='kept'", "MINE=here"] or dig(spec, f"{C}.Env") == [
        "B='kept'",
        "MINE=here",
        "A=1",
    ]


DNS = [{"Protocol": "udp", "TargetPort": 53, "PublishMode": "ingress", "PublishedPort": 53}]
OLD = make(
    "--name", "web", "--replicas", "2", "-e", "A=1", "-e", "B=2", "-l", "x=1", "-p", "8080:80", "-p", "53:53/udp",
    "--mount", "target=/a", "--mount", "target=/b", "--constraint", "node.role==worker", "--host", "h:1.2.3.4", "i", "arg",
)  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        ([], "", None),
        (["--image", "j"], f"{C}.Image", "j"),
        (["--args", "a 'b c'"], f"{C}.Args", ["a", "b c"]),
        (["--replicas", "5"], "Mode", {"Replicated": {"Replicas": 5}}),
        (["--force"], "TaskTemplate.ForceUpdate", 1),
        (["--env-add", "A=9", "--env-add", "C=3"], f"{C}.Env", ["B=2", "A=9", "C=3"]),
        (["--env-rm", "A"], f"{C}.Env", ["B=2"]),
        (["--label-add", "y=2", "--label-rm", "x"], "Labels", {"y": "2"}),
        (["--container-label-rm", "nope"], f"{C}.Image", "i"),
        (["--publish-rm", "80"], "EndpointSpec.Ports", DNS),
        (["--publish-rm", "8080:80"], "EndpointSpec.Ports", DNS),
        (["--mount-rm", "/a"], f"{C}.Mounts", [{"Type": "volume", "Target": "/b"}]),
        (["--constraint-rm", "node.role==worker", "--constraint-add", "node.id==1"], "TaskTemplate.Placement.Constraints",
         ["node.id==1"]),
        (["--host-rm", "h:1.2.3.4"], f"{C}.Hosts", []),
        (["--limit-memory", "1g"], "TaskTemplate.Resources.Limits", {"MemoryBytes": 1 << 30}),
        (["--health-cmd", "x"], f"{C}.Healthcheck", {"Test": ["CMD-SHELL", "x"]}),
    ],
)  # fmt: skip
def test_update(argv, path, value):
    before = repr(OLD)
    spec = change(OLD, *argv)
    assert repr(OLD) == before
    if not path:
        assert spec == OLD
    else:
        assert dig(spec, path) == value


def test_a_global_service_has_no_replicas_to_set():
    with pytest.raises(InvalidArgument, match="runs on every node"):
        change(make("--mode", "global", "i"), "--replicas", "2")
