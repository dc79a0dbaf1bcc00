"""Stored values: this release reads the bytes of every release whose golden files are kept, and writes those of its own.

Golden files are ``golden/stored/<release>/<kind>.msgpack``. After a change that is meant, write this release's anew with
``python tests/contract/test_stored_values.py``; never touch those of an earlier one.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from covey.model.objects import KINDS, Service, Stored
from manager.store import codec
from manager.store.codec import SCHEMA, Unreadable, decode, encode

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "stored"
RELEASE = ".".join(tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]["version"].split(".")[:2])
FILES = sorted(GOLDEN.glob("*/*.msgpack"))


def filled(kind: Any, name: str = "x") -> Any:
    """A value of a type (as msgspec.inspect tells it) in which nothing is at its default."""
    inspect = msgspec.inspect
    if isinstance(kind, inspect.StructType):
        fields = {field.name: filled(field.type, field.name) for field in kind.fields}
        return kind.cls(**fields)
    if isinstance(kind, inspect.UnionType):
        return filled(next(each for each in kind.types if not isinstance(each, inspect.NoneType)), name)
    if isinstance(kind, inspect.EnumType):
        return list(kind.cls)[len(kind.cls) // 2]
    if isinstance(kind, inspect.DictType):
        return {f"{name}-key": filled(kind.value_type, name)}
    if isinstance(kind, inspect.VarTupleType):
        return (filled(kind.item_type, name), filled(kind.item_type, name))
    if isinstance(kind, inspect.TupleType):
        return tuple(filled(each, name) for each in kind.item_types)
    plain = {
        inspect.IntType: 7_000_000_000,
        inspect.FloatType: 1.25,
        inspect.BoolType: True,
        inspect.StrType: f"a {name}",
        inspect.BytesType: b"\0\xff" + name.encode(),
        inspect.AnyType: {"Name": name, "List": [1, None, True, 0.5], "Unknown": {"kept": "as it is"}},
    }
    return plain[type(kind)]


def sample(kind: str) -> Stored:
    item = cast(Stored, filled(msgspec.inspect.type_info(KINDS[kind])))
    return msgspec.structs.replace(item, version=0)


def test_every_kind_of_this_release_is_kept() -> None:
    assert {path.stem for path in FILES if path.parent.name == RELEASE} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_this_release(kind: str) -> None:
    """A difference is a change of the stored format: see this file's docstring."""
    assert encode(sample(kind)) == (GOLDEN / RELEASE / f"{kind}.msgpack").read_bytes()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_older_bytes_are_read_and_nothing_is_lost(path: Path) -> None:
    raw = path.read_bytes()
    schema, kind, body = msgspec.msgpack.decode(raw)
    item = decode(raw, 42)
    assert item.version == 42
    assert type(item) is KINDS[kind]
    if schema == SCHEMA:
        shown = msgspec.msgpack.decode(encode(item))[2]
        assert {name: shown.get(name) for name in body} == body


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_has_nothing_at_its_default(kind: str) -> None:
    """Else the golden files would not show every field."""
    fields = set(msgspec.msgpack.decode(encode(sample(kind)))[2])
    assert fields == set(KINDS[kind].__struct_fields__) - {"version"}


def test_unknown_fields_and_missing_ones() -> None:
    newer = msgspec.msgpack.encode([SCHEMA, "service", {"id": "s", "spec": {"Name": "web"}, "from_the_future": 1}])
    assert decode(newer, 3) == Service(id="s", spec={"Name": "web"}, version=3)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"", "not \\[schema, kind, body\\]"),
        (b"rubbish", "not \\[schema, kind, body\\]"),
        (msgspec.msgpack.encode([SCHEMA + 1, "service", {}]), "written by a newer one"),
        (msgspec.msgpack.encode([SCHEMA, "gizmo", {}]), "written by a newer one"),
        (msgspec.msgpack.encode([SCHEMA, "service", {"id": 5}]), "stored service at revision 9 is not one"),
        (msgspec.msgpack.encode([SCHEMA - 1, "service", {}]), "too old"),
    ],
)
def test_what_cannot_be_read_says_why(value: bytes, says: str) -> None:
    with pytest.raises(Unreadable, match=says):
        decode(value, 9)


def test_a_former_schema_is_upgraded_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    old = msgspec.msgpack.encode([SCHEMA, "service", {"ident": "s", "spec": {}}])
    monkeypatch.setattr(codec, "SCHEMA", SCHEMA + 2)
    rename = {SCHEMA: lambda kind, body: {"id": body["ident"], "spec": body["spec"]}, SCHEMA + 1: lambda kind, body: body}
    monkeypatch.setattr(codec, "UPGRADES", rename)
    assert decode(old, 5) == Service(id="s", spec={}, version=5)


def test_the_version_is_not_stored() -> None:
    item = Service(id="s", spec={})
    assert encode(msgspec.structs.replace(item, version=8)) == encode(item)


def write_golden() -> None:
    directory = GOLDEN / RELEASE
    directory.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        (directory / f"{kind}.msgpack").write_bytes(encode(sample(kind)))


if __name__ == "__main__":
    write_golden()
