"""In what two specs differ, field by field. Pure; it decides which lists are read by name and what is never shown.

Specs are compared by what they mean (covey/model/meaning.py). Values under a name that says it is a credential are hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covey.model.meaning import NAMED_BY_USERS, meaning

HIDDEN = "(hidden)"
_CREDENTIALS = ("password", "passwd", "secretkey", "registryauth", "identitytoken", "registrytoken", "authconfig")
#: Names that are credentials only as a whole; ``SecretName`` and ``SecretID`` are references, not secrets.
_WHOLE = frozenset({"auth", "data", "token", "secret"})


@dataclass(frozen=True, slots=True)
class Edit:
    """One field: ``kind`` is added, removed or changed; ``old`` and ``new`` are JSON values, None where there is none.

    ``path`` as ``TaskTemplate.ContainerSpec.Env[COLOUR]``: in brackets a name within a list, a key of the user's, or a place.
    """

    path: str
    kind: str
    old: Any = None
    new: Any = None


def differences(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> tuple[Edit, ...]:
    """The edits that make ``new`` of ``old``, in the order of their paths; None is no service. Nothing: they mean the same."""
    before = meaning(old) if old is not None else {}
    after = meaning(new) if new is not None else {}
    return tuple(sorted(_compare("", "", before, after), key=lambda edit: edit.path))


def _before_equals(entry: Any) -> str:
    return str(entry).partition("=")[0]


def _field(*names: str) -> Callable[[Any], str]:
    return lambda entry: "/".join(str(entry[name]) for name in names if entry.get(name)) if isinstance(entry, Mapping) else ""


def _file(kind: str) -> Callable[[Any], str]:
    def name(entry: Any) -> str:
        if not isinstance(entry, Mapping):
            return ""
        target = (entry.get("File") or {}).get("Name")
        known = str(entry.get(f"{kind}Name") or entry.get(f"{kind}ID") or "")
        return f"{known}:{target}" if target and target != known else known

    return name


#: List → what tells its entries apart. Entries of other lists are told apart by their place.
_NAMES: Mapping[str, Callable[[Any], str]] = {
    "Env": _before_equals,
    "Mounts": _field("Target"),
    "Networks": _field("Target"),
    "Ports": _field("TargetPort", "Protocol", "PublishedPort"),
    "Secrets": _file("Secret"),
    "Configs": _file("Config"),
    "Ulimits": _field("Name"),
}


def _compare(path: str, name: str, old: Any, new: Any) -> Iterator[Edit]:
    if old == new:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            inner = _step(path, name, str(key))
            yield from _at(inner, str(key), key in old, old.get(key), key in new, new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and (tables := _tables(name, old, new)) is not None:
        found = list(_entries(path, *tables))
        yield from found or [_edit(path, "changed", old, new)]
    else:
        yield _edit(path, "changed", old, new)


def _entries(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Edit]:
    for key in dict.fromkeys((*old, *new)):
        yield from _at(f"{path}[{key}]", key, key in old, old.get(key), key in new, new.get(key))


def _at(path: str, name: str, was: bool, old: Any, there: bool, new: Any) -> Iterator[Edit]:
    if was and there:
        yield from _compare(path, name, old, new)
    elif isinstance(value := new if there else old, Mapping) and value:
        yield from _compare(path, name, {} if there else value, value if there else {})
    elif isinstance(value, list) and (tables := _tables(name, [], value)) is not None and value:
        yield from _entries(path, {} if there else tables[1], tables[1] if there else {})
    else:
        yield _edit(path, "added" if there else "removed", old, new)


def _step(path: str, name: str, key: str) -> str:
    if name in NAMED_BY_USERS:
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def _tables(name: str, old: Sequence[Any], new: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Entries by what tells them apart; None: the list is one value (words of a command), or its names are not unique."""
    naming = _NAMES.get(name)
    if naming is None:
        if not all(isinstance(entry, Mapping) for entry in (*old, *new)):
            return None
        return {str(at): entry for at, entry in enumerate(old)}, {str(at): entry for at, entry in enumerate(new)}
    found = ({naming(entry): entry for entry in old}, {naming(entry): entry for entry in new})
    return found if len(found[0]) == len(old) and len(found[1]) == len(new) else None


def _edit(path: str, kind: str, old: Any, new: Any) -> Edit:
    steps = path.replace("[", ".").replace("]", "").split(".")
    if any(_is_credential(step) for step in steps):
        return Edit(path, kind, None if kind == "added" else HIDDEN, None if kind == "removed" else HIDDEN)
    return Edit(path, kind, _shown(old), _shown(new))


def _is_credential(name: str) -> bool:
    plain = name.lower().replace("_", "").replace("-", "")
    return plain in _WHOLE or any(word in plain for word in _CREDENTIALS)


def _shown(value: Any) -> Any:
    """``value`` without credentials within it."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if _is_credential(str(key)) else _shown(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_shown(entry) for entry in value]
    return value
