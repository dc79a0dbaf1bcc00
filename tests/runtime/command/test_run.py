"""run: the caller's place taken by the container's process, its signals, terminal and exit code."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
from pathlib import Path

import pytest

pytestmark = pytest.mark.root


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 41", 41), ("kill -9 $$", 0), ("sleep 1000 & exit 3", 3)])
def test_the_exit_code(runtime, script, code):
    # Pid 1 of a namespace takes no signal it has no handler for, not even from itself.
    done = runtime.call("run", "--bundle", runtime.bundle("a", ["sh", "-c", script]), "a", code=code)
    assert done.err == ""
    assert runtime.ids() == []
    assert not runtime.group("a").exists()


def test_death_by_a_signal(runtime):
    namespaces = [{"type": kind} for kind in ("network", "ipc", "uts", "mount")]
    linux = {"namespaces": namespaces, "cgroupsPath": f"{runtime.parent}/a"}
    runtime.call("run", "--bundle", runtime.bundle("a", ["sh", "-c", "kill -TERM $$"], linux=linux), "a", code=143)


def test_a_run_that_fails_leaves_nothing(runtime):
    done = runtime.call("run", "--bundle", runtime.bundle("a", ["nope"]), "a", code=1)
    assert "executable file not found in $PATH" in done.err
    # Found, but nothing the kernel can execute: start fails, not create.
    script = runtime.base / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    mounts = [{"destination": "/bin/script", "type": "bind", "source": str(script), "options": ["bind"]}]
    for options in ([], ["--detach"]):
        bundle = runtime.bundle("a", ["/bin/script"], mounts=mounts)
        assert "no such file" in runtime.call("run", *options, "--bundle", bundle, "a", code=1).err
        assert runtime.ids() == []
        assert not runtime.group("a").exists()


@pytest.mark.parametrize(("uid", "home"), [(0, "/"), (1000, "/tmp"), (7, "/")])
def test_home_is_the_users(runtime, uid, home):
    """From the image's passwd, where the bundle names none; and what it names stays."""
    process = {"cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", "echo $HOME"], "user": {"uid": uid, "gid": uid}}
    assert runtime.call("run", "--bundle", runtime.bundle("a", [], process=process), "a").out == f"{home}\n"
    process["env"].append("HOME=/else")
    assert runtime.call("run", "--bundle", runtime.bundle("a", [], process=process), "a").out == "/else\n"


def test_a_passwd_that_never_answers_is_not_waited_for(runtime):
    fifo = runtime.base / "fifo"
    os.mkfifo(fifo)
    mounts = [{"destination": "/etc/passwd", "type": "bind", "source": str(fifo), "options": ["bind"]}]
    bundle = runtime.bundle("a", ["sh", "-c", "echo $HOME"], mounts=mounts)
    assert runtime.call("run", "--bundle", bundle, "a").out == "/\n"


def test_detached(runtime):
    pid_file = runtime.base / "pid"
    runtime.call("run", "-d", "--pid-file", pid_file, "--bundle", runtime.bundle("a", ["sleep", "1000"]), "a")
    state = runtime.state("a")
    assert state["status"] == "running"
    assert pid_file.read_text() == str(state["pid"])


def test_kept(runtime):
    runtime.call("run", "--keep", "--bundle", runtime.bundle("a", ["sh", "-c", "exit 2"]), "a", code=2)
    assert runtime.state("a")["status"] == "stopped"
    runtime.call("delete", "a")


