"""The house plan as checks that import-linter cannot make: empty inits, sizes, names, and that our packages are ours."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("covey", "scheduler", "manager", "worker", "cli")
LINES = 600
FUNCTION = 60
BANNED_SUFFIXES = ("Manager", "Helper", "Utils")
PURE = ("scheduler", "covey/model", "covey/wire")
IMPURE = {"asyncio", "time", "random", "os", "socket", "logging", "threading", "subprocess", "secrets", "uuid"}
Trees = list[tuple[Path, ast.Module]]
BANNED_CALLS = {"eval", "exec", "pickle", "yaml.load", "tarfile.extractall", "tarfile.extract"}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders or PACKAGES:
        yield from sorted((ROOT / folder).rglob("*.py"))


@pytest.fixture(scope="module")
def trees() -> Trees:
    return [(path.relative_to(ROOT), ast.parse(path.read_text())) for path in sources()]


@pytest.mark.parametrize("package", PACKAGES)
def test_our_generic_names_are_ours(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None
    assert Path(module.__file__) == ROOT / package / "__init__.py"


def test_package_inits_stay_empty() -> None:
    filled = [path for path in sources() if path.name == "__init__.py" and path.read_text().strip()]
    assert not filled


def test_every_file_says_on_top_what_it_is_for(trees: Trees) -> None:
    silent = [str(path) for path, tree in trees if path.name != "__init__.py" and not ast.get_docstring(tree)]
    assert not silent


def test_files_and_functions_keep_to_one_subject(trees: Trees) -> None:
    large = [f"{path}: {n} lines" for path in sources() if (n := path.read_text().count("\n")) > LINES]
    for path, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                size = node.end_lineno - node.lineno + 1
                if size > FUNCTION:
                    large.append(f"{path}:{node.lineno} {node.name}: {size} lines")
    assert not large, "perhaps a room is missing:\n" + "\n".join(large)


def test_no_class_is_called_by_a_word_that_says_nothing(trees: Trees) -> None:
    vague = [
        f"{path}: {node.name}"
        for path, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and (node.name.endswith(BANNED_SUFFIXES) or (node.name.endswith("Service") and node.name != "Service"))
    ]
    assert not vague


def test_the_brain_the_model_and_the_wire_import_nothing_impure() -> None:
    impure = []
    for path in sources(*PURE):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            impure += [f"{path}: {name}" for name in names if name.partition(".")[0] in IMPURE]
    assert not impure


def test_no_call_that_runs_what_it_reads(trees: Trees) -> None:
    dangerous = []
    for path, tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                shell = any(keyword.arg == "shell" and ast.unparse(keyword.value) == "True" for keyword in node.keywords)
                if name in BANNED_CALLS or name.startswith("pickle.") or shell or ".extractall" in name:
                    dangerous.append(f"{path}:{node.lineno} {name}")
    assert not dangerous


def test_ctypes_stays_in_the_kernel_room(trees: Trees) -> None:
    outside = []
    for path, tree in trees:
        if path.parts[:2] == ("worker", "kernel"):
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            outside += [f"{path}:{node.lineno}" for name in names if name.partition(".")[0] == "ctypes"]
    assert not outside


def test_only_the_store_imports_the_etcd_client(trees: Trees) -> None:
    outside = []
    for path, tree in trees:
        if path.parts[:3] == ("manager", "store", "etcd") or path.as_posix() == "manager/store/etcd.py":
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            outside += [f"{path}:{node.lineno}" for name in names if name.partition(".")[0] in ("aetcd", "grpc")]
    assert not outside
