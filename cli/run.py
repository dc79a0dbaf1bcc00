"""``cluster run``, ``exec``, ``attach``: containers joined to the terminal, with the exit codes Docker users script against.

125: the daemon refused; 126: the command cannot be executed; 127: there is no such command; else the container's own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

import typer

from cli.connection import client
from cli.flags import Flag, with_flags
from cli.output import warn
from cli.run_flags import RUN
from covey.engine_api.light import Client, Response
from covey.errors import CoveyError, InvalidArgument, NotFound, Unavailable

app = typer.Typer()

_NOT_FOUND = ("executable file not found", "no such file or directory", "not-found")
_NOT_EXECUTABLE = ("permission denied", "is a directory", "exec format error", "not-executable")
#: What has ended cannot be resized, and nobody minds.
_RESIZE_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.0)
REFUSED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127

Words = Annotated[list[str] | None, typer.Argument(metavar="[COMMAND] [ARG]...", show_default=False)]


def _fail(message: str, code: int) -> int:
    print(f"cluster: {message.strip()}", file=sys.stderr)
    return code


def start_code(message: str) -> int:
    """The exit code of a container that could not be started, by what the daemon said."""
    text = message.lower()
    if any(words in text for words in _NOT_FOUND):
        return NOT_FOUND
    return NOT_EXECUTABLE if any(words in text for words in _NOT_EXECUTABLE) else REFUSED


@app.command("run", context_settings={"allow_interspersed_args": False})
@with_flags(RUN)
def run(image: str, words: Words = None, **flags: Any) -> None:
    """Create and run a container on this node."""
    from cli.run_spec import container_body

    body = container_body(image, words or [], flags)
    stdin, tty, detach = bool(flags["interactive"]), bool(flags["tty"]), bool(flags["detach"])
    if stdin and tty and not detach and not sys.stdin.isatty():
        raise InvalidArgument("the input device is not a TTY: leave -t out when stdin is not a terminal")
    with client() as api:
        try:
            made = _created(
                api, image, {"name": flags["name"], "platform": flags["platform"]}, body, flags["pull"] or "missing"
            )
        except CoveyError as error:
            raise typer.Exit(_fail(_image_hint(error, image), REFUSED)) from None
        for text in made.get("Warnings") or ():
            warn(text)
        reference = str(made["Id"])
        if flags["cidfile"]:
            with open(flags["cidfile"], "x") as file:
                file.write(reference)
        if detach:
            try:
                api.post(f"/containers/{reference}/start")
            except CoveyError as error:
                raise typer.Exit(_not_started(api, reference, error, bool(flags["rm"]))) from None
            print(reference)
            return
        raise typer.Exit(start_attached(api, reference, stdin=stdin, tty=tty, gone=bool(flags["rm"])))


def _created(api: Client, image: str, query: dict[str, str | None], body: dict[str, Any], pull: str) -> dict[str, Any]:
    """The container made; its image is pulled before if it is missing, or as ``pull`` says."""
    from cli.image import fetch

    if pull not in ("missing", "always", "never"):
        raise InvalidArgument(f"--pull {pull!r} is none of missing, always, never")
    quiet = not sys.stdout.isatty()
    if pull == "always":
        fetch(api, image, platform=query["platform"], quiet=quiet)
    try:
        made: dict[str, Any] = api.post("/containers/create", query, body)
    except NotFound as error:
        if pull != "missing" or not _is_of_image(error):
            raise
        print(f"cluster: image {image} is not on this node: pulling it", file=sys.stderr)
        try:
            fetch(api, image, platform=query["platform"], quiet=quiet)
        except CoveyError as refusal:
            raise type(error)(f"No such image: {image}, and it cannot be pulled: {refusal.message.rstrip('.')}") from None
        made = api.post("/containers/create", query, body)
    return made


def _is_of_image(error: NotFound) -> bool:
    return "image" in error.message.lower()


def _image_hint(error: CoveyError, image: str) -> str:
    if isinstance(error, NotFound) and _is_of_image(error):
        return f"{error.message.rstrip('.')}: get it with `cluster image load` or `cluster image import`"
    return error.message


def _not_started(api: Client, reference: str, error: CoveyError, gone: bool) -> int:
    if gone:
        with suppress(CoveyError):
            api.delete(f"/containers/{reference}", {"force": True, "v": True})
    return _fail(error.message, start_code(error.message))


def start_attached(api: Client, reference: str, *, stdin: bool, tty: bool | None = None, gone: bool = False) -> int:
    """Start a container joined to the terminal; its exit code. ``gone``: it is removed when it ends."""
    from cli.streams import Detached, Session

    if tty is None:
        tty = bool(api.get(f"/containers/{reference}/json")["Config"].get("Tty"))
    path = f"/containers/{reference}"
    stream = api.hijack(f"{path}/attach", {"stream": True, "stdin": stdin or None, "stdout": True, "stderr": True})
    waiting = api.stream("POST", f"{path}/wait", {"condition": "removed" if gone else "next-exit"})
    try:
        api.post(f"{path}/start")
    except CoveyError as error:
        stream.close()
        waiting.close()
        return _not_started(api, reference, error, gone)
    session = Session(
        stream,
        tty=tty,
        stdin=stdin,
        on_signal=None if tty and stdin else lambda name: _signal(api, reference, name),
        on_resize=lambda rows, columns: _resize(api, path, rows, columns),
    )
    session.resize()
    try:
        session.run()
    except Detached:
        waiting.close()
        print(f"\r\ndetached from {reference[:12]}: it runs on; see `cluster attach {reference[:12]}`", file=sys.stderr)
        return 0
    return _exit_code(waiting)


def _signal(api: Client, reference: str, name: str) -> None:
    with suppress(CoveyError):
        api.post(f"/containers/{reference}/kill", {"signal": name})


def _resize(api: Client, path: str, rows: int, columns: int) -> None:
    """Tell the terminal's size; again for a moment, for an exec may not have begun when its stream has."""
    for pause in _RESIZE_PAUSES:
        try:
            api.post(f"{path}/resize", {"h": rows, "w": columns})
            return
        except CoveyError:
            time.sleep(pause)


