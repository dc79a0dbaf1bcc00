"""Kills an operation with SIGKILL before each of its file operations, in a fork, and lets a test look at what is left.

It knows processes and file operations, and nothing of images. A file operation is whatever Python's audit hook tells of
(opening, renaming, removing, making, changing attributes …), and syncs, device nodes and writes, which it does not tell of; a
write is two, with half of the data between them. ``count`` alone serves who is a process of its own.
"""

from __future__ import annotations

import builtins
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EVENTS = frozenset(
    (
        "open", "os.chmod", "os.chown", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir",
        "os.setxattr", "os.symlink", "os.truncate", "os.utime",
    )
)  # fmt: skip
UNTOLD = ("write", "fsync", "sync", "mknod", "mkfifo", "lseek")

Work = Callable[[Path], Any]
Concerns = Callable[[str, str], bool]
"""Of an audit event and its first argument, a path or descriptor: whether it counts."""


def _anywhere(event: str, where: str) -> bool:
    return not (event == "open" and "/proc/" in where)


def count(last: int, concerns: Concerns = _anywhere) -> Callable[[], int]:
    """From now on this process counts its file operations and does not outlive number ``last``; how many there were so far."""
    made = 0
    lock = threading.Lock()

    def step() -> None:
        nonlocal made
        with lock:
            made += 1
            if made == last:
                os.kill(os.getpid(), signal.SIGKILL)

    def told(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and concerns(event, str(arguments[0])):
            step()

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            step()
            return call(*arguments, **options)

        return counted

    for name in UNTOLD:
        setattr(os, name, counting(getattr(os, name)))
    plain_open = builtins.open

    def stepping_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        opened = plain_open(file, mode, *arguments, **options)
        return _Written(opened, step) if set(mode) & set("wxa+") else opened

    builtins.open = stepping_open
    sys.addaudithook(told)
    return lambda: made


class _Written:
    """A file open for writing, each write of which counts, also the moment before and after: it is empty, or half there."""

    def __init__(self, file: Any, step: Callable[[], None]) -> None:
        self._file, self._step = file, step
        step()

    def write(self, data: Any) -> int:
        half = len(data) // 2
        written: int = self._file.write(data[:half])
        self._file.flush()
        self._step()
        if written == half:
            written += self._file.write(data[half:])
        self._file.flush()
        self._step()
        return written

    def __enter__(self) -> _Written:
        self._file.__enter__()
        return self

    def __exit__(self, *fault: object) -> None:
        self._file.__exit__(*fault)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def run(work: Work, root: Path, last: int = 0) -> int | None:
    """How many file operations the work made; None when it was killed before number ``last``."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            made = count(last)
            work(root)
            os.write(writer, str(made()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.WEXITSTATUS(status) == 0, "the work failed by itself; its words are on stderr"
    return int(said)


def each(work: Work, before: Path, place: Path, sample: int | None, seed: int = 1) -> Iterator[tuple[int, bool]]:
    """(number, whether the work got to its end) for every file operation, or a seeded sample of them.

    Each time ``place`` is a fresh copy of ``before`` on which the work was killed; the caller looks at it, and may do
    anything to it. The count is printed.
    """
    _copy(before, place)
    total = run(work, place)
    assert total
    numbers = list(range(1, total + 1))
    if sample is not None and sample < total:
        # The first and the last few are where half-made things come and go.
        numbers = sorted({*numbers[:3], *numbers[-12:], *random.Random(seed).sample(numbers, sample)})
    print(f"{work.__name__}: killed at {len(numbers)} of {total} file operations")
    for number in numbers:
        _copy(before, place)
        yield number, run(work, place, number) is not None


def _copy(before: Path, place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)
    subprocess.run(["cp", "-a", str(before), str(place)], check=True)
