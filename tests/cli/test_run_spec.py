"""Options of ``cluster run`` → the body of a container's create."""

import json

import pytest

from cli import lazy, run
from cli.run_spec import container_body
from covey.errors import InvalidArgument


def body(*argv):
    params = lazy.command_of(run.app, "run").make_context("run", list(argv)).params
    flags = {name: list(value) if isinstance(value, tuple) else value for name, value in params.items()}
    return container_body(flags.pop("image"), flags.pop("words") or [], flags)


def dig(value, path):
    for step in path.split("."):
        value = value[step]
    return value


@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        (["i", "sh", "-c", "x"], "Cmd", ["sh", "-c", "x"]),
        (["i", "ls", "--rm", "-it"], "Cmd", ["ls", "--rm", "-it"]),
        (["--rm", "i", "--detach=false"], "Cmd", ["--detach=false"]),
        (["i"], "AttachStdout", True),
        (["-d", "i"], "AttachStdout", False),
        (["-i", "i"], "StdinOnce", True),
        (["-it", "i"], "Tty", True),
        (["--rm", "i"], "HostConfig.AutoRemove", True),
        (["-e", "A=1", "i"], "Env", ["A=1"]),
        (["--entrypoint", "", "i"], "Entrypoint", [""]),
        (["--entrypoint", "x y", "i"], "Entrypoint", ["x y"]),
        (["-p", "8080:80", "i"], "HostConfig.PortBindings", {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}),
        (["-v", "/a:/b:ro", "-v", "d:/d", "i"], "HostConfig.Binds", ["/a:/b:ro", "d:/d"]),
        (["-v", "/d", "i"], "Volumes", {"/d": {}}),
        (["--tmpfs", "/t:size=1m", "i"], "HostConfig.Tmpfs", {"/t": "size=1m"}),
        (["-m", "64m", "i"], "HostConfig.Memory", 64 << 20),
        (["--memory-swap", "-1", "i"], "HostConfig.MemorySwap", -1),
        (["--cpus", "1.5", "i"], "HostConfig.NanoCpus", 15 * 10**8),
        (["--pids-limit", "9", "i"], "HostConfig.PidsLimit", 9),
        (["--restart", "on-failure:3", "i"], "HostConfig.RestartPolicy", {"Name": "on-failure", "MaximumRetryCount": 3}),
        (["--ulimit", "nofile=1:2", "i"], "HostConfig.Ulimits", [{"Name": "nofile", "Soft": 1, "Hard": 2}]),
        (["--device", "/dev/a:/dev/b:r", "i"], "HostConfig.Devices",
         [{"PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "r"}]),
        (["--device", "/dev/a:rw", "i"], "HostConfig.Devices",
         [{"PathOnHost": "/dev/a", "PathInContainer": "/dev/a", "CgroupPermissions": "rw"}]),
        (["--cap-drop", "ALL", "--cap-add", "CHOWN", "i"], "HostConfig.CapAdd", ["CHOWN"]),
        (["--read-only", "i"], "HostConfig.ReadonlyRootfs", True),
        (["--init", "i"], "HostConfig.Init", True),
        (["-h", "box", "i"], "Hostname", "box"),
        (["-w", "/x", "-u", "1:2", "i"], "WorkingDir", "/x"),
        (["--stop-timeout", "3", "i"], "StopTimeout", 3),
        (["i"], "HostConfig.NetworkMode", "default"),
        (["--network", "host", "i"], "HostConfig.NetworkMode", "host"),
        (["--network", "n", "--network-alias", "a", "i"], "NetworkingConfig.EndpointsConfig", {"n": {"Aliases": ["a"]}}),
        (["--network", "n", "--network", "m", "i"], "NetworkingConfig.EndpointsConfig", {"n": {}, "m": {}}),
        (["--network", "n", "--ip", "10.0.0.9", "i"], "NetworkingConfig.EndpointsConfig",
         {"n": {"IPAMConfig": {"IPv4Address": "10.0.0.9"}}}),
        (["--log-driver", "none", "i"], "HostConfig.LogConfig", {"Type": "none", "Config": {}}),
        (["--health-cmd", "x", "i"], "Healthcheck", {"Test": ["CMD-SHELL", "x"]}),
        (["--sysctl", "a=1", "i"], "HostConfig.Sysctls", {"a": "1"}),
    ],
)  # fmt: skip
def test_run(argv, path, value):
    assert dig(body(*argv), path) == value


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--restart", "often", "i"], "--restart"),
        (["--restart", "on-failure:x", "i"], "number of times"),
        (["--restart", "always", "--rm", "i"], "--rm and --restart"),
        (["-m", "x", "i"], "--memory"),
        (["-v", "relative", "i"], "absolute"),
        (["-v", "a:b", "i"], "absolute target"),
        (["--network-alias", "a", "i"], "--network of your own"),
        (["--network", "name=n,x=1", "i"], "unknown key 'x'"),
        (["--security-opt", "seccomp=/none.json", "i"], "cannot read seccomp profile"),
        (["--env-file", "/none", "i"], "cannot read env file"),
    ],
)
def test_refused(argv, words):
    with pytest.raises(InvalidArgument) as caught:
        body(*argv)
    assert words in caught.value.message


def test_a_seccomp_profile_is_sent_whole(tmp_path):
    (tmp_path / "p.json").write_text('{\n "defaultAction": "SCMP_ACT_ALLOW"\n}')
    (option,) = dig(body("--security-opt", f"seccomp={tmp_path}/p.json", "i"), "HostConfig.SecurityOpt")
    assert json.loads(option.removeprefix("seccomp=")) == {"defaultAction": "SCMP_ACT_ALLOW"}


def test_what_is_not_asked_for_is_not_sent():
    assert set(body("i")["HostConfig"]) == {"PortBindings", "NetworkMode"}
