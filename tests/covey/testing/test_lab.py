"""The lab itself: machines are apart from this one, die whole, end with their maker; faults do what they say; nothing stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from covey.errors import CoveyError
from covey.testing import images, lab_commands, lab_remains
from covey.testing.lab import Lab
from covey.testing.lab_machine import LabError, Machine

pytestmark = pytest.mark.root


def wait(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return value


def alive(pid: int) -> bool:
    return lab_remains.start_time(pid) != 0


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine("solo", tmp_path / "solo")
    made.wait_ready()
    yield made
    made.kill()


def own_names(machine: Machine) -> str:
    script = "hostname; ls /sys/class/net; cat /proc/sys/kernel/random/boot_id"
    return subprocess.run(machine.inside("sh", "-c", script), capture_output=True, text=True, check=True).stdout


def test_a_machine_is_apart_from_this_one(machine: Machine) -> None:
    hostname, links, boot = own_names(machine).split()
    assert (hostname, links) == ("solo", "lo")
    assert boot != lab_remains.boot()
    pid = machine.spawn("sleeper", ["sleep", "60"], machine.directory / "log")
    assert [found["argv"] for found in machine.processes()] == [["sleep", "60"]]
    assert machine.process(pid)["ppid"] == 1
    assert os.readlink(f"/proc/{machine.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")


def test_killing_the_init_is_the_machines_death(machine: Machine, tmp_path: Path) -> None:
    script = "setsid sh -c 'setsid sleep 77 & exec sleep 77' & exec sleep 77"
    machine.spawn("family", ["sh", "-c", script], tmp_path / "log")
    wait(lambda: sum(found["argv"] == ["sleep", "77"] for found in machine.processes()) == 3, "three sleepers")
    namespace = os.readlink(f"/proc/{machine.pid}/ns/pid")
    machine.kill()
    assert not machine.alive
    assert not inside(namespace)
    with pytest.raises(LabError, match="solo is dead"):
        machine.running()


def inside(namespace: str) -> list[str]:
    """Processes in a PID namespace."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "ns" / "pid") == namespace:
                    found.append((entry / "cmdline").read_text())
            except OSError:
                continue
    return found


def test_orphans_are_reaped_and_ends_are_known(machine: Machine, tmp_path: Path) -> None:
    machine.spawn("parent", ["sh", "-c", "sleep 0.1 & exit 3"], tmp_path / "log")
    wait(lambda: not machine.processes(), "the orphan is reaped")
    assert machine.running() == {}
    assert os.waitstatus_to_exitcode(machine.ask("ended")["parent"]) == 3


def test_a_signal_goes_to_the_process_meant(machine: Machine, tmp_path: Path) -> None:
    pid = machine.spawn("one", ["sleep", "60"], tmp_path / "log")
    started = machine.process(pid)["start_time"]
    with pytest.raises(LabError, match="another's"):
        machine.signal(pid, signal.SIGKILL, started + 1)
    machine.signal(pid, signal.SIGKILL, started)
    wait(lambda: not machine.running(), "it has ended")


def test_what_a_machine_cannot_start_is_said(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="solo, spawn: FileNotFoundError"):
        machine.spawn("none", ["/no/such/program"], tmp_path / "log")


MAKER = """
import json, sys, time
from covey.testing.lab import Lab
lab = Lab(nodes=1, cluster=False, name=sys.argv[1])
lab.open()
print(json.dumps([node.machine.pid for node in lab] + [lab.switch.machine.pid]), flush=True)
time.sleep(60)
"""


def test_machines_end_with_the_process_that_made_them_and_the_next_lab_clears_the_rest() -> None:
    name = f"t{os.getpid()}"
    maker = subprocess.Popen([sys.executable, "-P", "-c", MAKER, name], stdout=subprocess.PIPE, text=True)
    try:
        assert maker.stdout is not None
        pids = json.loads(maker.stdout.readline())
        assert all(alive(pid) for pid in pids)
        assert lab_remains.owner_lives(lab_remains.record(name))
        with pytest.raises(LabError, match=f"owned by process {maker.pid}"):
            Lab(nodes=1, name=name).open()
        with pytest.raises(LabError, match=f"belongs to process {maker.pid}"):
            lab_commands.down(name)
    finally:
        maker.kill()
        maker.wait()
    wait(lambda: not any(alive(pid) for pid in pids), "the machines end")
    remains = lab_remains.directory_of(name)
    assert remains.exists()
    (row,) = [row for row in lab_commands.ps() if row["lab"] == name]
    assert row["state"] == "killed"
    assert name in lab_remains.sweep()
    assert not remains.exists()
    assert not cgroups(name)
    lab_remains.forget_base()


