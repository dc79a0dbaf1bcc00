"""Builds that are left, fail, take too long or die with their daemon leave nothing; steps run with the limits asked for."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..containers.conftest import wait_until
from .conftest import BASE, BuildNode, entry, tar_of

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

CLUSTER = str(Path(sys.executable).with_name("cluster"))
ENDLESS = f"FROM {BASE}\nRUN echo begun && sleep 1000\n"


def first_output(builds: BuildNode, text: str, word: bytes, **query: object) -> object:
    """A build's connection, once the build has said ``word``."""
    connection = builds.begin(tar_of({"Dockerfile": text.encode()}), **query)
    response = connection.getresponse()
    seen = b""
    while word not in seen:
        line = response.readline()
        assert line, seen
        seen += line
    return connection, response


def test_a_client_that_leaves_ends_its_build(builds: BuildNode) -> None:
    connection, response = first_output(builds, ENDLESS, b"begun\\n", t="never:1")  # type: ignore[misc]
    assert len(builds.node.out("ps", "-q").split()) == 1
    response.close()
    connection.close()
    wait_until(lambda: not builds.node.out("ps", "-aq"), "the step's container is gone")
    wait_until(lambda: not builds.left(), f"nothing is left: {builds.left()}")
    assert "never" not in builds.node.out("images")


def test_a_client_that_leaves_while_it_sends(builds: BuildNode) -> None:
    connection = builds.connection()
    connection.putrequest("POST", "/v1.45/build")
    connection.putheader("Content-Type", "application/x-tar")
    connection.putheader("Content-Length", "1000000")
    connection.endheaders(tar_of({"Dockerfile": ENDLESS.encode()})[:512])
    wait_until(lambda: bool(builds.left()), "the context's directory is there")
    connection.close()
    wait_until(lambda: not builds.left(), f"nothing is left: {builds.left()}")


def test_a_build_may_be_given_a_time(builds: BuildNode) -> None:
    built = builds.build(ENDLESS, timeout=2)
    assert "took longer than the 2 s" in built.error
    assert builds.node.out("ps", "-aq") == ""


def test_a_step_that_fails_leaves_nothing_unless_asked(builds: BuildNode) -> None:
    built = builds.build(f"FROM {BASE}\nRUN echo no; exit 7\n")
    assert built.lines[-1]["errorDetail"]["code"] == 7
    assert built.error == "The command '/bin/sh -c echo no; exit 7' returned a non-zero code: 7"
    assert builds.node.out("ps", "-aq") == ""
    builds.build(f"FROM {BASE}\nRUN exit 8\n", rm="0")
    assert len(builds.node.out("ps", "-aq").split()) == 1


def test_a_daemon_that_dies_in_a_step(builds: BuildNode) -> None:
    connection, _ = first_output(builds, ENDLESS.replace("RUN", "WORKDIR /w\nRUN"), b"begun\\n")  # type: ignore[misc]
    builds.node.kill()
    connection.close()
    builds.node.start()
    wait_until(lambda: not builds.node.out("ps", "-aq"), "the step's container is gone")
    wait_until(lambda: not builds.left(), f"nothing is left: {builds.left()}")
    again = builds.build(ENDLESS.replace("RUN echo begun && sleep 1000", "WORKDIR /w\nRUN true"))
    assert again.text.count("Using cache") == 1, again.text


def test_a_daemon_that_is_asked_to_end_in_a_step(builds: BuildNode) -> None:
    connection, response = first_output(builds, ENDLESS, b"begun\\n")  # type: ignore[misc]
    builds.node.kill(15)
    response.close()
    connection.close()
    builds.node.start()
    wait_until(lambda: not builds.node.out("ps", "-aq"), "the step's container is gone")
    wait_until(lambda: not builds.left(), f"nothing is left: {builds.left()}")
    said = builds.node.errors.read_text()
    assert "Traceback" not in said, said[-3000:]


def test_limits_and_network_reach_the_step(builds: BuildNode) -> None:
    text = (
        f"FROM {BASE}\nRUN cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; "
        "ulimit -n; cat /etc/hosts; ls /sys/class/net; df -k /dev/shm\n"
    )
    ulimits = json.dumps([{"Name": "nofile", "Soft": 77, "Hard": 77}])
    built = builds.build(
        text, memory=64 << 20, memswap=-1, ulimits=ulimits, extrahosts="h:10.1.2.3", networkmode="none", shmsize=1 << 20
    )
    assert built.error == ""
    lines = built.text.splitlines()
    assert str(64 << 20) in lines
    assert "77" in lines
    assert "10.1.2.3\th" in built.text
    assert "eth0" not in built.text
    assert " 1024 " in built.text


