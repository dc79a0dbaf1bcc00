"""Every pytest run of a machine that has Covey imports its plugin: that must cost nothing."""

from __future__ import annotations

import subprocess
import sys


def test_the_plugin_imports_nothing_of_covey() -> None:
    script = "import pytest, sys; before = set(sys.modules); import covey.testing.plugin; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"covey", "covey.testing", "covey.testing.plugin"}
