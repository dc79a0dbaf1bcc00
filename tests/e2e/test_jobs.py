"""Jobs on a real cluster: they complete, from both commands and in everyone's view."""

from __future__ import annotations

import re
from typing import Any

import pytest

from covey.testing.lab import Lab

from .conftest import IMAGE, command
from .test_services import PROGRAMS, listed

pytestmark = pytest.mark.e2e


def states(lab: Lab, name: str, iteration: int = 0) -> list[str]:
    """The states of the tasks of one execution, by slot."""
    tasks = [task for task in lab.tasks(name) if task["JobIteration"].get("Index", 0) == iteration]
    return [task["Status"]["State"] for task in sorted(tasks, key=lambda task: (task.get("Slot", 0), task["CreatedAt"]))]


def inspect(lab: Lab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = lab.manager.client.get(f"/services/{name}")
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_job_completes_a_few_tasks_at_a_time_and_the_command_waits_for_it(lab: Lab, program: str) -> None:
    options = ("--name", "sums", "--mode", "replicated-job", "--replicas", "5", "--max-concurrent", "2")
    done = command(lab.manager, program, "service", "create", *options, IMAGE, "sh", "-c", "sleep 0.2; echo done")
    assert states(lab, "sums") == ["complete"] * 5, f"{program} said: {done.stdout}"
    starts = sorted((task["CreatedAt"], 1) for task in lab.tasks("sums"))
    ends = sorted((task["Status"]["Timestamp"], -1) for task in lab.tasks("sums"))
    active = most = 0
    for _, change in sorted(starts + ends):
        active += change
        most = max(most, active)
    assert most <= 2, lab.tasks("sums")
    for other in PROGRAMS:
        assert listed(lab, other) == {"sums": "0/2 (5/5 completed)"}
    assert {task["Slot"] for task in lab.tasks("sums")} == {0, 1, 2, 3, 4}
    assert {task["DesiredState"] for task in lab.tasks("sums")} == {"complete"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_job_on_every_node_and_again(lab: Lab, program: str) -> None:
    command(lab.manager, program, "service", "create", "--name", "each", "--mode", "global-job", IMAGE, "true")
    nodes = {task["NodeID"] for task in lab.tasks("each")}
    assert states(lab, "each") == ["complete"] * 3
    assert nodes == set(lab.hostnames())
    assert listed(lab, program) == {"each": "0/0 (3/3 completed)"}
    before = inspect(lab, "each")["JobStatus"]
    command(lab.manager, program, "service", "update", "--force", "each")
    after = inspect(lab, "each")["JobStatus"]
    assert after["JobIteration"]["Index"] == 1
    assert after["LastExecution"] > before["LastExecution"]
    assert states(lab, "each", 1) == ["complete"] * 3
    assert len(lab.tasks("each")) == 6, "the first execution is history"


def test_a_task_that_fails_is_tried_again_and_one_beyond_hope_is_told(lab: Lab) -> None:
    """The container of the first attempts fails: each leaves a mark on the volume of its node, the third finds two."""
    script = "echo x >> /marks/all; test $(wc -l < /marks/all) -ge 3"
    options = ("--mode", "replicated-job", "--restart-delay", "0s", "--constraint", "node.role==manager")
    mount = ("--mount", "type=volume,source=marks,target=/marks")
    command(lab.manager, "cluster", "service", "create", "--name", "third", *options, *mount, IMAGE, "sh", "-c", script)
    assert states(lab, "third") == ["failed", "failed", "complete"]
    hopeless = ("--name", "never", *options, "--restart-condition", "none", IMAGE, "sh", "-c", "echo sorry; exit 3")
    done = command(lab.manager, "cluster", "service", "create", *hopeless, code=1)
    assert re.search(r"job never does not complete: never.0 failed and is not tried again.*exit.*3", done.stderr), done.stderr
    assert "sorry" in done.stderr
    assert states(lab, "never") == ["failed"]
    command(lab.manager, "cluster", "volume", "rm", "marks", code=None)


def test_scaling_a_job_runs_it_anew_and_what_every_node_has_cannot_be_scaled(lab: Lab) -> None:
    command(lab.manager, "cluster", "service", "create", "--name", "some", "--mode", "replicated-job", IMAGE, "true")
    for program, count in zip(PROGRAMS, range(2, 9), strict=False):
        command(lab.manager, program, "service", "scale", f"some={count}")
        assert listed(lab, program) == {"some": f"0/1 ({count}/{count} completed)"}
    command(lab.manager, "cluster", "service", "create", "--name", "every", "--mode", "global-job", IMAGE, "true")
    for program in PROGRAMS:
        refused = command(lab.manager, program, "service", "scale", "every=2", code=1)
        assert "scale can only be used with replicated or replicated-job mode" in refused.stderr


def test_a_cron_job_runs_every_virtual_minute_and_docker_shows_it_as_the_job_it_is(lab: Lab) -> None:
    """The lab's profile lets the time of schedules pass 30 times as fast: a minute takes two seconds."""
    options = ("--name", "tick", "--mode", "cron", "--schedule", "* * * * *", "--timezone", "Europe/Berlin", "--history", "2")
    command(lab.manager, "cluster", "service", "create", *options, IMAGE, "echo", "tick")

    def complete() -> list[int]:
        tasks = lab.tasks("tick")
        return sorted(task["JobIteration"]["Index"] for task in tasks if task["Status"]["State"] == "complete")

    first = lab.wait_until(lambda: complete()[:1], 15, "it runs")
    last = lab.wait_until(lambda: [run for run in complete() if run >= first[0] + 180], 30, "it runs again and again")
    assert (last[0] - first[0]) % 60 == 0
    lab.wait_until(lambda: 2 <= len(lab.tasks("tick")) <= 3, 10, "two runs are kept, and one that goes on")
    assert "replicated job" in command(lab.manager, "docker", "service", "ls").stdout
    command(lab.manager, "docker", "service", "update", "--detach", "--label-add", "covey.cron.schedule=0 0 1 1 *", "tick")
    assert inspect(lab, "tick")["Spec"]["Labels"]["covey.cron.timezone"] == "Europe/Berlin"
    for words, flags in (("has 1 fields", ("--schedule", "often")), ("is unknown", ("--timezone", "Mars/Base"))):
        bad = ("--mode", "cron", "--schedule", "@daily", *flags)
        refused = command(lab.manager, "cluster", "service", "create", *bad, IMAGE, "true", code=1)
        assert words in refused.stderr
