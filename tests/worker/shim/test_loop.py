"""The shim's event loop by itself."""

from __future__ import annotations

import os

from worker.shim.loop import READ, Loop


def test_an_event_is_not_told_to_who_got_the_descriptor_since():
    """Of two that are ready together the first closes the other, whose number a new and silent one takes at once."""
    loop = Loop()
    pipes = [os.pipe(), os.pipe()]
    silent = os.pipe()
    told: list[str] = []

    def first(fd: int) -> None:
        told.append("old")
        other = next(read for read, _ in pipes if read != fd)
        loop.remove(other)
        os.dup2(silent[0], other)
        loop.add(other, READ, lambda _: told.append("new"))
        loop.remove(fd)
        loop.call_later(0.05, loop.stop)

    for read, write in pipes:
        os.write(write, b"x")
        loop.add(read, READ, lambda _, fd=read: first(fd))
    loop.run()
    assert told == ["old"]
    loop.close()
    for fd in (*pipes[0], *pipes[1], *silent):
        os.close(fd)


def test_quiet_is_told_once_after_each_disturbance():
    loop = Loop()
    read, write = os.pipe()
    told: list[str] = []

    def heard(_: int) -> None:
        told.append(os.read(read, 1).decode())

    def quiet() -> None:
        told.append("quiet")
        if len(told) == 1:
            os.write(write, b"x")
        else:
            # Nothing has happened since: it is not told again.
            loop.call_later(0.2, loop.stop)

    loop.add(read, READ, heard)
    loop.when_quiet(0.02, quiet)
    loop.run()
    assert told == ["quiet", "x", "quiet"]
    loop.close()
    os.close(read)
    os.close(write)
