"""Log drivers as ``docker logs`` sees them: json-file, local, none; attributes, rotation, blocking and non-blocking."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from covey.errors import InvalidArgument
from worker.containers import log_options
from worker.containers.record import Container

from .conftest import Node, wait_until
from .states_and_verbs import Caller

DRIVERS = ("json-file", "local")


def directory(node: Node, ref: str) -> Path:
    return node.root / "data" / "containers" / str(node.inspect(ref)["Id"])


@pytest.mark.root
@pytest.mark.parametrize("driver", DRIVERS)
def test_reading_back(node: Node, driver: str) -> None:
    script = "echo one; sleep 0.05; echo two >&2; sleep 0.05; echo three; printf rest"
    node.docker("run", "--name", "logged", "--log-driver", driver, "busybox", "sh", "-c", script)
    done = node.docker("logs", "logged")
    assert (done.stdout, done.stderr) == ("one\nthree\nrest", "two\n")
    assert node.docker("logs", "--tail", "2", "logged").stdout == "three\nrest"
    stamped = node.docker("logs", "-t", "logged")
    stamps = [line.split()[0] for line in (*stamped.stdout.splitlines(), *stamped.stderr.splitlines())]
    assert len(stamps) == 4
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamp) for stamp in stamps)
    two = re.match(r"(\S+) two", stamped.stderr)
    assert two is not None
    assert node.docker("logs", "--until", two[1], "logged").stdout == "one\n"
    assert node.docker("logs", "--since", two[1], "logged").stdout == "three\nrest"
    assert node.docker("logs", "--tail", "0", "logged").stdout == ""


@pytest.mark.root
@pytest.mark.parametrize("driver", DRIVERS)
def test_following_to_the_end_over_rotations(node: Node, driver: str) -> None:
    options = ["--log-driver", driver, "--log-opt", "max-size=20k", "--log-opt", "max-file=4", "--log-opt", "compress=true"]
    script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); [ $((i % 500)) -eq 0 ] && sleep 0.3; done; exit 0"
    node.run("--name", "follow", *options, "busybox", "sh", "-c", script)
    assert node.out("logs", "-f", "follow").splitlines() == [f"line {number}" for number in range(3000)]
    kept = node.out("logs", "follow").splitlines()
    assert kept == [f"line {number}" for number in range(3000 - len(kept), 3000)]
    base = directory(node, "follow") / ("local-logs" if driver == "local" else ".")
    packed = wait_until(lambda: sorted(path.name for path in base.glob("*.gz")), "older files are compressed")
    assert all(re.search(r"\.\d\.gz$", name) for name in packed)
    assert node.out("logs", "--tail", "700", "follow").splitlines() == kept[-700:]


@pytest.mark.root
def test_the_local_driver_rotates_and_compresses_unasked(node: Node) -> None:
    node.docker("run", "--name", "unasked", "--log-driver", "local", "busybox", "true")
    shown = node.inspect("unasked")
    assert (shown["HostConfig"]["LogConfig"], shown["LogPath"]) == ({"Type": "local", "Config": {}}, "")
    assert log_options.rotation("local", {}) == (20 * 1024 * 1024, 5, True)
    assert (directory(node, "unasked") / "local-logs" / "container.log").exists()


@pytest.mark.root
def test_no_log(node: Node) -> None:
    assert node.docker("run", "--name", "quiet", "--log-driver", "none", "busybox", "echo", "seen").stdout == "seen\n"
    assert "configured logging driver does not support reading" in node.docker("logs", "quiet", code=1).stderr
    assert Caller(node.socket).call("GET", "/containers/quiet/logs?stdout=1").status == 501
    assert Caller(node.socket).call("POST", "/containers/quiet/attach?logs=1&stdout=1", upgrade=True).status == 501
    assert not list(directory(node, "quiet").glob("*.log"))


@pytest.mark.root
@pytest.mark.parametrize("driver", DRIVERS)
def test_labels_environment_and_tag_are_details(node: Node, driver: str) -> None:
    options = ["labels=a,none", "labels-regex=^x", "env=E", "tag={{.Name}}/{{.ImageName}}"]
    node.docker(
        *("run", "--name", "detailed", "--log-driver", driver),
        *(word for option in options for word in ("--log-opt", option)),
        *("-l", "a=1 2", "-l", "xy=3", "-l", "b=4", "-e", "E=5", "-e", "F=6", "busybox", "echo", "hi"),
    )
    assert node.out("logs", "--details", "detailed") == "E=5,a=1+2,tag=detailed%2Fbusybox,xy=3 hi"


@pytest.mark.root
def test_a_ring_drops_the_newest_and_never_holds_up_the_container(node: Node) -> None:
    """The writer is stopped, as a disk that hangs would stop it."""
    options = ["--log-opt", "mode=non-blocking", "--log-opt", "max-buffer-size=64k"]
    script = "echo first; while ! test -f /go; do sleep 0.02; done; seq 1 200000; echo done > /done; sleep 100"
    node.run("--name", "ring", *options, "busybox", "sh", "-c", script)
    wait_until(lambda: node.out("logs", "ring") == "first", "the writer writes")
    writer = writer_of(node, "ring")
    os.kill(writer, signal.SIGSTOP)
    try:
        node.docker("exec", "ring", "touch", "/go")
        wait_until(lambda: node.docker("exec", "ring", "test", "-f", "/done", code=None).returncode == 0, "all is printed")
        said = statistics(node, "ring")
        assert said["log_stats"]["dropped_entries"] > 1000
    finally:
        os.kill(writer, signal.SIGCONT)
    wait_until(lambda: len(node.out("logs", "ring").splitlines()) > 100, "what was kept is written")
    kept = [int(line) for line in node.out("logs", "ring").splitlines()[1:]]
    assert kept == list(range(1, len(kept) + 1)), "the oldest are kept, in order"
    assert len(kept) + said["log_stats"]["dropped_entries"] == 200_000


@pytest.mark.root
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_ring_that_is_kept_up_with_loses_nothing_at_the_end(node: Node, driver: str) -> None:
    options = ["--log-driver", driver, "--log-opt", "mode=non-blocking", "--log-opt", "max-buffer-size=4m"]
    for _ in range(3):
        node.docker("run", "--name", "kept", *options, "busybox", "seq", "1", "5000")
        assert node.out("logs", "kept").split() == [str(number) for number in range(1, 5001)]
        node.docker("rm", "kept")


@pytest.mark.root
def test_a_ring_outlives_its_writer(node: Node) -> None:
    node.run("--name", "ring", "--log-opt", "mode=non-blocking", "busybox", "sh", "-c", "while :; do echo x; sleep 0.02; done")
    wait_until(lambda: node.out("logs", "ring"), "the writer writes")
    first = writer_of(node, "ring")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: writer_of(node, "ring") not in (0, first), "another writer")
    before = len(node.out("logs", "ring").split())
    wait_until(lambda: len(node.out("logs", "ring").split()) > before, "it writes")
    assert node.state("ring")["Running"]


@pytest.mark.root
def test_a_ring_writer_ends_with_its_shim(node: Node) -> None:
    node.run("--name", "ring", "--log-opt", "mode=non-blocking", "busybox", "sh", "-c", "echo x; sleep 100")
    wait_until(lambda: node.out("logs", "ring"), "the writer writes")
    writer, shim = writer_of(node, "ring"), shim_of(node, "ring")
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{writer}").exists(), "the writer ends")
    wait_until(lambda: node.state("ring")["Status"] == "exited", "the container ends")
    assert node.out("logs", "ring") == "x"


def shim_of(node: Node, ref: str) -> int:
    place = node.root / "run" / "containers" / str(node.inspect(ref)["Id"])
    return int(json.loads((place / "shim.json").read_text())["pid"])


def writer_of(node: Node, ref: str) -> int:
    """The process that writes a non-blocking log, 0 while there is none."""
    done = subprocess.run(["ps", "--ppid", str(shim_of(node, ref)), "-o", "pid=,comm="], capture_output=True, text=True)
    return next((int(line.split()[0]) for line in done.stdout.splitlines() if line.split()[1] == "covey-log"), 0)


def statistics(node: Node, ref: str) -> dict[str, Any]:
    found: dict[str, Any] = Caller(node.socket).must("GET", f"/containers/{ref}/stats?stream=0&one-shot=1")
    return found


@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        ("syslog", {}, "logger: no log driver named 'syslog' is registered"),
        ("json-file", {"nope": "1"}, "unknown log opt 'nope' for json-file log driver"),
        ("local", {"nope": "1"}, "unknown log opt 'nope' for log driver local"),
        ("local", {"mode": "fast"}, "logger: logging mode not supported: fast"),
        ("json-file", {"max-buffer-size": "1m"}, "max-buffer-size option is only supported with 'mode=non-blocking'"),
        ("json-file", {"mode": "non-blocking", "max-buffer-size": "x"}, "error parsing option max-buffer-size: invalid size"),
        ("json-file", {"max-size": "0"}, "max-size must be a positive number"),
        ("json-file", {"max-file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"max-file": "many"}, "error parsing option max-file"),
        ("json-file", {"compress": "true"}, "compress cannot be true when max-file is less than 2 or max-size is not set"),
        ("local", {"max-file": "1"}, "compression cannot be enabled when max file count is 1"),
        ("local", {"compress": "maybe"}, "error parsing option compress"),
        ("json-file", {"labels-regex": "("}, "error parsing option labels-regex"),
        ("json-file", {"tag": "{{.Nope}}"}, "log opt tag: {{.Nope}} is none of {{.ID}}, {{.FullID}}"),
        ("json-file", {"tag": "{{upper .Name}}"}, "only plain fields"),
    ],
)  # fmt: skip
def test_refusals(driver: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        log_options.check({"Type": driver, "Config": options})
    assert words in refused.value.message


def test_sizes_are_dockers() -> None:
    """Of files in thousands, of memory in 1024s (go-units FromHumanSize and RAMInBytes)."""
    given = {"max-size": "10m", "max-file": "3", "mode": "non-blocking", "max-buffer-size": "4m"}
    container = Container(
        id="c" * 64, name="web", created=1.0, image_id="sha256:i", config={}, host_config={"LogConfig": {"Config": given}}
    )
    assert log_options.for_shim(container, "/log", "node") == {
        "path": "/log", "driver": "json-file", "max_size": 10_000_000, "max_file": 3, "ring": 4 << 20,
    }  # fmt: skip
    assert [log_options.size(text, 1000) for text in ("1", "2k", "1.5MB", "3GiB", "4 kb")] == [
        1,
        2000,
        1500000,
        3 * 10**9,
        4000,
    ]
