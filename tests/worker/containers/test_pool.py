"""The warm pool is invisible but for the time it saves: same container, same errors, nothing left of what nobody took."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.containers import pool
from worker.kernel import process

from .conftest import CONTROLLERS, Node, wait_until, zygote_of

pytestmark = pytest.mark.root
SIZE = 2
TICKS = os.sysconf("SC_CLK_TCK")

LOOK = r"""
grep -v -e "^[TPN].*[Pps]id:" -e "^Pid:" -e ctxt -e SigQ -e ^Vm -e ^Rss -e _allowed /proc/self/status
for ns in /proc/self/ns/*; do echo $ns; done
cut -d" " -f 4- /proc/self/mountinfo | sed -e 's/[0-9a-f]\{64\}/ID/g' -e 's/sandbox-[0-9a-f]*/ID/g' -e 's,/tmp/[^ ]*,HOST,g' |
  sed -e 's/lowerdir[^ ]*//' -e 's/ master:[0-9]*//' -e 's,/covey-test[^ ]*,GROUP,' | sort
cat /proc/self/cgroup | sed 's/[0-9a-f]\{64\}/ID/'
ls -ln /dev /dev/pts | sed 's/ [A-Z][a-z][a-z] .*[0-9] / /'
for one in net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range kernel/hostname; do cat /proc/sys/$one; done
ulimit -a; umask; pwd; id; env | grep -v -e ^HOSTNAME -e ^container
cat /proc/self/oom_score_adj
cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max devices/devices.list cpu/cpu.shares
ip -o addr | sed -e 's/if[0-9]*//g' -e 's/^[0-9]*: //' -e 's/inet 172[^ ]*/inet ADDR/' -e 's/brd [0-9.]*/brd ADDR/'
ip route | sed 's/src [0-9.]*/src ADDR/'
ls -l /proc/self/fd | wc -l
cat /proc/keys /proc/kcore 2>&1 | head -c 100; touch /proc/sys/x /sys/x 2>&1; mount -t tmpfs x /mnt 2>&1
"""


def ready(node: Node) -> list[Path]:
    """The directories of the sandboxes that wait."""
    pool = node.root / "run" / "pool"
    return [one for one in pool.iterdir() if (one / "shim.sock").exists()] if pool.exists() else []


def filled(node: Node) -> list[Path]:
    return wait_until(lambda: len(ready(node)) == SIZE and ready(node), f"the pool is full: {node.errors}")


def age(node: Node, ref: str) -> float:
    """Seconds by which the container's process is older than its start."""
    pid = node.state(ref)["Pid"]
    started = process.start_time(pid)
    assert started is not None
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - started / TICKS


def test_a_usual_container_takes_a_process_that_was_there_and_the_pool_fills_again(node: Node) -> None:
    node.docker("run", "--rm", "busybox", "true")
    before = {one.name for one in filled(node)}
    time.sleep(0.2)
    node.run("--name", "usual", "-m", "64m", "-v", "/tmp:/host:ro", "-e", "A=b", "busybox", "sleep", "100")
    node.run("--name", "unusual", "--sysctl", "net.ipv4.ip_forward=1", "busybox", "sleep", "100")
    assert age(node, "usual") - age(node, "unusual") > 0.2, "the usual one's process is no older than the other's"
    left = {one.name for one in filled(node)}
    assert len(before - left) == 1, f"{before} before, {left} after: one was to be taken"
    assert node.out("exec", "unusual", "cat", "/proc/sys/net/ipv4/ip_forward") == "1"


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-m", "100m", "--cpus", "0.5", "--pids-limit", "50", "--memory-swap", "200m"),
        ("--user", "1000:1000", "-w", "/tmp", "-e", "X=1", "--ulimit", "nofile=100:200"),
        ("--read-only", "--tmpfs", "/tmp:size=1m", "-v", "named:/data", "--cap-add", "NET_ADMIN", "--cap-drop", "CHOWN"),
        ("--network", "other", "--init", "--oom-score-adj", "100", "--domainname", "example.org"),
        ("--network", "none", "--security-opt", "no-new-privileges"),
    ],
    ids=("default", "limits", "user", "mounts", "network", "none"),
)
def test_with_and_without_a_sandbox_a_container_is_the_same(node: Node, options: tuple[str, ...]) -> None:
    """Without: below another cgroup parent, for which there are no sandboxes."""
    node.docker("network", "create", "other")
    try:
        node.docker("run", "--rm", "busybox", "true")
        before = {one.name for one in filled(node)}
        everywhere = ("--hostname", "same", *options)
        warm = node.docker("run", "--name", "warm", *everywhere, "busybox", "sh", "-c", LOOK, code=None)
        assert "none" in options or {one.name for one in filled(node)} != before, "no sandbox was taken"
        cold_options = ("--cgroup-parent", f"{node.cgroup}/cold", *everywhere)
        before = {one.name for one in filled(node)}
        cold = node.docker("run", "--name", "cold", *cold_options, "busybox", "sh", "-c", LOOK, code=None)
        assert {one.name for one in ready(node)} == before, "a sandbox was taken"
        assert warm.stdout.splitlines() == cold.stdout.splitlines()
        assert (warm.returncode, warm.stderr) == (cold.returncode, cold.stderr)
        assert len(warm.stdout) > 2000, warm.stdout
    finally:
        node.clear()
        node.docker("network", "rm", "other")
        for controller in CONTROLLERS.iterdir():
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(controller / node.cgroup[1:] / "cold")


