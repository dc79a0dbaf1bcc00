"""The agent as a pure machine: ``handle(event, now)`` → instructions.

It decides what the node does about each task it was given: prepare, start, stop, remove, and what it reports. It knows no
clock, socket, file or container; the driver does. Its promises, whatever is lost, repeated or killed in between:

- a task is journaled before anything is made for it, and journaled as started before its container is told to start;
- a task that was told to start is never prepared anew: if its container is gone it has failed;
- a task's status only rises, and every status is offered again on each new session until the manager says it is stored;
- losing the session changes nothing: containers go on until an assignment says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from covey.model.objects import PortConfig, Task, TaskStatus
from covey.model.spec import read_task_spec
from covey.model.task_states import Actor, TaskState, is_terminal, may_move
from covey.wire.messages import AssignedNetwork, AssignedSecret, AssignedTask, Assignments, StatusBatch
from worker.agent.vocabulary import (
    AnyEvent,
    AnyInstruction,
    Assigned,
    DropNetwork,
    EnsureNetwork,
    Exited,
    Found,
    HealthChanged,
    Holdings,
    Prepare,
    Prepared,
    PrepareFailed,
    Preparing,
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

S = TaskState


class _Held(msgspec.Struct, kw_only=True):
    """A task the node holds: its record, and what is under way for it ("", prepare, start, stop, remove)."""

    record: Record
    doing: str = ""
    wanted: bool = True
    unhealthy: bool = False

    @property
    def task(self) -> Task:
        return self.record.assigned.task

    @property
    def status(self) -> TaskStatus:
        return self.record.status

    @property
    def state(self) -> TaskState:
        return self.record.status.state


class AgentMachine:
    """See the module's docstring. One instance lives as long as the agent; a new one starts with a Restored event."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._held: dict[str, _Held] = {}
        self._networks: dict[str, AssignedNetwork] = {}
        self._dismissed: set[str] = set()
        self._secrets: dict[str, AssignedSecret] = {}
        self._configs: dict[str, AssignedSecret] = {}
        self._session = ""
        self._applied = ""
        self._revision = 0
        self._sequence = 0
        self._offered: dict[int, dict[str, TaskStatus]] = {}
        self._unstored: set[str] = set()
        self._now = 0.0
        self._cause = ""
        self._out: list[AnyInstruction] = []
        self._dirty: set[str] = set()
        self._forgotten: list[str] = []
        self._holdings_changed = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            Restored: self._on_restored,
            SessionUp: self._on_session_up,
            SessionDown: self._on_session_down,
            Assigned: self._on_assigned,
            Stored: self._on_stored,
            Preparing: self._on_preparing,
            Prepared: self._on_prepared,
            PrepareFailed: self._on_prepare_failed,
            Started: self._on_started,
            StartFailed: self._on_start_failed,
            HealthChanged: self._on_health,
            Exited: self._on_exited,
            Removed: self._on_removed,
            StopFailed: self._on_stop_failed,
            Tick: self._on_tick,
        }

    def handle(self, event: AnyEvent, now: float) -> list[AnyInstruction]:
        """What is to be done about ``event``, in order. ``now`` only stamps statuses; nothing is decided by it."""
        self._now, self._cause, self._out = now, event.cause or type(event).__name__, []
        self._dirty, self._forgotten, self._holdings_changed = set(), [], False
        self._handlers[type(event)](event)
        return [*self._journal(), *self._out, *self._report()]

    @property
    def revision(self) -> int:
        """The store revision of the newest assignment applied, for OpenSession."""
        return self._revision

    def statistics(self) -> dict[str, Any]:
        """Counts for people: tasks by state, what is under way, statuses not yet stored."""
        states: dict[str, int] = {}
        for held in self._held.values():
            states[held.state.label] = states.get(held.state.label, 0) + 1
        doing = {held.task.id: held.doing for held in self._held.values() if held.doing}
        return {"tasks": states, "doing": doing, "unstored": len(self._unstored), "applied": self._applied}

    def records(self) -> tuple[Record, ...]:
        """What the node holds, by task id."""
        return tuple(self._held[task_id].record for task_id in sorted(self._held))

    # -- events ----------------------------------------------------------------------------------------------------

    def _on_restored(self, event: Restored) -> None:
        self._networks = {network.id: network for network in event.holdings.networks}
        self._revision = event.holdings.revision
        for record in event.records:
            self._held[record.id] = _Held(record=record)
            self._unstored.add(record.id)
        for network in self._networks.values():
            self._do(EnsureNetwork(network=network, cause=self._cause))
        found = {container.task_id: container for container in event.found}
        for task_id in sorted(self._held):
            self._reunite(self._held[task_id], found.pop(task_id, None))
        for stray in found.values():
            self._do(Remove(task_id=stray.task_id, container_id=stray.container_id, cause="no record of its task"))
        for held in self._in_order():
            self._advance(held)

    def _reunite(self, held: _Held, found: Found | None) -> None:
        if found is None:
            if held.record.started and not is_terminal(held.state):
                self._end(held, S.FAILED, "container is gone", error="its container was not there when the agent came back")
            elif held.state == S.READY:
                # Prepared, never told to start: it may be prepared again, and its status may not fall.
                self._note(held, message="preparing again", container_id="")
            return
        if found.state == "created":
            if not is_terminal(held.state):
                # Journaled as started, and then the agent died: what was never started may be started now.
                held.record = msgspec.structs.replace(held.record, started=False)
                self._note(held, container_id=found.container_id)
                self._raise(held, S.READY, "prepared")
            return
        # The container ran, so it was told to: what came after the journal's last word is made up for here.
        held.record = msgspec.structs.replace(held.record, started=True)
        self._observe_running(held, found.container_id, found.pid, found.health, found.ports, found.addresses)
        if found.state == "exited":
            self._observe_exit(held, found.exit_code, found.oom_killed, found.error, found.finished_at or self._now)

    def _on_session_up(self, event: SessionUp) -> None:
        self._session, self._sequence, self._offered = event.session_id, 0, {}
        self._unstored = set(self._held)

    def _on_session_down(self, event: SessionDown) -> None:
        self._session, self._offered = "", {}

    def _on_assigned(self, event: Assigned) -> None:
        message = event.message
        if not message.complete and message.applies_to != self._applied:
            if message.results_in != self._applied:
                self._do(Reopen(cause=f"increment for {message.applies_to!r}, held {self._applied!r}"))
            return
        if message.revision < self._revision:
            self._do(Reopen(cause=f"assignment of revision {message.revision}, applied {self._revision}"))
            return
        self._cause = message.cause or self._cause
        self._take_dependencies(message)
        for assigned in message.tasks:
            self._take_task(assigned)
        for task_id in self._dismissed_tasks(message):
            self._held[task_id].wanted = False
        self._applied, self._revision = message.results_in, message.revision
        self._holdings_changed = True
        for held in self._in_order():
            self._advance(held)
        self._dismiss_networks(message)
        self._drop_networks()

    def _on_stored(self, event: Stored) -> None:
        refused = {task_id for task_id, _ in event.refused}
        for sequence in [number for number in self._offered if number <= event.sequence]:
            for task_id, status in self._offered.pop(sequence).items():
                held = self._held.get(task_id)
                if held is None or held.status == status or task_id in refused:
                    self._unstored.discard(task_id)

    def _on_preparing(self, event: Preparing) -> None:
        held = self._held.get(event.task_id)
        if held is not None and held.doing == "prepare" and held.state == S.PREPARING:
            self._note(held, message=event.message)

    def _on_prepared(self, event: Prepared) -> None:
        if held := self._settle(event.task_id, "prepare"):
            self._note(held, container_id=event.container_id)
            self._raise(held, S.READY, "prepared")
            self._advance(held)

    def _on_prepare_failed(self, event: PrepareFailed) -> None:
        if held := self._settle(event.task_id, "prepare"):
            state = S.REJECTED if event.rejected else S.FAILED
            self._end(held, state, "preparing failed", error=event.error)
            self._advance(held)

    def _on_started(self, event: Started) -> None:
        if held := self._settle(event.task_id, "start"):
            self._observe_running(held, event.container_id, event.pid, event.health, event.ports, event.addresses)
            self._advance(held)

    def _on_start_failed(self, event: StartFailed) -> None:
        if held := self._settle(event.task_id, "start"):
            self._end(held, S.FAILED, "starting container failed", error=event.error, exit_code=event.exit_code)
            self._advance(held)

    def _on_health(self, event: HealthChanged) -> None:
        held = self._held.get(event.task_id)
        if held is None or is_terminal(held.state):
            return
        self._note(held, health=event.health)
        if event.health == "healthy":
            self._raise(held, S.RUNNING, "started")
        elif event.health == "unhealthy":
            held.unhealthy = True
        self._advance(held)

    def _on_exited(self, event: Exited) -> None:
        held = self._held.get(event.task_id)
        if held is None:
            return
        if held.doing in ("start", "stop"):
            held.doing = ""
        self._observe_exit(held, event.exit_code, event.oom_killed, event.error, event.at or self._now)
        self._advance(held)

    def _on_removed(self, event: Removed) -> None:
        held = self._held.get(event.task_id)
        if held is None:
            return
        held.doing = ""
        if not is_terminal(held.state):
            self._end(held, S.SHUTDOWN, "removed")
        if held.wanted:
            self._note(held, container_id="")
            return
        del self._held[event.task_id]
        self._unstored.discard(event.task_id)
        self._forgotten.append(event.task_id)
        self._drop_networks()

    def _on_stop_failed(self, event: StopFailed) -> None:
        held = self._held.get(event.task_id)
        if held is not None and held.doing in ("stop", "remove"):
            held.doing = ""

    def _on_tick(self, event: Tick) -> None:
        for held in self._in_order():
            self._advance(held)

    # -- decisions -------------------------------------------------------------------------------------------------

    def _desired(self, held: _Held) -> TaskState:
        return held.task.desired if held.wanted else S.REMOVE

    def _advance(self, held: _Held) -> None:
        """The next step for a task, if none is under way. Removal overtakes nothing: it waits for the step to end."""
        desired = self._desired(held)
        if held.doing:
            return
        if not held.wanted or (desired == S.REMOVE and held.status.container_id):
            self._begin(held, "remove", Remove(**self._container(held), grace=self._grace(held), cause=self._cause))
        elif is_terminal(held.state):
            return
        elif desired >= S.SHUTDOWN or held.unhealthy:
            self._wind_down(held)
        elif held.state < S.READY or not held.status.container_id:
            self._prepare(held)
        elif not held.record.started and desired >= S.RUNNING:
            self._start(held)

    def _wind_down(self, held: _Held) -> None:
        if held.record.started:
            self._begin(held, "stop", Stop(**self._container(held), grace=self._grace(held), cause=self._cause))
        else:
            self._end(held, S.SHUTDOWN, "shut down before it started")

    def _prepare(self, held: _Held) -> None:
        missing = [network.network_id for network in held.task.networks if network.network_id not in self._networks]
        if missing or not self._applied:
            return  # an assignment brings networks, secrets and configs; what was restored waits for the first
        self._raise(held, S.PREPARING, "preparing")
        instruction = Prepare(
            assigned=held.record.assigned,
            networks=tuple(self._networks[network.network_id] for network in held.task.networks),
            secrets=tuple(self._secrets.values()),
            configs=tuple(self._configs.values()),
            cause=self._cause,
        )
        self._begin(held, "prepare", instruction)

    def _start(self, held: _Held) -> None:
        self._raise(held, S.STARTING, "starting")
        held.record = msgspec.structs.replace(held.record, started=True)
        self._dirty.add(held.task.id)
        self._begin(held, "start", Start(**self._container(held), cause=self._cause))

    def _observe_running(
        self,
        held: _Held,
        container_id: str,
        pid: int,
        health: str,
        ports: tuple[PortConfig, ...],
        addresses: tuple[str, ...],
    ) -> None:
        if is_terminal(held.state):
            return
        self._note(held, container_id=container_id, pid=pid, health=health, ports=ports, addresses=addresses)
        held.unhealthy = health == "unhealthy"
        if health == "starting":
            self._raise(held, S.STARTING, "starting; waiting for its health check")
        else:
            self._raise(held, S.RUNNING, "started")

    def _observe_exit(self, held: _Held, exit_code: int, oom_killed: bool, error: str, at: float) -> None:
        if is_terminal(held.state):
            return
        facts: dict[str, Any] = {"exit_code": exit_code, "oom_killed": oom_killed, "pid": 0}
        if held.unhealthy:
            self._end(held, S.FAILED, "unhealthy", error="task: unhealthy container", at=at, **facts)
        elif self._desired(held) >= S.SHUTDOWN:
            self._end(held, S.SHUTDOWN, "shutdown", at=at, **facts)
        elif exit_code == 0 and not error:
            self._end(held, S.COMPLETE, "finished", at=at, **facts)
        else:
            self._end(held, S.FAILED, "started", error=error or f"task: non-zero exit ({exit_code})", at=at, **facts)

    def _take_dependencies(self, message: Assignments) -> None:
        kept: tuple[tuple[dict[str, Any], Iterable[AssignedNetwork | AssignedSecret], str], ...] = (
            (self._networks, message.networks, "network"),
            (self._secrets, message.secrets, "secret"),
            (self._configs, message.configs, "config"),
        )
        for held, sent, kind in kept:
            if kind != "network":
                if message.complete:
                    held.clear()
                for removed_kind, object_id in message.removed:
                    if removed_kind == kind:
                        held.pop(object_id, None)
            for item in sent:
                if kind == "network" and held.get(item.id) != item:
                    self._do(EnsureNetwork(network=item, cause=self._cause))  # type: ignore[arg-type]
                    self._holdings_changed = True
                held[item.id] = item

    def _dismiss_networks(self, message: Assignments) -> None:
        sent = {network.id for network in message.networks}
        if message.complete:
            self._dismissed = set(self._networks) - sent
        else:
            named = {object_id for kind, object_id in message.removed if kind == "network"}
            self._dismissed = (self._dismissed | named) - sent

    def _drop_networks(self) -> None:
        """Networks go last, when no task held uses them: a stopping container keeps its link until it is gone."""
        used = {network.network_id for held in self._held.values() for network in held.task.networks}
        for network_id in sorted(self._dismissed & set(self._networks) - used):
            del self._networks[network_id]
            self._holdings_changed = True
            self._do(DropNetwork(network_id=network_id, cause=self._cause))

    def _take_task(self, assigned: AssignedTask) -> None:
        task = assigned.task
        held = self._held.get(task.id)
        if held is None:
            accepted = TaskStatus(id=task.id, node_id=self._node_id, state=S.ACCEPTED, at=self._now, message="accepted")
            self._held[task.id] = _Held(record=Record(assigned=assigned, status=accepted))
            self._unstored.add(task.id)
        else:
            if task.desired < held.task.desired:  # desired states only rise: an older word came late
                assigned = msgspec.structs.replace(assigned, task=msgspec.structs.replace(task, desired=held.task.desired))
            held.record = msgspec.structs.replace(held.record, assigned=assigned)
            held.wanted = True
        self._dirty.add(task.id)

    def _dismissed_tasks(self, message: Assignments) -> list[str]:
        if message.complete:
            sent = {assigned.task.id for assigned in message.tasks}
            return sorted(task_id for task_id in self._held if task_id not in sent)
        return sorted(task_id for kind, task_id in message.removed if kind == "task" and task_id in self._held)

    # -- state -----------------------------------------------------------------------------------------------------

    def _in_order(self) -> list[_Held]:
        """Held tasks, those to be wound down first: their ports and addresses are wanted by their successors."""
        return sorted(self._held.values(), key=lambda held: (self._desired(held) < S.SHUTDOWN, held.task.id))

    def _settle(self, task_id: str, doing: str) -> _Held | None:
        """The task whose step ``doing`` has just ended, or None if nobody waits for that any more."""
        held = self._held.get(task_id)
        if held is None or held.doing != doing:
            return None
        held.doing = ""
        return held

    def _begin(self, held: _Held, doing: str, instruction: AnyInstruction) -> None:
        held.doing = doing
        self._do(instruction)

    def _do(self, instruction: AnyInstruction) -> None:
        self._out.append(instruction)

    def _container(self, held: _Held) -> dict[str, str]:
        return {"task_id": held.task.id, "container_id": held.status.container_id}

    def _grace(self, held: _Held) -> float:
        return read_task_spec(held.task.spec).stop_grace

    def _note(self, held: _Held, **facts: Any) -> None:
        status = msgspec.structs.replace(held.status, **facts)
        if status != held.status:
            held.record = msgspec.structs.replace(held.record, status=status)
            self._dirty.add(held.task.id)
            self._unstored.add(held.task.id)

    def _raise(self, held: _Held, state: TaskState, message: str) -> None:
        if may_move(Actor.WORKER, held.state, state):
            started = {"started_at": self._now} if state == S.RUNNING else {}
            self._note(held, state=state, message=message, at=self._now, **started)

    def _end(self, held: _Held, state: TaskState, message: str, *, at: float = 0.0, **facts: Any) -> None:
        if state == S.COMPLETE and held.state < S.RUNNING:
            self._raise(held, S.RUNNING, "started")  # it ran and finished before anyone saw it run
        if may_move(Actor.WORKER, held.state, state):
            self._note(held, state=state, message=message, at=at or self._now, **facts)

    def _journal(self) -> list[AnyInstruction]:
        if not (self._dirty or self._forgotten or self._holdings_changed):
            return []
        records = tuple(self._held[task_id].record for task_id in sorted(self._dirty) if task_id in self._held)
        holdings = None
        if self._holdings_changed:
            holdings = Holdings(networks=tuple(self._networks.values()), revision=self._revision)
        return [WriteJournal(records=records, forgotten=tuple(self._forgotten), holdings=holdings, cause=self._cause)]

    def _report(self) -> list[AnyInstruction]:
        """A batch of every status that is neither stored nor already offered as it is now."""
        if not self._session:
            return []
        under_way = {task_id: status for batch in self._offered.values() for task_id, status in batch.items()}
        batch = {
            task_id: self._held[task_id].status
            for task_id in sorted(self._unstored)
            if task_id in self._held and under_way.get(task_id) != self._held[task_id].status
        }
        if not batch:
            return []
        self._sequence += 1
        self._offered[self._sequence] = batch
        message = StatusBatch(sequence=self._sequence, statuses=tuple(batch.values()), cause=self._cause)
        return [Report(session_id=self._session, batch=message, cause=self._cause)]
