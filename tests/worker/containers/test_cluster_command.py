"""The cluster command's own verbs for containers that live, at a real node."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from .conftest import Node, wait_until

pytestmark = pytest.mark.root


def cluster(node: Node, *words: str, code: int = 0) -> str:
    program = str(Path(sys.executable).with_name("cluster"))
    done = subprocess.run([program, "-H", f"unix://{node.socket}", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def test_update_stats_diff_and_export(node: Node, tmp_path: Path) -> None:
    node.run("--name", "one", "busybox", "sh", "-c", "echo new > /new; echo made; sleep 100")
    wait_until(lambda: node.out("logs", "one") == "made", "it has written")
    assert cluster(node, "update", "--memory", "64m", "--restart", "always", "one") == "one\n"
    shown = node.inspect("one")["HostConfig"]
    assert (shown["Memory"], shown["RestartPolicy"]["Name"]) == (64 << 20, "always")
    assert "nothing to change" in cluster(node, "update", "one", code=1)
    row = json.loads(cluster(node, "stats", "--no-stream", "--format", "json"))
    assert (row["Name"], row["PIDs"], row["MemUsage"].endswith("/ 64MiB")) == ("one", "1", True)
    assert cluster(node, "diff", "one") == "A /new\n"
    cluster(node, "export", "-o", str(tmp_path / "one.tar"), "one")
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert {"new", "bin/busybox"} <= set(tar.getnames())
    assert [path.name for path in tmp_path.iterdir()] == ["one.tar"]
    assert "No such container" in cluster(node, "diff", "nothing", code=1)
