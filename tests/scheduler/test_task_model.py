"""docs/task-model.md is what the table of task states says today."""

from pathlib import Path

from covey.model.task_states import TaskState
from covey.model.task_states_doc import DESIRES, MEANINGS, document


def test_the_document_is_current() -> None:
    held = (Path(__file__).parents[2] / "docs" / "task-model.md").read_text()
    assert held == document(), "run: .venv/bin/python -P -m covey.model.task_states_doc > docs/task-model.md"


def test_every_state_has_a_meaning() -> None:
    assert set(MEANINGS) == set(TaskState)
    assert set(DESIRES) <= set(TaskState)
