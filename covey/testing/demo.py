"""The demo: a cluster of four machines, a stack on it, two things broken, and both healed, each step verified.

Run by scripts/demo as ``python -P -m covey.testing.demo STACK_FILE [--fast]``. It decides what is claimed; what
is not as claimed ends it with status 1, the claim, and what the cluster knew. It knows Covey by process and HTTP only.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from covey.errors import CoveyError
from covey.testing import images, lab_remains
from covey.testing.lab import Lab
from covey.testing.lab_machine import LabError
from covey.testing.lab_node import LabNode

T = TypeVar("T")

IMAGE = "covey/busybox:demo"
STACK = "hello"
WEB, COUNTER = f"{STACK}_web", f"{STACK}_counter"
REPLICAS = 3
PORT = 8080
RESTART_DELAY = 1.0
#: How long a cluster may take to move the tasks of a lost node, by the profile of its timers.
MOVED = {"test": 2.0, "default": 20.0}
#: A started web task is called running once its health check, every second, has passed.
HEALTHY = 4.0


class ClaimError(Exception):
    """Something was not as claimed."""


class Demo:
    """The steps in order; each prints one line with the time it took, and details below it."""

    def __init__(self, lab: Lab, stack_file: Path) -> None:
        self.lab = lab
        self.stack_file = stack_file

    # -- telling -------------------------------------------------------------------------------------------------------

    @contextmanager
    def step(self, text: str) -> Iterator[list[str]]:
        """A claim: printed with ✓ when the block ends well. Lines put in the list are printed below it."""
        details: list[str] = []
        live = sys.stdout.isatty()
        if live:
            say(f"  … {text}", end="")
        began = time.monotonic()
        try:
            yield details
        except (ClaimError, TimeoutError, LabError, CoveyError, OSError, subprocess.SubprocessError) as error:
            say(f"{_back(live)}  ✗ {text}")
            raise ClaimError(f"not as claimed: {text}\n{error}") from error
        say(f"{_back(live)}  ✓ {text:<72} {time.monotonic() - began:5.1f} s")
        for line in details:
            say(f"      {line}")

    def cluster(self, *arguments: str) -> str:
        """Run the ``cluster`` command against the manager; its output. Raises ClaimError with its words."""
        argv = [str(Path(sys.executable).with_name("cluster")), "-H", self.lab.manager.docker_host, *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)
        if done.returncode:
            raise ClaimError(f"cluster {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    # -- looking -------------------------------------------------------------------------------------------------------

    def places(self) -> dict[int, str]:
        """Slot → machine of the web service's running replicas."""
        names = self.lab.hostnames()
        return {task["Slot"]: names[task["NodeID"]] for task in self.lab.running(WEB)}

    def page_of(self, node: LabNode) -> str:
        """The page the node serves at the published port."""
        page = self.lab.fetch(f"http://{node.address}:{PORT}/")
        require(page.status == 200, f"{node.name} answered {page.status}: {page.text}")
        return page.text.strip()

    def wait(self, predicate: Callable[[], T | None], seconds: float, what: str) -> T:
        return self.lab.wait_until(predicate, seconds, what, poll=0.02)

    # -- the steps -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All of it."""
        self.form()
        self.deploy()
        self.fetch()
        self.kill_container()
        self.kill_machine()
        self.boot_again()
        self.remove()

    def form(self) -> None:
        with self.step("four machines are one cluster: 1 manager, 3 workers") as details:
            self.lab.open()
            table = self.cluster("node", "ls").splitlines()
            require(len(table) == 5, "cluster node ls does not list four nodes")
            details += table
        with self.step(f"image {IMAGE}, the distribution's busybox, is on all of them"):
            archive = images.docker_archive(IMAGE, [images.busybox_rootfs_tar()], {"Cmd": ["sh"]})
            self.lab.load_image(archive)
        with self.step("the manager is drained: it manages, the workers work"):
            self.cluster("node", "update", "--availability", "drain", "m1")

    def deploy(self) -> None:
        with self.step(f"cluster stack deploy -c {self.stack_file.name} {STACK}") as details:
            output = self.cluster("stack", "deploy", "-c", str(self.stack_file), STACK)
            details += output.strip().splitlines()
        with self.step("three replicas stand on three workers") as details:
            self.wait(lambda: len(self.lab.running(WEB)) == REPLICAS, 5, "three web replicas run")
            places = self.places()
            require(sorted(places.values()) == ["w1", "w2", "w3"], f"the replicas stand on {places}")
            details += self.cluster("service", "ps", WEB).splitlines()
        with self.step("the counter counts in its volume") as details:
            before = self.count()
            self.wait(lambda: self.count() > before, 5, f"the counter goes on from {before}")
            details.append(f"it has come to {self.count()}")

    def count(self) -> int:
        """The last number the counter wrote, read by a command in its container from the manager."""
        task = self.wait(lambda: self.lab.running(COUNTER), 5, "the counter runs")[0]
        container = task["Status"]["ContainerStatus"]["ContainerID"]
        output = self.cluster("exec", container, "cat", "/data/count")
        return int(re.sub(r"\D", "", output) or 0)

    def fetch(self) -> None:
        with self.step(f"the page comes from each replica, port {PORT} of its machine") as details:
            pages = {node.name: self.page_of(node) for node in self.lab.workers}
            details += [f"http://{node.address}:{PORT}/ ({node.name})  {pages[node.name]}" for node in self.lab.workers]
            require(len(set(pages.values())) == REPLICAS, f"the pages do not come from three containers: {pages}")

    def kill_container(self) -> None:
        victim = self.lab.running(WEB)[0]
        slot, pid = victim["Slot"], victim["Status"]["ContainerStatus"]["PID"]
        node = self.lab.node(self.lab.hostnames()[victim["NodeID"]])
        with self.step(f"{WEB}.{slot} on {node.name} is killed (kill -9 {pid}); its successor starts") as details:
            killed = time.monotonic()
            node.machine.signal(pid, signal.SIGKILL)
            successor = self.wait(lambda: self.successor(victim), RESTART_DELAY + 3, f"slot {slot} has a new task")
            took = time.monotonic() - killed
            require(took <= RESTART_DELAY + 1, f"it took {took:.2f} s")
            code = self.task(victim["ID"])["Status"]["ContainerStatus"].get("ExitCode")
            require(code == 128 + signal.SIGKILL, f"the history says exit code {code}, not 137")
            details.append(f"{took:.2f} s after, of which {RESTART_DELAY:g} s is the stack's restart delay; exit code {code}")
        with self.step("and is healthy") as details:
            self.wait(lambda: len(self.lab.running(WEB)) == REPLICAS, HEALTHY, "three web replicas run again")
            place = self.lab.node(self.places()[slot])
            details.append(f"http://{place.address}:{PORT}/ ({place.name})  {self.page_of(place)}")
            require(successor["ID"] in {task["ID"] for task in self.lab.running(WEB)}, "the successor was replaced itself")

    def successor(self, old: dict[str, Any]) -> dict[str, Any] | None:
        """The started task that took the slot of ``old``."""
        for task in self.lab.tasks(WEB):
            same = task["Slot"] == old["Slot"] and task["ID"] != old["ID"]
            if same and task["CreatedAt"] > old["CreatedAt"] and task["Status"]["State"] in ("starting", "running"):
                return task
        return None

    def task(self, task_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.lab.manager.client.get(f"/tasks/{task_id}")
        return found

    def kill_machine(self) -> None:
        victim = self.lab.node("w3")
        limit = MOVED[self.lab.profile]
        lost = [slot for slot, name in self.places().items() if name == victim.name]
        with self.step(f"machine {victim.name} is killed; its replica starts on another worker") as details:
            killed = time.monotonic()
            victim.kill()
            self.wait(lambda: self.moved(lost, victim), limit + 2, f"slots {lost} have tasks elsewhere")
            took = time.monotonic() - killed
            require(took <= limit, f"it took {took:.2f} s, more than {limit:g} s")
            details.append(f"{took:.2f} s after ({self.lab.profile} timers)")
        with self.step("three replicas are healthy again, on two workers") as details:
            self.wait(lambda: len(self.living()) == REPLICAS, HEALTHY, "three web replicas run on w1 and w2")
            details += self.cluster("service", "ps", WEB).splitlines()
            details += self.cluster("node", "ls").splitlines()
            for node in (self.lab.node("w1"), self.lab.node("w2")):
                details.append(f"http://{node.address}:{PORT}/ ({node.name})  {self.page_of(node)}")

    def moved(self, slots: Sequence[int], victim: LabNode) -> bool:
        names = self.lab.hostnames()
        started = {
            task["Slot"]
            for task in self.lab.tasks(WEB)
            if task["DesiredState"] == "running"
            and task["Status"]["State"] in ("starting", "running")
            and names[task["NodeID"]] != victim.name
        }
        return set(slots) <= started

    def living(self) -> dict[int, str]:
        return {slot: name for slot, name in self.places().items() if self.lab.node(name).alive}

    def boot_again(self) -> None:
        with self.step("machine w3 boots again and is ready; nothing of its past runs on it") as details:
            self.lab.node("w3").restart()
            self.wait(lambda: "w3" in self.lab.ready(), 15, "w3 is ready")
            self.wait(lambda: not self.containers(self.lab.node("w3")), 10, "w3 runs no containers")
            details += self.cluster("node", "ls").splitlines()
            require(len(self.living()) == REPLICAS, f"the replicas stand on {self.living()}")

    def containers(self, node: LabNode) -> list[str]:
        with node.connect() as client:
            return [found["Id"] for found in client.get("/containers/json", {"all": False})]

    def remove(self) -> None:
        with self.step(f"cluster stack rm {STACK} leaves no task and no container"):
            self.cluster("stack", "rm", STACK)
            self.wait(lambda: not self.lab.tasks(), 10, "no task is left")
            for node in self.lab:
                self.wait(lambda node=node: not self.everything(node), 10, f"no container is left on {node.name}")  # type: ignore[misc]

    def everything(self, node: LabNode) -> list[str]:
        with node.connect() as client:
            return [found["Id"] for found in client.get("/containers/json", {"all": True})]


def require(truth: bool, otherwise: str) -> None:
    if not truth:
        raise ClaimError(otherwise)


def say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def _back(live: bool) -> str:
    return "\r\x1b[K" if live else ""


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 everything as claimed, 1 something was not, 130 interrupted."""
    options = [word for word in argv if word.startswith("--")]
    files = [Path(word) for word in argv if not word.startswith("--")]
    if set(options) - {"--fast"} or len(files) != 1:
        sys.stderr.write("usage: scripts/demo [--fast]\n")
        return 2
    signal.signal(signal.SIGTERM, _interrupted)
    profile = "test" if options else "default"
    began = time.monotonic()
    lab = Lab(nodes=4, managers=1, profile=profile, name=f"demo{os.getpid()}")
    say("Covey, from nothing to a cluster that heals. Every line is verified.")
    if profile == "test":
        say("Timers are the short ones of tests: a node that is silent for 0.6 s is down, not for 15 s.")
    say("")
    try:
        try:
            Demo(lab, files[0]).run()
        except ClaimError as error:
            sys.stderr.write(f"\ndemo: {error}\n")
            if not isinstance(error.__cause__, TimeoutError):
                sys.stderr.write(f"{lab.report()}\n")
            return 1
        finally:
            # A second Ctrl-C shall not end the cleaning up.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            lab.close()
        left = [str(path) for path in (lab_remains.directory_of(lab.name),) if path.exists()]
        left += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*{lab_remains.cgroup_of(lab.name)}*")]
        if left:
            sys.stderr.write(f"\ndemo: not as claimed: nothing is left behind, but there is {json.dumps(left)}\n")
            return 1
        say(f"  ✓ {'everything is cleaned up':<72} {time.monotonic() - began:5.1f} s in all")
        return 0
    except LabError as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\ndemo: interrupted; cleaned up\n")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
