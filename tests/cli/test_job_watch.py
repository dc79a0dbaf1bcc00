"""When has a job completed, what is told on the way, and when is it given up."""

from cli.converge import Watch
from cli.job_watch import JobWatch, watch_of

NODES = {"n1": "w1", "n2": "w2"}
JOB = {"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 2}}


def service(mode=JOB, iteration=0):
    status = {"JobIteration": {"Index": iteration} if iteration else {}}
    return {"ID": "s", "Spec": {"Name": "job", "Mode": mode}, "JobStatus": status}


def task(name, state, slot=0, *, desired="complete", iteration=0, err="", node="n1"):
    """As Docker sends it: numbers that are 0 are left out."""
    return {
        "ID": name,
        **({"Slot": slot} if slot else {}),
        "NodeID": node,
        "DesiredState": desired,
        "JobIteration": {"Index": iteration} if iteration else {},
        "Status": {"State": state, **({"Err": err} if err else {})},
        "CreatedAt": f"2026-01-01T00:00:0{len(name)}Z",
    }


def test_a_job_is_watched_as_one():
    assert isinstance(watch_of(service()), JobWatch)
    assert type(watch_of({"Spec": {"Name": "web"}})) is Watch


def test_completed_once_every_slot_is():
    watch = watch_of(service())
    first = watch.observe(service(), [task("a", "running"), task("b", "complete", 1)], NODES, 0)
    assert not first.converged
    assert (first.running, first.wanted, first.noun) == (1, 2, "completed")
    assert "job.1 complete" in first.lines
    last = watch.observe(service(), [task("a", "complete"), task("b", "complete", 1)], NODES, 1)
    assert last.converged
    assert len(last.lines) == 1


def test_former_executions_do_not_count():
    tasks = [task("a", "complete", 1), task("b", "complete", 2), task("c", "running", 1, iteration=1)]
    verdict = watch_of(service()).observe(service(iteration=1), tasks, NODES, 0)
    assert not verdict.converged
    assert verdict.running == 0


def test_a_slot_that_is_not_tried_again_ends_the_wait():
    failed = task("a", "failed", 1, desired="shutdown", err="task: non-zero exit (3)")
    verdict = watch_of(service()).observe(service(), [failed, task("b", "running", 2)], NODES, 0)
    assert verdict.culprit is failed
    assert "job.1 failed and is not tried again: task: non-zero exit (3)" in verdict.failure


def test_one_that_is_tried_again_does_not_until_it_is_a_loop():
    watch, tasks = watch_of(service()), [task("a", "failed", 1, desired="shutdown"), task("bb", "running", 1)]
    assert not watch.observe(service(), tasks, NODES, 0).failure
    tasks[1:] = [task("bb", "failed", 1, desired="shutdown"), task("ccc", "failed", 1)]
    assert "failed 3 times" in watch.observe(service(), tasks, NODES, 1).failure


def test_a_job_on_every_node_is_complete_when_it_is_on_all_that_have_it():
    watch, here = watch_of(service({"GlobalJob": {}})), service({"GlobalJob": {}})
    assert not watch.observe(here, [], NODES, 0).converged
    both = [task("a", "complete"), task("b", "running", node="n2")]
    assert not watch.observe(here, both, NODES, 1).converged
    assert watch.observe(here, [both[0], task("b", "complete", node="n2")], NODES, 2).converged