def cgroups(name: str) -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"*/covey-lab-{name}")) + list(Path("/sys/fs/cgroup").glob(f"covey-lab-{name}"))


def links() -> list[str]:
    return sorted(os.listdir("/sys/class/net"))


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(nodes=2) as made:
        yield made


def test_a_lab_shows_nothing_in_our_own_namespaces(lab: Lab) -> None:
    ours = Path("/proc/self/mountinfo").read_text()
    assert str(lab_remains.directory_of(lab.name)) not in ours
    assert not [name for name in links() if name.startswith(("port", "switch"))]
    assert lab.ready() == {"m1", "w1"}


def test_nodes_reach_each_other_until_one_is_cut_off(lab: Lab) -> None:
    worker, address = lab.node("w1"), lab.manager.address
    probe = ("sh", "-c", f"ping -c 1 -W 1 {address} >/dev/null 2>&1 || bash -c 'exec 3<>/dev/tcp/{address}/2377'")
    assert worker.run(*probe).returncode == 0
    lab.partition("w1")
    try:
        argv = ("timeout", "1", "bash", "-c", f"exec 3<>/dev/tcp/{address}/2377")
        assert worker.run(*argv).returncode == 124, "packets are lost, not refused"
        assert worker.run("cat", "/sys/class/net/eth0/carrier").stdout == "1\n", "the cable keeps its carrier"
        lab.wait_until(lambda: lab.ready() == {"m1"}, 10, "the manager misses w1")
        assert worker.client.get("/info")["Name"] == "w1", "inside the machine all goes on"
    finally:
        lab.heal()
    lab.wait_until(lambda: lab.ready() == {"m1", "w1"}, 10, "w1 is back")


def test_processes_are_found_killed_and_stopped_by_name(lab: Lab) -> None:
    manager = lab.manager
    pids = {process: manager.pid(process) for process in ("daemon", "manager", "etcd", "zygote")}
    assert len(set(pids.values())) == 4
    with pytest.raises(LabError, match="runs no etcd"):
        lab.node("w1").pid("etcd")
    with pytest.raises(LabError, match="a node has daemon, manager, etcd, zygote"):
        manager.kill_process("postman")

    def stopped() -> set[str]:
        return {name for name, pid in pids.items() if manager.machine.process(pid)["state"] == "T"}

    try:
        # A process stops thread by thread, a moment after the signal.
        manager.pause(processes=["etcd"])
        lab.wait_until(lambda: stopped() == {"etcd"}, 5, "etcd alone has stopped")
        manager.resume()
        manager.pause()
        lab.wait_until(lambda: stopped() == set(pids), 5, "all of them have stopped")
    finally:
        manager.resume()
    lab.wait_until(lambda: lab.ready() == {"m1", "w1"}, 10, "all is well again")
    with pytest.raises(LabError, match="runs already"):
        manager.start_daemon()


def test_a_machine_boots_again_with_its_disk_but_not_its_processes(lab: Lab) -> None:
    worker = lab.node("w1")
    kept, lost = worker.directory / "data" / "kept", worker.directory / "run" / "lost"
    kept.touch()
    lost.touch()
    boot = worker.run("cat", "/proc/sys/kernel/random/boot_id").stdout
    node_id = worker.client.get("/info")["Swarm"]["NodeID"]
    worker.kill()
    assert not worker.alive
    worker.restart()
    assert kept.exists()
    assert not lost.exists()
    assert worker.run("cat", "/proc/sys/kernel/random/boot_id").stdout != boot
    lab.wait_until(lambda: lab.ready() == {"m1", "w1"}, 10, "it is a node of the cluster again")
    assert worker.client.get("/info")["Swarm"]["NodeID"] == node_id


