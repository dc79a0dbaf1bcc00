"""The agent machine, event by event: what it does, what it promises when things are lost, repeated or killed."""

from __future__ import annotations

from typing import Any

import pytest

from covey.model.objects import Task, TaskNetwork, TaskStatus
from covey.model.task_states import TaskState as S
from covey.wire.messages import AssignedNetwork, AssignedTask, Assignments
from worker.agent.machine import AgentMachine
from worker.agent.vocabulary import (
    Assigned,
    DropNetwork,
    EnsureNetwork,
    Exited,
    Found,
    HealthChanged,
    Prepare,
    Prepared,
    PrepareFailed,
    Record,
    Remove,
    Removed,
    Reopen,
    Report,
    Restored,
    SessionDown,
    SessionUp,
    Start,
    Started,
    StartFailed,
    Stop,
    StopFailed,
    Stored,
    Tick,
    WriteJournal,
)


def task(name: str = "t1", desired: S = S.RUNNING, **fields: Any) -> AssignedTask:
    return AssignedTask(
        task=Task(id=name, service_id="s", node_id="n", state=S.ASSIGNED, desired=desired, **fields),
    )


def complete(*tasks: AssignedTask, results_in: str = "1", revision: int = 1, **fields: Any) -> Assigned:
    return Assigned(message=Assignments(complete=True, results_in=results_in, revision=revision, tasks=tasks, **fields))


def increment(applies_to: str, results_in: str, *tasks: AssignedTask, revision: int = 2, **fields: Any) -> Assigned:
    message = Assignments(
        complete=False, applies_to=applies_to, results_in=results_in, revision=revision, tasks=tasks, **fields
    )
    return Assigned(message=message)


class Agent:
    """A machine with its journal kept as the driver would, and every instruction remembered."""

    def __init__(self, *events: Any) -> None:
        self.machine = AgentMachine("n")
        self.journal: dict[str, Record] = {}
        self.now = 100.0
        self.last: list[Any] = []
        self.reported: list[TaskStatus] = []
        self.feed(Restored())
        self.feed(*events)

    def feed(self, *events: Any) -> list[Any]:
        for event in events:
            self.now += 1
            self.last = self.machine.handle(event, self.now)
            for instruction in self.last:
                if isinstance(instruction, WriteJournal):
                    self.journal.update({record.id: record for record in instruction.records})
                    for forgotten in instruction.forgotten:
                        self.journal.pop(forgotten, None)
                if isinstance(instruction, Report):
                    self.reported += instruction.batch.statuses
        return self.last

    def kinds(self) -> list[type]:
        return [type(instruction) for instruction in self.last]

    def status(self, name: str = "t1") -> TaskStatus:
        return next(record.status for record in self.machine.records() if record.id == name)

    def reborn(self, *found: Found, revision: int = 1) -> Agent:
        """The agent after a crash: a new machine on the same journal."""
        from worker.agent.vocabulary import Holdings

        agent = Agent.__new__(Agent)
        agent.machine, agent.journal, agent.now, agent.reported = AgentMachine("n"), dict(self.journal), self.now, []
        agent.feed(Restored(records=tuple(self.journal.values()), holdings=Holdings(revision=revision), found=found))
        return agent


def running() -> Agent:
    agent = Agent(SessionUp(session_id="x"), complete(task()))
    agent.feed(Prepared(task_id="t1", container_id="c1"), Started(task_id="t1", container_id="c1", pid=7))
    return agent


def test_a_task_is_journaled_then_prepared_then_started_and_each_state_reported() -> None:
    agent = Agent(SessionUp(session_id="x"), complete(task()))
    assert agent.kinds() == [WriteJournal, Prepare, Report]
    agent.feed(Prepared(task_id="t1", container_id="c1"))
    assert agent.kinds() == [WriteJournal, Start, Report]
    assert agent.journal["t1"].started, "journaled as started before it is told to start"
    agent.feed(Started(task_id="t1", container_id="c1", pid=7))
    assert (agent.status().state, agent.status().pid) == (S.RUNNING, 7)
    states = [status.state for status in agent.reported]
    assert states == sorted(states)
    assert states[-1] == S.RUNNING


def test_desired_ready_is_prepared_and_held_back() -> None:
    agent = Agent(complete(task(desired=S.READY)), Prepared(task_id="t1", container_id="c1"))
    assert agent.status().state == S.READY
    assert Start not in agent.kinds()
    agent.feed(increment("1", "2", task(desired=S.RUNNING)))
    assert Start in agent.kinds()


