"""Wire messages and the agent's journal: this release reads the bytes of every release whose golden files are kept.

Golden files are ``golden/wire/<release>/<tag>.msgpack`` and ``golden/journal/<release>.bin``. After a change that is meant,
write this release's anew with ``python tests/contract/test_wire_messages.py``; never touch those of an earlier one.
"""

from __future__ import annotations

import tomllib
import typing
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from covey.model.task_states import TaskState
from covey.wire.frames import FrameReader, encode
from covey.wire.messages import AnyMessage, Hello, Message
from worker.agent.journal import VERSION, Entry, Journal, JournalDamaged, frame, read_frames
from worker.agent.vocabulary import Holdings, Record, WriteJournal

HERE = Path(__file__).parent
WIRE = HERE / "golden" / "wire"
JOURNALS = HERE / "golden" / "journal"
RELEASE = ".".join(tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]["version"].split(".")[:2])
KINDS: dict[str, type[Message]] = {cast(str, kind.__struct_config__.tag): kind for kind in typing.get_args(AnyMessage)}
FILES = sorted(WIRE.glob("*/*.msgpack"))
JOURNAL_FILES = sorted(JOURNALS.glob("*.bin"))


def filled(kind: Any, name: str = "x") -> Any:
    """A value of a type (as msgspec.inspect tells it) in which nothing is at its default."""
    inspect = msgspec.inspect
    match kind:
        case inspect.StructType():
            return kind.cls(**{field.name: filled(field.type, field.name) for field in kind.fields if field.name != "version"})
        case inspect.UnionType():
            return filled(next(each for each in kind.types if not isinstance(each, inspect.NoneType)), name)
        case inspect.EnumType():
            return TaskState.RUNNING
        case inspect.DictType():
            return {f"{name}-key": filled(kind.value_type, name)}
        case inspect.VarTupleType():
            return (filled(kind.item_type, name),)
        case inspect.TupleType():
            return tuple(filled(each, name) for each in kind.item_types)
    plain = {
        inspect.IntType: 7,
        inspect.FloatType: 1.25,
        inspect.BoolType: True,
        inspect.StrType: f"a {name}",
        inspect.BytesType: b"\0\xff" + name.encode(),
        inspect.AnyType: {"Name": name, "Unknown": {"kept": "as it is"}},
    }
    return plain[type(kind)]


def sample(tag: str) -> Any:
    kind = KINDS[tag]
    fields = {field.name: filled(field.type, field.name) for field in cast(Any, msgspec.inspect.type_info(kind)).fields}
    return kind(**fields)


def journal() -> bytes:
    """A journal with every field in use: records, one forgotten, holdings."""
    record = cast(Record, filled(msgspec.inspect.type_info(Record)))
    other = msgspec.structs.replace(
        record, assigned=msgspec.structs.replace(record.assigned, task=msgspec.structs.replace(record.assigned.task, id="b"))
    )
    holdings = cast(Holdings, filled(msgspec.inspect.type_info(Holdings)))
    entries = (Entry(version=VERSION), Entry(records=(record, other), holdings=holdings), Entry(forgotten=("b",)))
    return b"".join(map(frame, entries))


def test_every_message_of_this_release_is_kept() -> None:
    assert {path.stem for path in FILES if path.parent.name == RELEASE} == set(KINDS)


@pytest.mark.parametrize("tag", KINDS)
def test_the_bytes_of_this_release(tag: str) -> None:
    """A difference is a change of the protocol: see this file's docstring, and covey.wire.messages.VERSION."""
    assert encode(sample(tag)) == (WIRE / RELEASE / f"{tag}.msgpack").read_bytes()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_older_messages_are_read_and_nothing_is_lost(path: Path) -> None:
    raw = path.read_bytes()
    [message] = FrameReader().feed(raw)
    assert type(message) is KINDS[path.stem]
    shown, kept = msgspec.msgpack.decode(encode(message)), msgspec.msgpack.decode(raw)
    assert {name: shown.get(name) for name in kept} == kept


@pytest.mark.parametrize("tag", KINDS)
def test_a_sample_has_nothing_at_its_default(tag: str) -> None:
    fields = set(msgspec.msgpack.decode(encode(sample(tag)))) - {"m"}
    assert fields == set(KINDS[tag].__struct_fields__)


def test_a_field_from_the_future_is_ignored() -> None:
    newer = msgspec.msgpack.encode({"m": "hello", "version": 2, "purpose": "session", "from_the_future": [1]})
    assert list(FrameReader().feed(newer)) == [Hello(version=2, purpose="session")]


def test_messages_survive_any_cut_of_their_bytes() -> None:
    stream = b"".join(encode(sample(tag)) for tag in KINDS)
    for size in (1, 2, 3, 7, 64, len(stream)):
        reader = FrameReader()
        got = [message for place in range(0, len(stream), size) for message in reader.feed(stream[place : place + size])]
        assert [type(message) for message in got] == list(KINDS.values())


def test_the_journal_of_this_release() -> None:
    assert journal() == (JOURNALS / f"{RELEASE}.bin").read_bytes()


@pytest.mark.parametrize("path", JOURNAL_FILES, ids=lambda path: path.stem)
def test_older_journals_are_read(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "journal"
    copy.write_bytes(path.read_bytes())
    with Journal(copy) as opened:
        assert [record.status.state for record in opened.records.values()] == [TaskState.RUNNING]
        assert opened.holdings.networks


def test_a_torn_last_frame_is_cut_off_and_the_rest_is_kept(tmp_path: Path) -> None:
    whole = journal()
    _, size = read_frames(whole)
    for cut in (size - 1, size - 5):
        path = tmp_path / f"journal-{cut}"
        path.write_bytes(whole[:cut])
        with Journal(path) as opened:
            assert len(opened.records) == 2, "the frame that forgot one was torn"
            opened.write(WriteJournal(forgotten=tuple(opened.records)))
        with Journal(path) as again:
            assert not again.records


def test_damage_in_the_middle_is_said_and_not_repaired(tmp_path: Path) -> None:
    data = bytearray(journal())
    data[40] ^= 0xFF
    path = tmp_path / "journal"
    path.write_bytes(data)
    with pytest.raises(JournalDamaged, match="is damaged"):
        Journal(path)
    assert path.read_bytes() == bytes(data)


def test_a_journal_that_is_mostly_history_is_rewritten(tmp_path: Path) -> None:
    record = cast(Record, filled(msgspec.inspect.type_info(Record)))
    with Journal(tmp_path / "journal") as opened:
        for _ in range(1500):
            opened.write(WriteJournal(records=(record,)))
        assert opened.statistics()["bytes"] < 300_000
    with Journal(tmp_path / "journal") as again:
        assert list(again.records.values()) == [record]


def write_golden() -> None:
    (WIRE / RELEASE).mkdir(parents=True, exist_ok=True)
    for tag in KINDS:
        (WIRE / RELEASE / f"{tag}.msgpack").write_bytes(encode(sample(tag)))
    JOURNALS.mkdir(parents=True, exist_ok=True)
    (JOURNALS / f"{RELEASE}.bin").write_bytes(journal())


if __name__ == "__main__":
    write_golden()
