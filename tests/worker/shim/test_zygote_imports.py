"""What the zygote loads: nothing that makes its forks dearer, which every container pays for three times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

#: Work registered for every fork (random, logging), threads, or much memory for little.
DEAR = {
    "asyncio",
    "dataclasses",
    "hashlib",
    "inspect",
    "logging",
    "pathlib",
    "random",
    "shutil",
    "subprocess",
    "tempfile",
    "threading",
}


def test_nothing_dear_is_loaded():
    root = str(Path(__file__).resolve().parents[3])
    words = f"import sys; sys.path.insert(0, {root!r}); import worker.shim.__main__; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", words], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "worker.shim.keeper" in loaded
    assert DEAR & set(loaded) == set()