@pytest.mark.parametrize(
    ("code", "error", "state", "text"),
    [(0, "", S.COMPLETE, ""), (3, "", S.FAILED, "task: non-zero exit (3)"), (0, "shim died", S.FAILED, "shim died")],
)
def test_an_exit_nobody_asked_for(code: int, error: str, state: S, text: str) -> None:
    agent = running()
    agent.feed(Exited(task_id="t1", exit_code=code, error=error))
    assert (agent.status().state, agent.status().exit_code, agent.status().error) == (state, code, text)


def test_an_exit_before_started_was_seen_still_passes_through_the_table() -> None:
    agent = Agent(complete(task()), Prepared(task_id="t1", container_id="c1"), Exited(task_id="t1", exit_code=0))
    assert agent.status().state == S.COMPLETE
    agent.feed(Started(task_id="t1", container_id="c1", pid=7))
    assert agent.status().state == S.COMPLETE


def test_shutdown_stops_with_the_grace_of_the_spec_and_ends_as_shutdown() -> None:
    spec = {"ContainerSpec": {"StopGracePeriod": 3_000_000_000}}
    agent = running()
    agent.feed(increment("1", "2", task(desired=S.SHUTDOWN, spec=spec)))
    stop = next(instruction for instruction in agent.last if isinstance(instruction, Stop))
    assert (stop.container_id, stop.grace) == ("c1", 3.0)
    agent.feed(Exited(task_id="t1", exit_code=137))
    assert (agent.status().state, agent.status().exit_code) == (S.SHUTDOWN, 137)


def test_shutdown_waits_for_the_start_under_way() -> None:
    agent = Agent(complete(task()), Prepared(task_id="t1", container_id="c1"))
    agent.feed(increment("1", "2", task(desired=S.SHUTDOWN)))
    assert Stop not in agent.kinds()
    agent.feed(Started(task_id="t1", container_id="c1", pid=7))
    assert Stop in agent.kinds()


def test_a_failed_stop_is_asked_for_again() -> None:
    agent = running()
    agent.feed(increment("1", "2", task(desired=S.SHUTDOWN)), StopFailed(task_id="t1", error="busy"))
    assert Stop not in agent.kinds()
    agent.feed(Tick())
    assert Stop in agent.kinds()


def test_refusals_end_the_task_with_their_reason() -> None:
    agent = Agent(complete(task()), PrepareFailed(task_id="t1", error="No such image: nope:1"))
    assert (agent.status().state, agent.status().error) == (S.REJECTED, "No such image: nope:1")
    agent = Agent(complete(task()), Prepared(task_id="t1", container_id="c1"))
    agent.feed(StartFailed(task_id="t1", error="not found in $PATH", exit_code=127))
    assert (agent.status().state, agent.status().exit_code) == (S.FAILED, 127)


def test_a_task_no_longer_assigned_is_removed_and_forgotten() -> None:
    agent = running()
    agent.feed(increment("1", "2", removed=(("task", "t1"),)))
    assert Remove in agent.kinds()
    agent.feed(Removed(task_id="t1"))
    assert agent.journal == {}
    assert agent.machine.records() == ()


def test_a_complete_assignment_dismisses_what_it_does_not_name() -> None:
    agent = running()
    agent.feed(complete(task("t2"), results_in="2", revision=2))
    assert {type(i) for i in agent.last} >= {Remove, Prepare}


def test_an_older_view_takes_nothing_away() -> None:
    agent = running()
    agent.feed(complete(task(), results_in="5", revision=9), complete(results_in="6", revision=4))
    assert agent.kinds() == [Reopen]
    assert agent.status().state == S.RUNNING
    reborn = agent.reborn(Found(task_id="t1", container_id="c1", state="running", pid=7), revision=9)
    reborn.feed(SessionUp(session_id="y"), complete(results_in="1", revision=4))
    assert Reopen in reborn.kinds()
    assert Remove not in reborn.kinds()


def test_an_increment_that_does_not_fit_reopens_and_a_repeated_one_is_nothing() -> None:
    agent = running()
    agent.feed(increment("7", "8", removed=(("task", "t1"),)))
    assert agent.kinds() == [Reopen]
    agent.feed(increment("0", "1"))
    assert agent.kinds() == []


def test_desired_states_only_rise() -> None:
    agent = running()
    agent.feed(increment("1", "2", task(desired=S.SHUTDOWN)), increment("2", "3", task(desired=S.RUNNING)))
    agent.feed(Exited(task_id="t1", exit_code=0))
    assert agent.status().state == S.SHUTDOWN


