"""A node pays only for what is asked of it: what a daemon that builds nothing and pulls nothing imports."""

from __future__ import annotations

import subprocess
import sys

LATER = (
    "worker.build", "worker.dockerfile", "worker.images.pull", "worker.images.push", "worker.images.registry.access",
    "worker.images.registry.connection", "worker.registry", "numpy", "grpc", "cryptography", "yaml", "jsonschema",
)  # fmt: skip


def test_a_daemons_imports() -> None:
    script = "import sys, worker.daemon; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    found = done.stdout.split()
    assert "worker.daemon" in found
    assert [name for name in found if any(name == late or name.startswith(f"{late}.") for late in LATER)] == []