def test_secrets_come_by_our_own_command_and_stay_out_of_the_image(builds: BuildNode, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret-word")
    (tmp_path / "Dockerfile").write_text(
        f"FROM {BASE}\nRUN --mount=type=secret,id=t,required=true --mount=type=secret,id=e,env=TOKEN "
        "test $(wc -c < /run/secrets/t) = 11 && test $TOKEN = other && stat -c %a /run/secrets/t\n"
    )
    command = [CLUSTER, "-H", f"unix://{builds.node.socket}", "build", "-t", "secret:1", str(tmp_path)]
    given = ["--secret", f"id=t,src={tmp_path}/token", "--secret", "id=e,env=WORD"]
    done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=60, env={**os.environ, "WORD": "other"})
    assert done.returncode == 0, done
    assert "\n400\n" in done.stdout
    saved = builds.node.docker("history", "--no-trunc", "secret:1").stdout + builds.node.docker("inspect", "secret:1").stdout
    assert "s3cret" not in saved
    assert "run" not in builds.node.out("run", "--rm", "secret:1", "ls", "/").split()
    without = subprocess.run([*command, "--no-cache"], capture_output=True, text=True, timeout=60)
    assert without.returncode == 1
    assert "secret 't' is required and was not given" in without.stderr


HOSTILE = {
    "climbs": entry("../../canary", tarfile.REGTYPE, data=b"x"),
    "absolute": entry("/../canary", tarfile.REGTYPE, data=b"x"),
    "link": entry("l", tarfile.SYMTYPE, "/tmp/bt-no-such-canary") + entry("l/canary", tarfile.REGTYPE, data=b"x"),
    "hard": entry("h", tarfile.LNKTYPE, "../../../../../../../etc/passwd"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_context_reaches_nothing_outside(name: str, builds: BuildNode) -> None:
    dockerfile = entry("Dockerfile", tarfile.REGTYPE, data=f"FROM {BASE}\nCOPY . /all\n".encode())
    built = builds.build(HOSTILE[name] + dockerfile + b"\0" * 1024)
    assert not Path("/tmp/bt-no-such-canary").exists()
    assert not (builds.node.root / "canary").exists()
    assert not (builds.node.root / "data" / "canary").exists()
    # Through a link a file lands where a process in the context would see it: inside.
    assert built.status == (200 if name == "link" else 400)


def test_links_in_a_context_and_an_image_are_followed_inside_only(builds: BuildNode, tmp_path: Path) -> None:
    secret = tmp_path / "host-file"
    secret.write_text("of the host")
    context = (
        entry("to-host", tarfile.SYMTYPE, str(secret))
        + entry("up", tarfile.SYMTYPE, "../../../../../../../../../../etc")
        + entry("Dockerfile", tarfile.REGTYPE, data=f"FROM {BASE}\nCOPY to-host /x\n".encode())
        + entry("Second", tarfile.REGTYPE, data=f"FROM {BASE}\nCOPY up/passwd /x\n".encode())
        + entry("Third", tarfile.REGTYPE, data=f"FROM {BASE}\nRUN --mount=source=to-host,target=/m cat /m\n".encode())
        + entry("Fourth", tarfile.REGTYPE, data=f"FROM {BASE}\nRUN ln -s {tmp_path} /out\nCOPY Second /out/\n".encode())
    )
    for name in ("Dockerfile", "Second", "Third"):
        built = builds.build(context, dockerfile=name)
        assert "No such file" in built.error or "does not exist" in built.error, (name, built.error)
        assert "of the host" not in built.text
    assert builds.build(context, dockerfile="Fourth").error == ""
    assert [path.name for path in tmp_path.iterdir()] == ["host-file"]


def test_builds_side_by_side_and_a_base_that_is_removed_meanwhile(builds: BuildNode) -> None:
    builds.node.docker("tag", BASE, "gone:1")
    connection, response = first_output(builds, "FROM gone:1\nRUN echo begun; sleep 1; echo x > /x\n", b"begun\\n", t="kept:1")  # type: ignore[misc]
    builds.node.docker("rmi", "gone:1")
    with ThreadPoolExecutor(4) as pool:
        texts = [f"FROM {BASE}\nRUN echo same > /same\nRUN echo {number} > /n\n" for number in range(4)]
        results = list(pool.map(builds.build, texts))
    assert [one.error for one in results] == [""] * 4
    rest = response.read()
    connection.close()
    assert b"Successfully tagged kept:1" in rest
    assert builds.node.out("run", "--rm", "kept:1", "cat", "/x") == "x"


def test_the_cache_outlives_the_daemon_until_it_is_pruned(builds: BuildNode) -> None:
    text = f"FROM {BASE} AS one\nRUN echo 1 > /1\nFROM {BASE}\nCOPY --from=one /1 /2\n"
    first = builds.build(text, t="cached:1")
    builds.node.docker("rmi", "cached:1")
    builds.node.kill(15)
    builds.node.start()
    again = builds.build(text, t="cached:1")
    assert again.id == first.id
    assert again.text.count("Using cache") == 2
    assert builds.node.out("run", "--rm", "cached:1", "cat", "/2") == "1"
    builds.node.docker("rmi", "cached:1")
    usage = builds.node.call("GET", "/v1.44/system/df")["BuildCache"]
    assert usage[0]["Description"] == "/bin/sh -c echo 1 > /1"
    assert [row["Size"] for row in usage] == [2, 2]
    assert "Build Cache" in builds.node.out("system", "df")
    pruned = builds.node.call("POST", "/build/prune")
    assert len(pruned["CachesDeleted"]) == 2
    assert pruned["SpaceReclaimed"] > 0
    assert builds.build(text).text.count("Using cache") == 0


def test_a_cache_from_an_image_is_taken(builds: BuildNode) -> None:
    text = f"FROM {BASE}\nRUN date +%N > /stamp\nENV A=b\n"
    first = builds.build(text, t="source:1")
    builds.node.call("POST", "/build/prune")
    assert builds.build(text).id != first.id
    builds.node.call("POST", "/build/prune")
    again = builds.build(text, cachefrom=json.dumps(["source:1", "absent:1"]))
    assert again.text.count("Using cache") == 2
    builds.node.docker("rmi", "source:1")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"version": "2"}, "DOCKER_BUILDKIT=0"),
        ({"squash": "1"}, "squash is refused"),
        ({"outputs": '[{"Type":"local"}]'}, "DOCKER_BUILDKIT=0"),
        ({"remote": "https://example.invalid/x.git"}, "a remote context"),
        ({"t": "UPPER"}, "UPPER"),
        ({"buildargs": "[]"}, "buildargs"),
        ({"target": "nope"}, "failed to reach build target nope"),
        ({"dockerfile": "absent"}, "Cannot locate specified Dockerfile: absent"),
        ({"platform": "windows/amd64"}, "platform"),
        ({"memory": "x"}, "memory"),
    ],
)
def test_what_is_refused_before_it_begins(builds: BuildNode, query: dict[str, str], words: str) -> None:
    built = builds.build(f"FROM {BASE}\n", **query)
    assert built.status == 400, built
    assert words in built.error


