"""The demo ends well when every claim holds, and loudly when one does not; either way nothing of it stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from covey.testing import lab_remains

from .conftest import REPOSITORY, STACK_FILE

pytestmark = pytest.mark.e2e


def demo(stack_file: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "covey.testing.demo", str(stack_file), "--fast"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=110, cwd=REPOSITORY, check=False)


def remains() -> list[str]:
    return [name for name in lab_remains.names() if name.startswith("demo")]


def test_the_demo_verifies_every_step() -> None:
    done = demo(STACK_FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("✓") == 14, done.stdout
    assert "✗" not in done.stdout
    assert not done.stderr
    assert not remains()


def test_a_stack_that_is_not_as_claimed_ends_the_demo_with_that_claim(tmp_path: Path) -> None:
    other = tmp_path / "hello.yml"
    other.write_text(STACK_FILE.read_text().replace("replicas: 3", "replicas: 2"))
    done = demo(other)
    assert done.returncode == 1
    assert "✗ three replicas stand on three workers" in done.stdout
    assert "not as claimed: three replicas stand on three workers" in done.stderr
    assert "machine m1" in done.stderr, "what the cluster knew is printed"
    assert not remains()
