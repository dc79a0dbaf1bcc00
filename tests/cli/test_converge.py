"""When is a service what its spec says, what is told on the way, and when is it given up."""

from cli.converge import Watch
from cli.progress import Display

NODES = {"n1": "w1", "n2": "w2"}


def service(replicas=2, update=None, restart=None, mode=None):
    spec = {"Mode": mode or {"Replicated": {"Replicas": replicas}}, "TaskTemplate": {"RestartPolicy": restart or {}}}
    return {"ID": "s", "Spec": spec, **({"UpdateStatus": update} if update else {})}


def task(name, state, slot=1, node="n1", desired="running", err="", at=0):
    status = {"State": state, **({"Err": err} if err else {})}
    made = {"ID": name, "Slot": slot, "NodeID": node, "DesiredState": desired, "Status": status}
    return {**made, "CreatedAt": f"2026-01-01T00:00:{at:02}Z"}


def drive(watch, *rounds, wanted=None):
    """Feed rounds of (now, tasks); all lines and the last verdict."""
    lines = []
    for now, tasks in rounds:
        verdict = watch.observe(wanted or service(), tasks, NODES, now)
        lines += verdict.lines
    return lines, verdict


def test_converged_once_all_run_for_a_while():
    both = [task("a", "running"), task("b", "running", 2, "n2")]
    watch = Watch("web")
    lines, verdict = drive(watch, (0, [task("a", "starting")]), (1, both))
    assert lines == ["web.1 running on w1", "web.2 running on w2"]
    assert not verdict.converged
    assert drive(watch, (1.9, both))[1].converged is False
    assert drive(watch, (2.0, both))[1].converged is True


def test_a_crash_before_it_is_stable_starts_the_wait_again():
    both = [task("a", "running"), task("b", "running", 2)]
    crashed = [
        task("a", "failed", err="exit 3", desired="shutdown"),
        task("b", "running", 2),
        task("c", "ready", desired="ready"),
    ]
    again = [*crashed[:2], task("c", "running", at=1)]
    watch = Watch("web")
    lines, verdict = drive(watch, (0, both), (0.5, crashed), (1.2, again))
    assert "web.1 failed on w1: exit 3" in lines
    assert not verdict.converged
    assert drive(watch, (2.2, again))[1].converged


def test_tasks_of_a_node_that_is_down_do_not_count():
    verdict = drive(Watch("web"), (0, [task("a", "running"), task("b", "running", 2, "gone")]))[1]
    assert verdict.running == 1


def test_a_surplus_that_still_runs_is_waited_for():
    leaving = [task("a", "running"), task("b", "running", 2, desired="shutdown")]
    watch = Watch("web")
    assert not drive(watch, (0, leaving), (5, leaving), wanted=service(1))[1].converged
    gone = [task("a", "running"), task("b", "shutdown", 2, desired="shutdown")]
    assert drive(watch, (6, gone), (7, gone), wanted=service(1))[1].converged


def test_scaling_down_says_what_goes_and_an_update_does_not():
    before = [task("a", "running"), task("b", "running", 2)]
    watch = Watch("web")
    watch.prime(service(), before, NODES)
    assert drive(watch, (0, before[:1]), wanted=service(1))[0] == ["web.2 removed"]
    watch = Watch("web")
    watch.prime(service(), before, NODES)
    assert drive(watch, (0, []), (1, [task("c", "running", at=1)]))[0] == ["web.1 running on w1"]


def test_zero_replicas_are_converged_at_once():
    assert drive(Watch("web"), (0, []), wanted=service(0))[1].converged


def test_global_waits_for_its_first_task_then_for_all():
    wanted = service(mode={"Global": {}})
    watch = Watch("web")
    assert not drive(watch, (0, []), (9, []), wanted=wanted)[1].converged
    two = [task("a", "running", None, "n1"), task("b", "starting", None, "n2")]
    assert not drive(watch, (10, two), (12, two), wanted=wanted)[1].converged
    two[1] = task("b", "running", None, "n2")
    lines, verdict = drive(watch, (13, two), (14, two), wanted=wanted)
    assert verdict.converged
    assert lines == ["web.w2 running on w2"]


def test_a_pending_task_says_why_once():
    waiting = [task("a", "pending", node="", err="no suitable node (insufficient memory on 2 nodes)")]
    lines, verdict = drive(Watch("web"), (0, waiting), (1, waiting), wanted=service(1))
    assert lines == ["web.1 pending: no suitable node (insufficient memory on 2 nodes)"]
    assert not verdict.failure


def failures(state, count, slot=1, start=0):
    return [task(f"{state}{slot}-{n}", state, slot, err=f"why {n}", desired="shutdown", at=start + n) for n in range(count)]