def test_a_session_of_buildkit_is_told_what_to_set(builds: BuildNode) -> None:
    assert "DOCKER_BUILDKIT=0" in builds.node.call("POST", "/session")["message"]
    environ = {**os.environ, "DOCKER_HOST": f"unix://{builds.node.socket}"}
    environ.pop("DOCKER_BUILDKIT", None)
    ping = builds.connection()
    ping.request("GET", "/_ping")
    assert ping.getresponse().headers["Builder-Version"] == "1"
    ping.close()
    # Without being told anything the client takes the classic builder, because the daemon says so.
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    done = subprocess.run(
        ["docker", "build", "-"], input=f"FROM {BASE}\n".encode(), capture_output=True, timeout=60, env=environ
    )
    assert done.returncode == 0, done
    assert b"Successfully built" in done.stdout


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 9))])
def test_clients_that_leave_at_any_moment(builds: BuildNode, seed: int) -> None:
    """Builds cut after a random part of their lines: nothing is left of any."""
    text = (
        f"FROM {BASE} AS one\nRUN echo 1 > /1\nCOPY many /many\nFROM {BASE}\nWORKDIR /w\nCOPY --from=one /many /m\n"
        "RUN --mount=type=cache,target=/c --mount=target=/ctx,rw --mount=from=one,target=/one echo x > /c/x && echo 2\n"
        "ADD many/f1 /x\nRUN sleep 0.05; echo 3\nCMD x\n"
    )
    context = tar_of({"Dockerfile": text.encode(), **{f"many/f{number}": b"x" * 1000 for number in range(300)}})
    generator = random.Random(seed)
    moments = [generator.randrange(1, 26) for _ in range(6)]
    for lines in moments:
        connection = builds.begin(context, nocache=1)
        response = connection.getresponse()
        for _ in range(lines):
            response.readline()
        response.close()
        connection.close()
    wait_until(lambda: not builds.node.out("ps", "-aq"), f"no container is left (after {moments} lines)")
    wait_until(lambda: not builds.left(), f"nothing is left (after {moments} lines): {builds.left()}")
    mounts = subprocess.run(builds.node.inside("cat", "/proc/mounts"), capture_output=True, text=True, check=True).stdout
    assert str(builds.node.root / "run" / "builds") not in mounts
    assert builds.build(context).error == ""