def test_what_does_not_come_is_told_with_what_the_cluster_knew(lab: Lab) -> None:
    with pytest.raises(TimeoutError) as told:
        lab.wait_until(lambda: len(lab.ready()) == 9, 0.2, "nine nodes are ready")
    for word in ("nine nodes are ready: not within 0.2 s", "machine w1", "w1 worker active ready", "-- m1 manager", "-- tasks"):
        assert word in str(told.value)


def test_the_client_beside_the_nodes(lab: Lab) -> None:
    with pytest.raises(LabError, match="fetch"):
        lab.fetch(f"http://{lab.manager.address}:81/")
    done = lab.run_in_client("ip", "-brief", "address", "show", "switch")
    assert "198.51.100.1/24" in done.stdout
    with pytest.raises(LabError, match="has no node 'w7': it has m1, w1"):
        lab.node("w7")


def test_an_image_is_loaded_everywhere_or_refused_with_the_reason(lab: Lab) -> None:
    lab.load_image(images.docker_archive("covey/lab:1", [images.busybox_rootfs_tar()]))
    for node in lab:
        assert node.client.get("/images/covey/lab:1/json")["RepoTags"] == ["covey/lab:1"]
    with pytest.raises((LabError, CoveyError)):
        lab.load_image(b"this is no archive", ["w1"])


def test_a_lab_that_cannot_come_up_leaves_nothing() -> None:
    before = (links(), mounts())
    lab = Lab(nodes=2, options=("--no-such-option",), name=f"u{os.getpid()}")
    with pytest.raises(LabError, match=r"(?s)its daemon has ended; its log ends: .*no-such-option"):
        lab.open()
    assert not lab_remains.directory_of(lab.name).exists()
    assert not cgroups(lab.name)
    assert (links(), mounts()) == before


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "..", "x" * 21])
def test_a_lab_with_an_impossible_name_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="lab name"):
        lab_remains.directory_of(name)


def test_the_supervised_lab_of_the_command_line() -> None:
    name = f"v{os.getpid()}"
    try:
        rows = lab_commands.up(name, 2, 1, "test")
        assert [(row["node"], row["role"], row["state"]) for row in rows] == [
            ("m1", "manager", "running"),
            ("w1", "worker", "running"),
        ]
        assert set(rows[0]["processes"]) == {"daemon", "manager", "etcd", "zygote"}
        with pytest.raises(LabError, match="is up"):
            lab_commands.up(name)
        lab_commands.kill(name, "w1", "daemon")
        assert "daemon" not in lab_commands.ps(name)[1]["processes"]
        lab_commands.start(name, "w1")
        lab_commands.partition(name, "w1")
        assert lab_commands.ps(name)[1]["cut"]
        lab_commands.heal(name)
        lab_commands.pause(name, "w1", seconds=0.2)
        assert lab_commands.ps(name)[1]["state"] == "paused"
        wait(lambda: lab_commands.ps(name)[1]["state"] == "running", "it continues by itself")
        lab_commands.kill(name, "w1")
        assert lab_commands.ps(name)[1]["state"] == "dead"
        with pytest.raises(LabError, match="no node 'w5'"):
            lab_commands.kill(name, "w5")
        owner = lab_remains.record(name)
        assert owner is not None
        os.kill(owner["pid"], signal.SIGKILL)
        wait(lambda: not alive(owner["pid"]), "its supervisor is dead")
        assert [row["state"] for row in lab_commands.ps(name)] == ["killed"]
        with pytest.raises(LabError, match="does not answer"):
            lab_commands.kill(name, "m1")
    finally:
        assert lab_commands.down(name)
    assert not lab_remains.directory_of(name).exists()
    assert not cgroups(name)
    assert not lab_commands.down(name)


def test_the_fixtures_of_the_plugin(pytester_folder: Path) -> None:
    (pytester_folder / "test_it.py").write_text(
        "def test_it(covey_lab):\n    lab = covey_lab(nodes=1)\n    assert lab.ready() == {'m1'}\n"
    )
    argv = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(pytester_folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=pytester_folder, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def pytester_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "users"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    return folder
