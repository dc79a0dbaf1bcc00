"""What removing an image means, by Docker's rules."""

from __future__ import annotations

import pytest

from covey.errors import Conflict
from worker.images import removal
from worker.images.reference import Reference, parse
from worker.images.removal import Users

ID = "sha256:" + "c" * 64
A1, A2, B1 = parse("a:1"), parse("a:2"), parse("b:1")
AD = parse("a@sha256:" + "d" * 64)
NONE, STOPPED, RUNNING = Users(), Users(stopped=("s",)), Users(running=("r",))


@pytest.mark.parametrize(
    ("name", "names", "users", "force", "untag", "delete"),
    [
        (A1, [A1], NONE, False, [A1], True),
        (A1, [A1, B1], NONE, False, [A1], False),
        (A1, [A1, B1], RUNNING, False, [A1], False),
        (A1, [A1, AD], NONE, False, [A1, AD], True),
        (A1, [A1, A2, AD], NONE, False, [A1], False),
        (AD, [A1, AD], NONE, False, [AD], False),
        (A1, [A1], STOPPED, True, [A1], True),
        (A1, [A1], RUNNING, True, [A1], False),
    ],
)
def test_by_name(
    name: Reference, names: list[Reference], users: Users, force: bool, untag: list[Reference], delete: bool
) -> None:
    assert removal.by_name(ID, name, names, users, force=force) == removal.Removal(tuple(untag), delete)


@pytest.mark.parametrize("users", [STOPPED, RUNNING])
def test_by_name_in_use(users: Users) -> None:
    with pytest.raises(Conflict) as refused:
        removal.by_name(ID, A1, [A1], users, force=False)
    holder = (users.running + users.stopped)[0]
    assert refused.value.message == (
        f'conflict: unable to remove repository reference "a:1" (must force) - container {holder} '
        "is using its referenced image cccccccccccc"
    )


@pytest.mark.parametrize(
    ("names", "users", "force", "words"),
    [
        ([A1, B1], NONE, False, "(must be forced) - image is referenced in multiple repositories"),
        ([A1], STOPPED, False, "(must be forced) - image is being used by stopped container s"),
        ([A1], RUNNING, False, "(cannot be forced) - image is being used by running container r"),
        ([A1, B1], RUNNING, True, "(cannot be forced) - image is being used by running container r"),
    ],
)
def test_by_id_conflicts(names: list[Reference], users: Users, force: bool, words: str) -> None:
    with pytest.raises(Conflict) as refused:
        removal.by_id(ID, names, users, force=force)
    assert refused.value.message == f"conflict: unable to delete cccccccccccc {words}"


@pytest.mark.parametrize(
    ("names", "users", "force"),
    [([], NONE, False), ([A1], NONE, False), ([A1, AD], NONE, False), ([A1, B1], NONE, True), ([A1], STOPPED, True)],
)
def test_by_id_takes_all_names(names: list[Reference], users: Users, force: bool) -> None:
    assert removal.by_id(ID, names, users, force=force) == removal.Removal(tuple(names), True)
