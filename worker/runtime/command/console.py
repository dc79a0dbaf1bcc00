"""Terminals of the command line: the master sent to whoever listens at --console-socket, and when one is needed."""

from __future__ import annotations

import os
import socket

from worker.runtime.command.report import CommandError

_NAME = b"/dev/ptmx"


def check(*, terminal: bool, detached: bool, console_socket: str) -> None:
    """Raise CommandError unless somebody will hold the terminal's other end."""
    if terminal and detached and not console_socket:
        raise CommandError(
            "process.terminal needs somebody at its other end: name a --console-socket, or run it without --detach"
        )
    if console_socket and not terminal:
        raise CommandError("--console-socket is for a terminal: set process.terminal, or leave it out")


def send(path: str, master: int) -> None:
    """Pass the master on by SCM_RIGHTS, with a name for it as the message."""
    try:
        place = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(f"/proc/self/fd/{place}/{os.path.basename(path)}")
                socket.send_fds(connection, [_NAME], [master])
        finally:
            os.close(place)
    except OSError as error:
        raise CommandError(f"--console-socket {path}: {error.strerror}: somebody has to listen there") from None
