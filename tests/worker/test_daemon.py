"""The daemon's refusals: what cannot be is one line on stderr and exit code 1, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from covey.errors import Conflict, Unavailable
from worker import daemon

ROOTLESS = """
import os, sys
from pathlib import Path
from worker.daemon import DaemonOptions, run
if os.geteuid() == 0:
    os.setgroups([])
    os.setuid(65534)
base = Path(sys.argv[1])
sys.exit(run(DaemonOptions(data_root=base / "data", exec_root=base / "run", hosts=(f"unix://{base}/api.sock",))))
"""


def test_without_root_it_says_so_in_one_line(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-P", "-c", ROOTLESS, str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "cluster daemon: needs root: it makes namespaces, cgroups and mounts. Run it with sudo"
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_data_root_has_one_daemon(tmp_path: Path) -> None:
    with daemon.hold(tmp_path / "data"):
        with pytest.raises(Conflict, match=r"another daemon uses .*data: stop it, or choose another --data-root"):
            with daemon.hold(tmp_path / "data"):
                pass
    with daemon.hold(tmp_path / "data"):
        pass


def test_a_data_root_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"cannot use the data root .*file/data: Not a directory; choose another --data-root"):
        with daemon.hold(tmp_path / "file" / "data"):
            pass


@pytest.mark.root
@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("http://x", "-H http://x: give unix:///path or tcp://host:port"),
        ("tcp://127.0.0.1", "-H tcp://127.0.0.1: give tcp://host:port"),
        ("tcp://127.0.0.1:23760", "TCP needs --tlscacert, --tlscert and --tlskey"),
        ("tcp://0.0.0.0:23760 --insecure", "loopback"),
        ("unix:///nowhere/api.sock --blob-port w1", "--blob-port 'w1': give a port, host:port, or 0 for none"),
        ("unix:///nowhere/api.sock --blob-port 99999", "give a port, host:port, or 0 for none"),
        ("unix:///nowhere/api.sock --blob-rate -1", "--blob-rate -1: give bytes a second, or 0 for no limit"),
    ],
)
def test_a_listener_that_cannot_be_is_refused_in_one_line(tmp_path: Path, host: str, words: str) -> None:
    cgroup = f"covey-test-daemon-{os.getpid()}"
    isolated = ("unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--")
    command = ("-P", "-m", "cli.main", "daemon", f"--data-root={tmp_path}/data", f"--exec-root={tmp_path}/run")
    try:
        ended = subprocess.run(
            [*isolated, sys.executable, *command, f"--cgroup-parent=/{cgroup}", "--log-level=error", "-H", *host.split()],
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        for directory in sorted(Path("/sys/fs/cgroup").glob(f"*/{cgroup}/**/"), reverse=True):
            directory.rmdir()
    assert ended.returncode == 1, ended.stderr
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
