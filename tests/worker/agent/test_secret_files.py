"""A task's secrets on the node: files with the user's modes, in a directory no other user of the machine can enter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from covey.errors import NotFound
from covey.model.objects import Task
from covey.model.resources import Resources
from covey.model.task_states import TaskState as S
from covey.wire.messages import AssignedSecret, AssignedTask
from worker.agent.engine_runtime import EngineRuntime
from worker.agent.runtime import PrepareError


class Engine:
    """Creates containers by writing them down, or refuses."""

    def __init__(self, exec_root: Path, refusal: Exception | None = None) -> None:
        self.options = SimpleNamespace(exec_root=exec_root, labels=(), generic=Resources(), name="w1")
        self.refusal = refusal
        self.bodies: list[dict[str, Any]] = []

    def containers_of_owner(self, owner: str) -> list[Any]:
        return []

    async def create(self, name: str, body: dict[str, Any], **_: Any) -> tuple[str, list[str]]:
        if self.refusal:
            raise self.refusal
        self.bodies.append(body)
        return "c1", []


def assigned() -> AssignedTask:
    file = {"Name": "key", "UID": "0", "GID": "0", "Mode": 0o444}
    spec = {"ContainerSpec": {"Image": "x", "Secrets": [{"SecretID": "s", "SecretName": "key", "File": file}]}}
    return AssignedTask(task=Task(id="t1", service_id="s", node_id="n", state=S.ASSIGNED, desired=S.RUNNING, spec=spec))


SECRET = AssignedSecret(id="s", name="key", data=b"open sesame")


@pytest.mark.asyncio
async def test_other_users_of_the_machine_cannot_reach_a_secret(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir(mode=0o755)
    engine = Engine(tmp_path)
    await EngineRuntime(cast(Any, engine), "0").prepare(assigned(), (), (SECRET,), ())
    (mount,) = engine.bodies[0]["HostConfig"]["Mounts"]
    source = Path(mount["Source"])
    assert (mount["Target"], mount["ReadOnly"], source.read_bytes()) == ("/run/secrets/key", True, b"open sesame")
    assert source.stat().st_mode & 0o777 == 0o444
    assert [folder.stat().st_mode & 0o777 for folder in source.parents[:2]] == [0o700, 0o700]


@pytest.mark.asyncio
async def test_a_container_that_cannot_be_made_leaves_no_secret(tmp_path: Path) -> None:
    engine = Engine(tmp_path, NotFound("No such image: x"))
    with pytest.raises(PrepareError, match="No such image: x"):
        await EngineRuntime(cast(Any, engine), "0").prepare(assigned(), (), (SECRET,), ())
    assert list((tmp_path / "tasks").iterdir()) == []