def test_signals_are_passed_on(runtime):
    script = "trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; echo ready; while true; do sleep 0.01; done"
    out = runtime.base / "out"
    with open(out, "w") as file:
        process = subprocess.Popen(
            runtime.line("run", "--bundle", runtime.bundle("a", ["sh", "-c", script]), "a"),
            stdin=subprocess.DEVNULL,
            stdout=file,
        )
    try:
        runtime.wait_for("ready", lambda: out.read_text() == "ready\n")
        process.send_signal(signal.SIGUSR1)
        runtime.wait_for("usr1", lambda: "usr1" in out.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 9
    finally:
        process.kill()
        process.wait()
    assert out.read_text().split() == ["ready", "usr1", "term"]


def test_a_killed_run_leaves_the_container(runtime):
    """As with runc: it can be found and deleted."""
    with subprocess.Popen(
        runtime.line("run", "--bundle", runtime.bundle("a", ["sleep", "1000"]), "a"), stdin=subprocess.DEVNULL
    ) as process:
        runtime.wait_for("running", lambda: "a" in runtime.ids() and runtime.state("a")["status"] == "running")
        process.kill()
    assert runtime.state("a")["status"] == "running"
    runtime.call("delete", "--force", "a")


class Terminal:
    """A command on a terminal of our own; what it printed so far."""

    def __init__(self, line: list[str], size: tuple[int, int]) -> None:
        self.master, slave = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(line, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.set_blocking(self.master, False)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def has(self, text: bytes) -> bool:
        try:
            self.seen += os.read(self.master, 65536)
        except BlockingIOError:
            pass
        return text in self.seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_a_terminal_is_passed_through(runtime, verb):
    """Size at the start, characters each way, ^C as the container's, a change of size, the old mode at the end."""
    waiting = "while [ ! -e /tmp/end ]; do sleep 0.01; done"
    script = f"trap 'echo int' INT; tty; stty size; read a; echo got $a; {waiting}; stty size; exit 7"
    process = {"terminal": True, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", script]}
    if verb == "run":
        line = runtime.line("run", "--bundle", runtime.bundle("a", [], process=process), "a")
    else:
        runtime.start("a")
        line = runtime.line("exec", "--tty", "a", "sh", "-c", script)
    terminal = Terminal(line, (33, 77))
    try:
        runtime.wait_for("the size", lambda: terminal.has(b"33 77"))
        assert b"/dev/pts/0" in terminal.seen
        os.write(terminal.master, b"word\r")
        runtime.wait_for("the word", lambda: terminal.has(b"got word"))
        os.write(terminal.master, b"\x03")
        runtime.wait_for("the interrupt", lambda: terminal.has(b"int"))
        terminal.resize(20, 50)
        # The kernel tells only the terminal's foreground group, which a test is not.
        terminal.process.send_signal(signal.SIGWINCH)
        runtime.call("exec", "a", "touch", "/tmp/end")
        runtime.wait_for("the new size", lambda: terminal.has(b"20 50"))
        assert terminal.process.wait(20) == 7
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()


def test_a_terminal_somebody_else_has(runtime):
    """In the foreground too: the master goes to the socket, the command waits."""
    path = runtime.base / "console.sock"
    process = {"terminal": True, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh", "-c", "echo there; exit 5"]}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        runtime.call("run", "--console-socket", path, "--bundle", runtime.bundle("a", [], process=process), "a", code=5)
        connection, _ = listener.accept()
        with connection:
            _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    with open(fds[0], "rb", buffering=0) as master:
        assert master.read(100) == b"there\r\n"


def test_orphans_are_adopted_and_reaped(runtime):
    """In a container without a pid namespace, a process whose parent has gone becomes ours, not the machine's."""
    namespaces = [{"type": kind} for kind in ("network", "ipc", "uts", "mount")]
    linux = {"namespaces": namespaces, "cgroupsPath": f"{runtime.parent}/a"}
    out = runtime.base / "out"
    script = "(sleep 0.05; echo; read a b c parent rest </proc/self/stat) & (sh -c 'sleep 1000 & echo $!') ; sleep 1000"
    with open(out, "w") as file:
        process = subprocess.Popen(
            runtime.line("run", "--bundle", runtime.bundle("a", ["sh", "-c", script], linux=linux), "a"),
            stdin=subprocess.DEVNULL,
            stdout=file,
        )
    try:
        orphan = int(runtime.wait_for("the orphan", lambda: out.read_text().split())[0])
        runtime.wait_for("adoption", lambda: f"PPid:\t{process.pid}" in Path(f"/proc/{orphan}/status").read_text())
        os.kill(orphan, signal.SIGKILL)
        runtime.wait_for("reaping", lambda: not os.path.exists(f"/proc/{orphan}"))
        assert process.poll() is None
        runtime.call("kill", "--all", "a", "KILL")
        assert process.wait(20) == 137
    finally:
        process.kill()
        process.wait()
