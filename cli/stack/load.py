"""Compose files: bytes → one plain mapping. Bounded: a document that explodes through its aliases is refused.

It decides what is YAML we take; what the keys mean is elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from covey.errors import InvalidArgument

LARGEST_FILE = 4 * 1024 * 1024
#: Values a document may have once its aliases are followed. A large stack has some thousands.
LARGEST_TREE = 200_000
DEEPEST = 64


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, which YAML forbids and PyYAML takes."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (dict, list)):
            raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key_node.start_mark)
        if key in found:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
# Compose reads dates as text.
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: str(node.value))


def _weigh(node: yaml.Node, source: str) -> None:
    """Refuse a node graph whose tree, aliases followed, is too large or too deep; shared nodes are weighed once."""
    weights: dict[int, int] = {}
    open_nodes: set[int] = set()

    def weigh(one: yaml.Node, depth: int) -> int:
        key = id(one)
        if key in weights:
            return weights[key]
        if depth > DEEPEST or key in open_nodes:
            raise InvalidArgument(f"{source}: nested deeper than {DEEPEST} levels, or an alias that contains itself")
        open_nodes.add(key)
        total = 1
        if isinstance(one, yaml.SequenceNode):
            total += sum(weigh(child, depth + 1) for child in one.value)
        elif isinstance(one, yaml.MappingNode):
            total += sum(weigh(name, depth + 1) + weigh(child, depth + 1) for name, child in one.value)
        open_nodes.discard(key)
        if total > LARGEST_TREE:
            raise InvalidArgument(f"{source}: its aliases expand to more than {LARGEST_TREE} values")
        weights[key] = total
        return total

    weigh(node, 0)


def parse(text: str, source: str) -> dict[str, Any]:
    """The mapping of one compose document. Raises InvalidArgument with the place of what is wrong."""
    if len(text) > LARGEST_FILE:
        raise InvalidArgument(f"{source}: larger than {LARGEST_FILE} bytes")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise InvalidArgument(f"{source}: empty; a compose file has at least 'services:'")
        _weigh(node, source)
        document = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise InvalidArgument(f"{source}: {_place(error)}") from None
    finally:
        loader.dispose()
    if not isinstance(document, dict):
        raise InvalidArgument(f"{source}: the top level must be a mapping with 'services:', not {type(document).__name__}")
    named: dict[str, Any] = _named(document, source)
    return named


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else str(problem)


def _named(value: Any, source: str) -> Any:
    """``value`` with every key as text: YAML reads ``80:`` and ``on:`` as numbers and truths."""
    if isinstance(value, dict):
        return {_key(key, source): _named(item, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item, source) for item in value]
    return value


def _key(key: Any, source: str) -> str:
    if isinstance(key, bool) or key is None:
        raise InvalidArgument(f"{source}: the key {key!r} is read as no text by YAML: put it in quotes")
    return str(key)


def read(path: str) -> tuple[str, str]:
    """(text, name of the source) of a path, "-" being standard input. Raises InvalidArgument when it cannot be read."""
    try:
        if path == "-":
            return sys.stdin.read(LARGEST_FILE + 1), "stdin"
        with open(path, encoding="utf-8") as file:
            return file.read(LARGEST_FILE + 1), path
    except OSError as error:
        raise InvalidArgument(f"cannot read compose file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"{path}: not UTF-8 text") from None


def environment_file(path: Path) -> dict[str, str]:
    """KEY=value lines of an env file, comments and blank lines left out; surrounding quotes are taken off."""
    values: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidArgument(f"cannot read env file {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        key, equals, value = stripped.removeprefix("export ").partition("=")
        if not key.strip() or not equals:
            raise InvalidArgument(f"{path}, line {number}: give KEY=value, not {stripped!r}")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        values[key.strip()] = value
    return values


def merge(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several files as one, later ones over earlier ones: mappings by key, most lists appended, scalars replaced."""
    merged: dict[str, Any] = {}
    for document in documents:
        merged = _over(merged, document, ())
    return merged


#: Lists that replace what an earlier file said instead of adding to it.
_REPLACED = {"command", "entrypoint", "test"}


def _over(base: Any, extra: Any, path: tuple[str, ...]) -> Any:
    if isinstance(base, dict) and isinstance(extra, Mapping):
        both = dict(base)
        for key, value in extra.items():
            both[key] = _over(base[key], value, (*path, key)) if key in base else value
        return both
    if isinstance(base, list) and isinstance(extra, list) and (not path or path[-1] not in _REPLACED):
        return base + [item for item in extra if item not in base]
    return extra
