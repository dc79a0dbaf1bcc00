"""What a container's process is: identity, rights, limits, environment, program, exit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from worker.kernel import syscalls
from worker.runtime.capabilities import NAMES
from worker.runtime.errors import RuntimeFault

pytestmark = [pytest.mark.root, pytest.mark.asyncio]


def status(text: str) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def mask(*names: str) -> int:
    return sum(1 << NAMES.index(f"CAP_{name}") for name in names)


async def test_capability_sets(boxes):
    capabilities = {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN", "CAP_KILL"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_KILL"],
    }
    for user, permitted in (({"uid": 0}, mask("CHOWN", "KILL", "NET_RAW")), ({"uid": 1000}, mask("KILL"))):
        process = {"args": ["cat", "/proc/self/status"], "capabilities": capabilities, "user": {**user, "gid": 0}}
        seen = status((await boxes.run([], process=process)).out)
        assert int(seen["CapBnd"], 16) == mask("CHOWN", "KILL", "NET_RAW")
        assert int(seen["CapPrm"], 16) == permitted
        assert int(seen["CapAmb"], 16) == (0 if user["uid"] == 0 else mask("KILL")) or seen["CapAmb"]
        assert int(seen["CapInh"], 16) == mask("KILL")


async def test_all_capabilities_are_those_this_machine_has(boxes):
    """A privileged container on a machine whose root lacks some gets the rest."""
    process = {
        "args": ["cat", "/proc/self/status"],
        "capabilities": {name: list(NAMES) for name in ("bounding", "effective", "permitted")},
    }
    seen = status((await boxes.run([], process=process)).out)
    assert int(seen["CapEff"], 16) == syscalls.capget()[1]


async def test_no_capabilities_at_all(boxes):
    seen = status((await boxes.run([], process={"args": ["cat", "/proc/self/status"], "capabilities": None})).out)
    assert [int(seen[name], 16) for name in ("CapBnd", "CapPrm", "CapEff")] == [0, 0, 0]


@pytest.mark.parametrize("wanted", [True, False])
async def test_no_new_privileges(boxes, wanted):
    process = {"args": ["cat", "/proc/self/status"], "noNewPrivileges": wanted}
    seen = status((await boxes.run([], process=process)).out)
    assert seen["NoNewPrivs"] == str(int(wanted))


async def test_rlimits(boxes):
    limits = [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    result = await boxes.run([], process={"args": ["cat", "/proc/self/limits"], "rlimits": limits})
    lines = {line[:25].strip(): line[25:].split() for line in result.out.splitlines()}
    assert lines["Max open files"][:2] == ["100", "200"]
    assert lines["Max core file size"][:2] == ["0", "0"]


async def test_user_groups_and_umask(boxes):
    user = {"uid": 1000, "gid": 1001, "additionalGids": [7, 8], "umask": 0o077}
    result = await boxes.run([], process={"args": ["sh", "-c", "id -u; id -g; id -G; umask"], "user": user})
    assert result.out.split() == ["1000", "1001", "1001", "7", "8", "0077"]


async def test_a_user_can_open_its_output_again(boxes):
    process = {"args": ["sh", "-c", "echo one >/dev/stdout; echo two >/dev/stderr"], "user": {"uid": 1000, "gid": 1000}}
    result = await boxes.run([], process=process)
    assert (result.out, result.err) == ("one\n", "two\n")


async def test_environment_is_exactly_the_bundles(boxes):
    env = ["PATH=/bin", "A=b=c", "EMPTY=", "UMLAUT=ä"]
    result = await boxes.run([], process={"args": ["env"], "env": env})
    assert sorted(line for line in result.out.splitlines()) == sorted(env)


async def test_nothing_of_ours_is_open_or_set(boxes):
    result = await boxes.run([], process={"args": ["cat", "/proc/self/status"]})
    seen = status(result.out)
    assert [int(seen[name], 16) for name in ("SigIgn", "SigBlk")] == [0, 0]
    result = await boxes.run([], process={"args": ["ls", "/proc/self/fd"]})
    # The fourth is ls's own, on the directory it lists.
    assert result.out.split() == ["0", "1", "2", "3"]
    result = await boxes.sh("cat /proc/1/oom_score_adj; readlink /proc/1/fd/0")
    assert result.out.split() == ["0", "/dev/null"]


async def test_oom_score(boxes):
    result = await boxes.run([], process={"args": ["cat", "/proc/self/oom_score_adj"], "oomScoreAdj": 250})
    assert result.out == "250\n"


async def test_sysctl(boxes):
    sysctl = {"net.ipv4.ip_unprivileged_port_start": "42", "kernel.shm_rmid_forced": "1"}
    result = await boxes.sh(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced", linux={"sysctl": sysctl}
    )
    assert result.out.split() == ["42", "1"]
    assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip() != "42"


@pytest.mark.parametrize(
    ("args", "code", "exit_code", "words"),
    [
        (["no-such-program"], "not-found", 127, 'exec: "no-such-program": executable file not found in $PATH'),
        (["/no/such"], "not-found", 127, 'exec: "/no/such": no such file or directory'),
        (["/etc/not-a-program"], "not-executable", 126, 'exec: "/etc/not-a-program": permission denied'),
        (["/etc"], "not-executable", 126, "permission denied"),
    ],
)
async def test_programs_that_cannot_run(boxes, args, code, exit_code, words):
    box = await boxes.make(args)
    with pytest.raises(RuntimeFault) as caught:
        await box.shim.start()
    assert caught.value.code == code
    assert words in caught.value.message
    assert (await box.exit())["code"] == exit_code
    assert json.loads((box.directory / "exit.json").read_text())["exit_code"] == exit_code


@pytest.mark.parametrize("code", [0, 1, 42, 255])
async def test_exit_codes(boxes, code):
    result = await boxes.sh(f"exit {code}")
    assert (result.code, result.exit["signal"], result.exit["oom"]) == (code, None, False)


async def test_signals(boxes):
    box = await boxes.start(["sh", "-c", "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.05; done"])
    await box.logged("ready")
    await box.shim.kill(signal.SIGTERM)
    assert (await box.exit())["code"] == 9
    assert "got" in box.log.read_text()


async def test_killed_by_a_signal(boxes):
    box = await boxes.start(["sleep", "60"])
    await box.shim.kill(signal.SIGKILL)
    event = await box.exit()
    assert (event["code"], event["signal"]) == (137, 9)


async def test_killed_before_it_was_started(boxes):
    box = await boxes.make(["true"])
    await box.shim.kill(signal.SIGKILL)
    assert (await box.exit())["code"] == 137
    with pytest.raises(RuntimeFault, match="is exited, not created"):
        await box.shim.start()


async def test_seccomp(boxes, tmp_path):
    from worker.runtime.seccomp_compile import compiled_file

    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    }
    path = compiled_file(tmp_path / "cache", profile, [], os.uname().machine)
    for process in ({}, {"noNewPrivileges": True, "user": {"uid": 1000, "gid": 1000}}):
        result = await boxes.run(
            [],
            covey={"seccomp": {"path": str(path)}},
            process={"args": ["sh", "-c", "mkdir /tmp/x; grep Seccomp: /proc/self/status"], **process},
        )
        assert "Operation not supported" in result.err
        assert result.out.split() == ["Seccomp:", "2"]


async def test_dockers_profile_lets_a_shell_work(boxes, tmp_path):
    from worker.runtime.seccomp_compile import compiled_file

    reference = Path("/work/shared/reference/seccomp-default.json")
    if not reference.exists():
        pytest.skip(f"{reference} is not there")
    names = ["CAP_CHOWN", "CAP_SYS_CHROOT"]
    path = compiled_file(tmp_path / "cache", json.loads(reference.read_text()), names, os.uname().machine)
    result = await boxes.sh("echo works; unshare -m true", covey={"seccomp": {"path": str(path)}})
    assert result.out == "works\n"
    assert "Operation not permitted" in result.err