def _exit_code(waiting: Response) -> int:
    lines: Iterator[Any] = waiting.lines()
    ended = next(lines, None)
    waiting.close()
    if ended is None:
        raise Unavailable("the daemon closed the connection before the container's exit code was known")
    if fault := (ended.get("Error") or {}).get("Message"):
        return _fail(fault, REFUSED)
    return int(ended["StatusCode"])


EXEC = (
    Flag("--interactive -i", bool, "Give it stdin"),
    Flag("--tty -t", bool, "Give it a terminal"),
    Flag("--detach -d", bool, "Do not wait for it"),
    Flag("--env -e", list, "KEY=value, or KEY to pass the caller's on"),
    Flag("--env-file", list, "A file of KEY=value lines"),
    Flag("--user -u", str, "uid[:gid] or names"),
    Flag("--workdir -w", str, "Where it starts"),
    Flag("--privileged", bool, "With all capabilities"),
    Flag("--detach-keys", str, "Accepted; the keys are ctrl-p ctrl-q"),
)


@app.command("exec", context_settings={"allow_interspersed_args": False})
@with_flags(EXEC)
def execute(
    container: str, words: Annotated[list[str], typer.Argument(metavar="COMMAND [ARG]...", show_default=False)], **flags: Any
) -> None:
    """Run a command in a running container."""
    from cli.words import environment

    stdin, tty, detach = bool(flags["interactive"]), bool(flags["tty"]), bool(flags["detach"])
    if stdin and tty and not detach and not sys.stdin.isatty():
        raise InvalidArgument("the input device is not a TTY: leave -t out when stdin is not a terminal")
    body: dict[str, Any] = {
        "Cmd": words,
        "AttachStdin": stdin and not detach,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "Tty": tty,
        "Detach": detach,
        "Env": environment(flags["env"], flags["env_file"]),
        "User": flags["user"] or "",
        "WorkingDir": flags["workdir"] or "",
        "Privileged": flags["privileged"],
    }
    with client() as api:
        reference = api.post(f"/containers/{container}/exec", json=body)["Id"]
        raise typer.Exit(_run_exec(api, reference, stdin=stdin, tty=tty, detach=detach))


def _run_exec(api: Client, reference: str, *, stdin: bool, tty: bool, detach: bool) -> int:
    from cli.streams import Detached, Session

    path = f"/exec/{reference}"
    body = {"Detach": detach, "Tty": tty}
    try:
        if detach:
            api.post(f"{path}/start", json=body)
            return 0
        stream = api.hijack(f"{path}/start", json=body)
    except CoveyError as error:
        code = start_code(error.message)
        return _fail(error.message, 1 if code == REFUSED else code)
    session = Session(stream, tty=tty, stdin=stdin, on_resize=lambda rows, columns: _resize(api, path, rows, columns))
    session.resize()
    try:
        session.run()
    except Detached:
        return 0
    return int(api.get(f"{path}/json").get("ExitCode") or 0)


@app.command("attach")
def attach(
    container: str,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", help="Do not give it stdin")] = False,
    sig_proxy: Annotated[str, typer.Option(help="Whether signals are passed on: true or false")] = "true",
) -> None:
    """Attach to a running container; its exit code if it ends meanwhile."""
    from cli.streams import Detached, Session

    with client() as api:
        found = api.get(f"/containers/{container}/json")
        reference, config = found["Id"], found["Config"]
        if not found["State"].get("Running"):
            raise InvalidArgument(f"container {container} does not run: start it with `cluster start -a {container}`")
        tty = bool(config.get("Tty"))
        stdin = bool(config.get("OpenStdin")) and not no_stdin
        path = f"/containers/{reference}"
        waiting = api.stream("POST", f"{path}/wait", {"condition": "not-running"})
        stream = api.hijack(f"{path}/attach", {"stream": True, "stdin": stdin or None, "stdout": True, "stderr": True})
        proxy = sig_proxy.lower() not in ("false", "0") and not (tty and stdin)
        session = Session(
            stream,
            tty=tty,
            stdin=stdin,
            on_signal=(lambda name: _signal(api, reference, name)) if proxy else None,
            on_resize=lambda rows, columns: _resize(api, path, rows, columns),
        )
        session.resize()
        try:
            session.run()
        except Detached:
            waiting.close()
            return
        raise typer.Exit(_exit_code(waiting))
