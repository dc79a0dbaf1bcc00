"""This machine's Python as files of an image: one interpreter, the modules asked for, and the libraries they need.

For programs that a test runs inside containers and that need more than busybox can do (raw system calls). It makes
bytes only. The interpreter is ``PYTHON``; what is not among ``modules`` cannot be imported there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PYTHON = "/py/bin/python3"
MODULES = (
    "ctypes",
    "errno",
    "json",
    "mmap",
    "os",
    "resource",
    "select",
    "signal",
    "socket",
    "stat",
    "struct",
    "threading",
    "time",
)

_ASK = """
import importlib, json, sys, sysconfig
for name in sys.argv[1:]:
    importlib.import_module(name)
files = {module.__file__ for module in sys.modules.values() if getattr(module, "__file__", None)}
print(json.dumps([sysconfig.get_path("stdlib"), sys.executable, sorted(files)]))
"""
_LIBRARY = re.compile(r"(/\S+) \(0x")


def python_files(modules: Sequence[str] = MODULES, extra: Mapping[str, bytes] | None = None) -> dict[str, bytes]:
    """Path → content of what an image needs to run ``PYTHON``; ``extra`` are modules of one's own, name → source."""
    base = getattr(sys, "_base_executable", "") or sys.executable
    done = subprocess.run([base, "-I", "-S", "-c", _ASK, *modules], capture_output=True, text=True, check=True)
    standard, executable, sources = json.loads(done.stdout)
    library = f"/py/lib/{Path(standard).name}"
    files = {PYTHON: Path(executable).resolve().read_bytes()}
    programs = [executable]
    for source in sources:
        files[f"{library}/{os.path.relpath(source, standard)}"] = Path(source).read_bytes()
        if source.endswith(".so"):
            programs.append(source)
    for name, text in (extra or {}).items():
        files[f"{library}/{name}.py"] = text
    for needed in _libraries(programs):
        # The loader has its fixed place; what it loads is found in its default directories.
        place = needed if "/ld-" in needed else f"/lib/{os.path.basename(needed)}"
        files[place] = Path(needed).read_bytes()
    return files


def _libraries(programs: Sequence[str]) -> list[str]:
    found: set[str] = set()
    for program in programs:
        done = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
        found.update(_LIBRARY.findall(done.stdout))
    return sorted(found)


def is_program(path: str) -> bool:
    """Whether a file of ``python_files`` has to be executable."""
    return path == PYTHON or "/ld-" in path