def test_errors_are_the_same(node: Node) -> None:
    node.docker("run", "--rm", "busybox", "true")
    for arguments, code in ((("nosuch",), 127), (("/etc",), 126)):
        filled(node)
        warm = node.docker("run", "--rm", "busybox", *arguments, code=code).stderr
        cold = node.docker("run", "--rm", "--sysctl", "net.ipv4.ip_forward=1", "busybox", *arguments, code=code).stderr
        assert warm == cold
    filled(node)
    node.docker("run", "--rm", "-v", "/no/such/file:/x", "busybox", "true")
    os.rmdir("/no/such/file")
    os.removedirs("/no/such")


def test_more_starts_than_sandboxes(node: Node) -> None:
    filled(node)
    with ThreadPoolExecutor(8) as threads:
        outs = list(threads.map(lambda number: node.out("run", "--rm", "busybox", "echo", str(number)), range(16)))
    assert outs == [str(number) for number in range(16)]
    filled(node)


def test_a_sandbox_that_died_is_no_error(node: Node) -> None:
    node.docker("run", "--rm", "busybox", "true")
    for one in filled(node):
        shim = re.search(r'"pid": (\d+)', (one / "shim.json").read_text())
        assert shim is not None
        os.kill(int(shim.group(1)), signal.SIGKILL)
    assert [node.out("run", "--rm", "busybox", "echo", "up") for _ in range(SIZE + 1)] == ["up"] * (SIZE + 1)
    filled(node)


def test_sandboxes_end_with_their_daemon(node: Node) -> None:
    """Also when it is killed, and with their cgroups and links; the next daemon has its own."""
    node.docker("run", "--rm", "busybox", "true")
    names = {one.name for one in filled(node)}
    groups = [CONTROLLERS / "pids" / node.cgroup[1:] / name / "cgroup.procs" for name in names]
    pids = [int(wait_until(lambda group=group: group.exists() and group.read_text(), f"one in {group}")) for group in groups]
    node.kill(signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the sandboxes' processes are gone")
    for controller in CONTROLLERS.iterdir():
        below = controller / node.cgroup[1:]
        wait_until(
            lambda b=below: not b.is_dir() or not names & {one.name for one in b.iterdir()}, f"groups in {below} are gone"
        )
    node.start()
    assert not names & {one.name for one in filled(node)}
    assert zygote_of(node.root)


def test_a_running_container_of_the_pool_outlives_daemon_and_zygote(node: Node) -> None:
    node.docker("run", "--rm", "busybox", "true")
    filled(node)
    node.run("--name", "stays", "busybox", "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.1; done")
    before = node.state("stays")
    zygote = zygote_of(node.root)
    node.kill(signal.SIGKILL)
    os.kill(zygote, signal.SIGKILL)
    node.start()
    after = node.state("stays")
    assert (after["Status"], after["Pid"], after["StartedAt"]) == ("running", before["Pid"], before["StartedAt"])
    assert node.out("exec", "stays", "echo", "ok") == "ok"
    node.docker("stop", "stays")
    assert node.state("stays")["ExitCode"] == 9


def test_what_cannot_be_removed_for_want_of_a_descriptor_is_removed_when_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "sandbox-1"
    directory.mkdir()
    really, asked = shutil.rmtree, []

    def rmtree(path: Path) -> None:
        asked.append(path)
        if len(asked) < 3:
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        really(path)

    monkeypatch.setattr(pool.shutil, "rmtree", rmtree)
    pool._remove(directory)
    assert not directory.exists()
    assert len(asked) == 3
