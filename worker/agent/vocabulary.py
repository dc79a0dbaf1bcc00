"""What happens to the agent (events), what it must then do (instructions), and what it remembers (records). Pure data.

The machine turns events into instructions; the driver runs instructions and returns events. Contract of order: the
driver runs the instructions of one event in the order given, and none behind a WriteJournal before that is on disk.
Prepare, Start, Stop and Remove may take long and end as events; those of different tasks may overlap.
"""

from __future__ import annotations

import msgspec

from covey.model.objects import PortConfig, TaskStatus
from covey.wire.messages import AssignedNetwork, AssignedSecret, AssignedTask, Assignments, StatusBatch


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the journal keeps of a task: the last assignment, the last status, and whether the container was told to start."""

    assigned: AssignedTask
    status: TaskStatus
    started: bool = False

    @property
    def id(self) -> str:
        return self.assigned.task.id


class Holdings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the journal keeps besides tasks: networks, and the store revision of the newest assignment applied.

    Secrets and configs never touch the disk.
    """

    networks: tuple[AssignedNetwork, ...] = ()
    revision: int = 0


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A container that exists and belongs to a task. ``state`` is created, running or exited."""

    task_id: str
    container_id: str
    state: str
    pid: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    health: str = ""
    finished_at: float = 0.0
    ports: tuple[PortConfig, ...] = ()
    addresses: tuple[str, ...] = ()


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something happened. ``cause`` says by whom or what."""

    cause: str = ""


class Restored(Event, frozen=True, kw_only=True):
    """The agent starts: what the journal held and what containers of tasks there are. Comes first and once."""

    records: tuple[Record, ...] = ()
    holdings: Holdings = Holdings()
    found: tuple[Found, ...] = ()


class SessionUp(Event, frozen=True, kw_only=True):
    """A manager took the session; a complete assignment will follow."""

    session_id: str


class SessionDown(Event, frozen=True, kw_only=True):
    """The session is lost. Containers go on."""


class Assigned(Event, frozen=True, kw_only=True):
    """An assignment message came in."""

    message: Assignments


class Stored(Event, frozen=True, kw_only=True):
    """The manager stored status batches up to ``sequence``; ``refused`` as in wire.StatusStored."""

    sequence: int
    refused: tuple[tuple[str, str], ...] = ()


class Preparing(Event, frozen=True, kw_only=True):
    """Making the container takes long; ``message`` says how far it is."""

    task_id: str
    message: str


class Prepared(Event, frozen=True, kw_only=True):
    """The container exists: image, root file system, volumes and bundle are in place."""

    task_id: str
    container_id: str


class PrepareFailed(Event, frozen=True, kw_only=True):
    """It could not be made. ``rejected``: the node cannot ever run this task as it stands (no such image, bad mount)."""

    task_id: str
    error: str
    rejected: bool = True


class Started(Event, frozen=True, kw_only=True):
    """The container's process runs. ``health`` is "starting" if it has a health check, else ""."""

    task_id: str
    container_id: str
    pid: int
    health: str = ""
    ports: tuple[PortConfig, ...] = ()
    addresses: tuple[str, ...] = ()


class StartFailed(Event, frozen=True, kw_only=True):
    """The container's process could not be started; ``exit_code`` is Docker's for it (126, 127, 128)."""

    task_id: str
    error: str
    exit_code: int | None = None


class HealthChanged(Event, frozen=True, kw_only=True):
    """The health check's verdict: healthy or unhealthy."""

    task_id: str
    health: str


class Exited(Event, frozen=True, kw_only=True):
    """The container's process is over, for whatever reason. ``at`` in seconds since the epoch."""

    task_id: str
    exit_code: int
    oom_killed: bool = False
    error: str = ""
    at: float = 0.0


class Removed(Event, frozen=True, kw_only=True):
    """Nothing of the task's container is left."""

    task_id: str


class StopFailed(Event, frozen=True, kw_only=True):
    """Stop or Remove did not work; the machine asks again at the next Tick."""

    task_id: str
    error: str


class Tick(Event, frozen=True, kw_only=True):
    """Time has passed; what failed for a passing reason is tried again."""


AnyEvent = (
    Restored
    | SessionUp
    | SessionDown
    | Assigned
    | Stored
    | Preparing
    | Prepared
    | PrepareFailed
    | Started
    | StartFailed
    | HealthChanged
    | Exited
    | Removed
    | StopFailed
    | Tick
)


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """Something to do, and the event that wants it done."""

    cause: str = ""


class WriteJournal(Instruction, frozen=True, kw_only=True):
    """Make these records durable, forget those, before any later instruction."""

    records: tuple[Record, ...] = ()
    forgotten: tuple[str, ...] = ()
    holdings: Holdings | None = None


class EnsureNetwork(Instruction, frozen=True, kw_only=True):
    """The node needs this network."""

    network: AssignedNetwork


class DropNetwork(Instruction, frozen=True, kw_only=True):
    """No task of the node uses this network any more."""

    network_id: str


class Prepare(Instruction, frozen=True, kw_only=True):
    """Make the task's container, or find the one that was made: one a task id, however often this is said."""

    assigned: AssignedTask
    networks: tuple[AssignedNetwork, ...] = ()
    secrets: tuple[AssignedSecret, ...] = ()
    configs: tuple[AssignedSecret, ...] = ()


class Start(Instruction, frozen=True, kw_only=True):
    """Start the task's container; if it runs or has run already, only say so."""

    task_id: str
    container_id: str


class Stop(Instruction, frozen=True, kw_only=True):
    """Stop the task's container within ``grace`` seconds, then kill it; the exit comes as Exited."""

    task_id: str
    container_id: str
    grace: float


class Remove(Instruction, frozen=True, kw_only=True):
    """Stop if needed and remove every trace of the task's container, by task id if the container's is not known."""

    task_id: str
    container_id: str = ""
    grace: float = 10.0


class Report(Instruction, frozen=True, kw_only=True):
    """Send this batch over the session, if it is still the one named; else drop it."""

    session_id: str
    batch: StatusBatch


class Reopen(Instruction, frozen=True, kw_only=True):
    """Close the session and open a new one: an increment does not fit what is held."""


AnyInstruction = WriteJournal | EnsureNetwork | DropNetwork | Prepare | Start | Stop | Remove | Report | Reopen
