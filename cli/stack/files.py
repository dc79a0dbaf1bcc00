"""Compose files → one checked document: read, filled in, merged, paths and env files resolved. Touches files, no network.

It decides what is relative to what: the first file's directory, or the working directory when it comes from stdin.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.stack.convert import environment
from cli.stack.interpolate import interpolate
from cli.stack.keys import check, mapping, sequence
from cli.stack.load import environment_file, merge, parse, read
from cli.stack.units import truth
from covey.errors import InvalidArgument

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Project:
    """A merged document, the directory its paths are relative to, and the variables it was filled in with."""

    document: Mapping[str, Any]
    directory: Path
    variables: Mapping[str, str]

    @property
    def services(self) -> Mapping[str, Any]:
        """Compose name → service."""
        return mapping(self.document.get("services"), "services")

    def section(self, kind: str) -> dict[str, Mapping[str, Any]]:
        """A top-level section, each entry a mapping."""
        return {name: mapping(body, f"{kind}.{name}") for name, body in mapping(self.document.get(kind), kind).items()}


def load(paths: Sequence[str], environ: Mapping[str, str], warn: Warn) -> Project:
    """The project of several files, later ones over earlier ones. Raises InvalidArgument naming file and place."""
    if list(paths).count("-") > 1:
        raise InvalidArgument("stdin can be read once: give -c - only once")
    directory = (Path.cwd() / paths[0]).parent if paths[0] != "-" else Path.cwd()
    beside = directory / ".env"
    variables = {**(environment_file(beside) if beside.is_file() else {}), **environ}
    said: set[str] = set()

    def warn_once(text: str) -> None:
        if text not in said:
            said.add(text)
            warn(text)

    documents = []
    for path in paths:
        text, source = read(path)
        documents.append(interpolate(parse(text, source), variables, warn_once))
    document = merge(documents)
    if not mapping(document.get("services"), "services"):
        raise InvalidArgument("services: a stack needs at least one service")
    check(document, warn_once)
    project = Project(document, directory, variables)
    for name, service in project.services.items():
        if service.get("volumes"):
            service["volumes"] = _absolute(service.get("volumes"), f"services.{name}.volumes", directory, warn_once)
    return project


def _absolute(value: Any, path: str, directory: Path, warn: Warn) -> list[Any]:
    """Volumes with sources relative to the file made absolute, as Docker does; the nodes must have them."""
    out: list[Any] = []
    for index, entry in enumerate(sequence(value, path)):
        source = entry.get("source") if isinstance(entry, dict) and entry.get("type") == "bind" else None
        source = str(entry).partition(":")[0] if isinstance(entry, str) else source
        if not source or not str(source).startswith((".", "~")):
            out.append(entry)
            continue
        whole = os.path.normpath(directory / os.path.expanduser(str(source)))
        warn(f"{path}.{index}: {source} is taken as {whole}, which every node that runs it must have")
        out.append({**entry, "source": whole} if isinstance(entry, dict) else whole + entry[len(str(source)) :])
    return out


def service_environment(project: Project, name: str) -> dict[str, str]:
    """A service's variables: those of its env files, then its environment over them."""
    service = project.services[name]
    path = f"services.{name}.env_file"
    given = service.get("env_file")
    entries = [given] if isinstance(given, (str, dict)) else sequence(given, path)
    found: dict[str, str] = {}
    for index, entry in enumerate(entries):
        long = entry if isinstance(entry, dict) else {"path": entry}
        if unknown := sorted(set(long) - {"path", "required", "format"}):
            raise InvalidArgument(f"unknown key {path}.{index}.{unknown[0]}; known here are path, required, format")
        if not long.get("path"):
            raise InvalidArgument(f"{path}.{index}.path is missing")
        file = project.directory / str(long["path"])
        if not file.exists() and not truth(long.get("required", True), f"{path}.{index}.required"):
            continue
        found |= environment_file(file)
    return found | environment(service.get("environment"), f"services.{name}.environment", project.variables)


def file_data(project: Project, kind: str, name: str) -> bytes:
    """What a secret or config holds: a file's bytes, a variable's text, or the text itself."""
    body = project.section(f"{kind}s")[name]
    path = f"{kind}s.{name}"
    given = [key for key in ("file", "environment", "content") if body.get(key) is not None]
    if len(given) != 1:
        raise InvalidArgument(f"{path}: give one of file, environment, content, or external: true")
    if given[0] == "content":
        return str(body["content"]).encode()
    if given[0] == "environment":
        variable = str(body["environment"])
        if variable not in project.variables:
            raise InvalidArgument(f"{path}.environment: the variable {variable} is not set")
        return project.variables[variable].encode()
    file = project.directory / os.path.expanduser(str(body["file"]))
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path}.file: cannot read {file}: {error.strerror}") from None