def test_a_crash_loop_is_given_up_with_its_last_task():
    watch = Watch("web")
    assert not drive(watch, (0, failures("failed", 2)), wanted=service(1))[1].failure
    verdict = drive(watch, (1, failures("failed", 3)), wanted=service(1))[1]
    assert verdict.failure == "service web does not converge: web.1 failed 3 times: why 2"
    assert verdict.culprit["ID"] == "failed1-2"


def test_rejected_twice_is_enough_and_rejected_everywhere_too():
    assert drive(Watch("web"), (0, failures("rejected", 2)), wanted=service(1))[1].failure
    assert not drive(Watch("web"), (0, failures("rejected", 1)), wanted=service(1))[1].failure
    both = failures("rejected", 1) + failures("rejected", 1, slot=2)
    assert "2 tasks were rejected and none runs" in drive(Watch("web"), (0, both))[1].failure
    one_runs = [task("a", "running", 3), *both]
    assert not drive(Watch("web"), (0, one_runs), wanted=service(3))[1].failure


def test_a_task_that_will_not_be_replaced_is_a_failure_at_once():
    wanted = service(1, restart={"Condition": "none"})
    assert "restart condition is none" in drive(Watch("web"), (0, failures("failed", 1)), wanted=wanted)[1].failure


def test_failures_before_the_change_are_history():
    watch = Watch("web")
    old = [*failures("failed", 5), task("a", "running", at=9)]
    watch.prime(service(1), old, NODES)
    lines, verdict = drive(watch, (0, old), (1, old), wanted=service(1))
    assert (lines, verdict.failure, verdict.converged) == ([], "", True)


def test_an_update_is_over_when_it_says_so():
    done = [task("a", "running")]
    watch = Watch("web")
    watch.prime(service(1, {"State": "completed", "StartedAt": "1", "Message": "old"}), done, NODES)
    going = service(1, {"State": "updating", "StartedAt": "2", "Message": "update in progress"})
    assert not drive(watch, (0, done), (9, done), wanted=going)[1].converged
    over = service(1, {"State": "completed", "StartedAt": "2", "Message": "update completed"})
    lines, verdict = drive(watch, (10, done), (11, done), wanted=over)
    assert lines == ["web completed: update completed"]
    assert verdict.converged


def test_an_update_that_pauses_or_rolls_back_has_failed():
    for state in ("paused", "rollback_completed", "rollback_paused"):
        paused = service(1, {"State": state, "StartedAt": "2", "Message": f"{state} due to failure"})
        verdict = drive(Watch("web"), (0, []), wanted=paused)[1]
        assert f"{state} due to failure" in verdict.failure


def test_a_terminal_is_repainted_in_place_and_lines_stay(capsys):
    display = Display(live=True)
    display.paint(["one", "two\x1b[31m"])
    display.line("web.1 running")
    display.paint(["three"])
    display.clear()
    out = capsys.readouterr().out
    assert out.startswith("one\ntwo?[31m\n\x1b[2A\x1b[Jweb.1 running (")
    assert out.endswith("three\n\x1b[1A\x1b[J")


def test_without_a_terminal_nothing_is_repainted_and_quiet_says_nothing(capsys):
    Display(live=False).paint(["one"])
    quiet = Display(quiet=True, live=True)
    quiet.paint(["one"])
    quiet.line("two")
    assert capsys.readouterr().out == ""


STARTED = {"State": "rollback_started", "StartedAt": "2", "Message": "update rolled back due to failure of task x"}
BACK = {"State": "rollback_completed", "StartedAt": "2", "Message": "rollback completed"}


def test_an_update_that_is_rolled_back_has_failed_and_its_failures_are_not_counted_meanwhile():
    watch = Watch("web")
    watch.prime(service(1), [task("a", "running")], NODES)
    crashed = [task(f"f{number}", "failed", err="exit 3", desired="shutdown", at=number) for number in range(1, 5)]
    assert not drive(watch, (0, crashed), wanted=service(1, STARTED))[1].failure
    assert drive(watch, (1, [task("a", "running")]), wanted=service(1, BACK))[1].failure == f"service web: {STARTED['Message']}"


def test_a_rollback_that_was_asked_for_converges():
    watch = Watch("web", rollback=True)
    watch.prime(service(1), [task("a", "running")], NODES)
    rounds = [(0, [task("b", "running")]), (2, [task("b", "running")])]
    assert drive(watch, *rounds, wanted=service(1, BACK))[1].converged


def test_a_stopped_service_has_converged_when_nothing_of_it_runs():
    stopped = service(3)
    stopped["Spec"]["Labels"] = {"covey.stopped": "true"}
    leaving = [task("a", "running", desired="shutdown")]
    assert not drive(Watch("web"), (0, leaving), wanted=stopped)[1].converged
    assert drive(Watch("web"), (1, [task("a", "shutdown", desired="shutdown")]), wanted=stopped)[1].converged
