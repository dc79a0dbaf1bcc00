"""A world for tests of updates: a service that runs, workers that fail or obey image by image, and what was down when.

Not a test itself. Images that start with ``bad`` fail before they run, ``slow`` ones do after ``lasts`` seconds of running.
"""

from __future__ import annotations

from typing import Any

from covey.model.objects import Task, UpdateStatus
from covey.model.resources import NANO
from covey.model.task_states import TaskState as S
from scheduler import update_status
from scheduler.settings import Settings
from tests.scheduler.apply import World

QUICK = {"Condition": "any", "Delay": NANO}


def policy(**fields: Any) -> dict[str, Any]:
    """An UpdateConfig; ``Delay`` and ``Monitor`` in seconds."""
    for name in ("Delay", "Monitor"):
        if name in fields:
            fields[name] = int(fields[name] * NANO)
    return fields


class Rollout(World):
    """Three nodes and one service ``web``, on whose updates ``update`` and ``rollback`` are the policies."""

    def __init__(
        self,
        replicas: int = 4,
        update: dict[str, Any] | None = None,
        rollback: dict[str, Any] | None = None,
        restart: dict[str, Any] | None = None,
        **spec: Any,
    ) -> None:
        super().__init__(Settings.default())
        self.lasts = 1.0
        self.most_down = 0
        self.fewest = replicas
        for number in range(1, 4):
            self.node(f"n{number}", cpus=64)
        self.asked: dict[str, Any] = {"UpdateConfig": update or {}, **spec}
        if rollback is not None:
            self.asked["RollbackConfig"] = rollback
        self.restart = restart or QUICK
        self.replicas = replicas
        self.ask("v1")
        self.run()
        self.most_down, self.fewest = 0, len(self.running("web"))

    def ask(self, image: str, **changes: Any) -> None:
        """The user's next spec."""
        self.asked.update(changes)
        template = {"ContainerSpec": {"Image": image}, "RestartPolicy": self.restart}
        self.service("web", replicas=self.replicas, template=template, **self.asked)

    @property
    def status(self) -> UpdateStatus:
        status = self.shown
        assert status is not None
        return status

    @property
    def shown(self) -> UpdateStatus | None:
        """What clients see."""
        return update_status.present(self.snapshot.services["web"], self.snapshot.service_statuses.get("web"))

    @property
    def state(self) -> str:
        return self.status.state

    def images(self) -> list[str]:
        """Images of the tasks that run, by slot."""
        return [str(task.spec["ContainerSpec"]["Image"]) for task in self.running("web")]

    def down(self) -> int:
        """Slots in which nothing runs."""
        tasks = [t for t in self.tasks("web") if t.desired < S.REMOVE]
        up = {(t.slot, t.node_id if not t.slot else "") for t in tasks if self.snapshot.state(t) == S.RUNNING}
        return len({(t.slot, t.node_id if not t.slot else "") for t in tasks} - up)

    def look(self) -> None:
        self.most_down = max(self.most_down, self.down())
        self.fewest = min(self.fewest, len(self.running("web")))

    def work(self) -> bool:
        """As workers: one round; bad images fail instead of running."""
        snapshot = self.snapshot
        reports: list[tuple[Task, S]] = []
        for task in snapshot.tasks.values():
            status = snapshot.statuses.get(task.id)
            state = status.state if status else S.ASSIGNED
            if task.state < S.ASSIGNED or state > S.RUNNING:
                continue
            wanted = S.SHUTDOWN if task.desired >= S.SHUTDOWN else task.desired
            image = str(task.spec["ContainerSpec"]["Image"])
            if image.startswith("bad") and wanted == S.RUNNING:
                wanted = S.FAILED
            elif image.startswith("slow") and state == S.RUNNING and status and self.now >= status.at + self.lasts:
                wanted = max(wanted, S.FAILED)
            if state < wanted:
                reports.append((task, wanted))
        for task, wanted in reports:
            self.report(task.id, wanted)
            self.look()
        return bool(reports)

    def live(self, seconds: float, every: float = 0.5) -> None:
        """Leader and workers for so long."""
        until = self.now + seconds
        while True:
            for _ in range(40):
                self.settle()
                self.look()
                if not self.work():
                    break
            else:
                raise AssertionError("no rest")
            if self.now >= until:
                return
            self.now += every