def test_health_holds_back_running_and_unhealthy_fails() -> None:
    agent = Agent(complete(task()), Prepared(task_id="t1", container_id="c1"))
    agent.feed(Started(task_id="t1", container_id="c1", pid=7, health="starting"))
    assert agent.status().state == S.STARTING
    agent.feed(HealthChanged(task_id="t1", health="healthy"))
    assert agent.status().state == S.RUNNING
    agent.feed(HealthChanged(task_id="t1", health="unhealthy"))
    assert Stop in agent.kinds()
    agent.feed(Exited(task_id="t1", exit_code=143))
    assert (agent.status().state, agent.status().error) == (S.FAILED, "task: unhealthy container")


def test_statuses_are_offered_again_on_a_new_session_until_stored() -> None:
    agent = running()
    agent.feed(SessionDown(), Exited(task_id="t1", exit_code=1))
    assert Report not in agent.kinds()
    agent.feed(SessionUp(session_id="y"))
    report = agent.last[-1]
    assert isinstance(report, Report)
    assert (report.session_id, report.batch.sequence, report.batch.statuses[0].state) == ("y", 1, S.FAILED)
    agent.feed(Tick())
    assert agent.kinds() == [], "offered once a session"
    agent.feed(Stored(sequence=1), SessionDown(), SessionUp(session_id="z"), Stored(sequence=1))
    assert agent.machine.statistics()["unstored"] == 0


def test_networks_come_before_their_tasks_and_go_after_them() -> None:
    net = AssignedNetwork(id="net", name="front")
    on_net = task(networks=(TaskNetwork(network_id="net"),))
    agent = Agent(complete(on_net, networks=(net,)))
    kinds = agent.kinds()
    assert kinds.index(EnsureNetwork) < kinds.index(Prepare)
    agent.feed(Prepared(task_id="t1", container_id="c1"), increment("1", "2", removed=(("task", "t1"), ("network", "net"))))
    assert DropNetwork not in agent.kinds(), "a held task still uses it"
    agent.feed(Removed(task_id="t1"))
    assert DropNetwork in agent.kinds(), "nobody names it again"


# -- death and return ----------------------------------------------------------------------------------------------


def test_a_running_task_is_found_again_and_not_touched() -> None:
    agent = running().reborn(Found(task_id="t1", container_id="c1", state="running", pid=7))
    assert agent.kinds() == []
    assert agent.status().state == S.RUNNING


def test_an_exit_while_the_agent_was_dead_is_reported_once_with_its_code() -> None:
    agent = running().reborn(Found(task_id="t1", container_id="c1", state="exited", exit_code=9, finished_at=50.0))
    assert (agent.status().state, agent.status().exit_code, agent.status().at) == (S.FAILED, 9, 50.0)
    agent.feed(SessionUp(session_id="y"))
    assert [status.exit_code for status in agent.reported] == [9]


def test_a_task_told_to_start_whose_container_is_gone_has_failed() -> None:
    agent = running().reborn()
    assert agent.status().state == S.FAILED
    agent.feed(SessionUp(session_id="y"), complete(task(), results_in="9", revision=9))
    assert not {Prepare, Start} & set(agent.kinds())


def test_a_crash_between_journal_and_start_starts_once() -> None:
    agent = Agent(SessionUp(session_id="x"), complete(task()), Prepared(task_id="t1", container_id="c1"))
    never = agent.reborn(Found(task_id="t1", container_id="c1", state="created"))
    assert Start not in never.kinds() or never.status().state == S.STARTING
    did = agent.reborn(Found(task_id="t1", container_id="c1", state="running", pid=3))
    assert Start not in did.kinds()
    assert did.status().state == S.RUNNING


def test_a_crash_while_preparing_prepares_again_once_assigned() -> None:
    agent = Agent(SessionUp(session_id="x"), complete(task())).reborn()
    assert Prepare not in agent.kinds(), "its networks and secrets come with the first assignment"
    agent.feed(SessionUp(session_id="y"), complete(task(), results_in="9", revision=9))
    assert Prepare in agent.kinds()


def test_a_container_without_a_record_is_removed() -> None:
    agent = Agent().reborn(Found(task_id="ghost", container_id="c9", state="running"))
    remove = agent.last[-1]
    assert isinstance(remove, Remove)
    assert remove.container_id == "c9"
