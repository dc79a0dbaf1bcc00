"""``cluster build`` and ``cluster commit``: an image from a Dockerfile, or from a container, made on the node that is asked.

It decides what is sent and how progress looks; what a Dockerfile means is the daemon's.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import build_context
from cli.connection import client
from cli.output import clean, size
from cli.words import fields, pairs
from covey.errors import InvalidArgument

app = typer.Typer()

_PIECE = 256 * 1024
_MANY = list[str] | None


@app.command("build")
def build(
    context: Annotated[str, typer.Argument(metavar="PATH|-", help="A directory; -: a tar or a Dockerfile on stdin")],
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="The Dockerfile (PATH/Dockerfile); - is stdin", show_default=False)
    ] = None,
    tags: Annotated[_MANY, typer.Option("--tag", "-t", help="NAME[:TAG] for the image", show_default=False)] = None,
    arguments: Annotated[
        _MANY, typer.Option("--build-arg", help="NAME=VALUE; a name alone takes the environment's", show_default=False)
    ] = None,
    target: Annotated[str | None, typer.Option(help="Stop at this stage", show_default=False)] = None,
    labels: Annotated[_MANY, typer.Option("--label", help="KEY=VALUE for the image", show_default=False)] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do every step anew")] = False,
    cache_from: Annotated[_MANY, typer.Option("--cache-from", help="Take steps of this image", show_default=False)] = None,
    pull: Annotated[bool, typer.Option("--pull", help="Look for newer base images")] = False,
    platform: Annotated[str | None, typer.Option(help="linux/ARCHITECTURE", show_default=False)] = None,
    network: Annotated[
        str | None, typer.Option(help="Network of RUN: default, host, none, or a name", show_default=False)
    ] = None,
    secrets: Annotated[
        _MANY, typer.Option("--secret", help="id=NAME,src=FILE or id=NAME,env=VARIABLE, for RUN --mount", show_default=False)
    ] = None,
    memory: Annotated[str | None, typer.Option("--memory", "-m", help="Limit of each step, as 64m", show_default=False)] = None,
    hosts: Annotated[_MANY, typer.Option("--add-host", help="NAME:ADDRESS for /etc/hosts", show_default=False)] = None,
    timeout: Annotated[int, typer.Option(help="Seconds the whole build may take; 0: any")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the image's id only")] = False,
    progress: Annotated[str, typer.Option(help="Accepted: it is always plain", hidden=True)] = "plain",
) -> None:
    """Build an image from a Dockerfile."""
    name, body = _body(context, file)
    query: dict[str, Any] = {
        "dockerfile": name,
        "t": tags or None,
        "buildargs": _json(_arguments(arguments)),
        "labels": _json(pairs(labels, "--label")),
        "target": target,
        "nocache": no_cache or None,
        "cachefrom": json.dumps(cache_from) if cache_from else None,
        "pull": pull or None,
        "platform": platform,
        "networkmode": network,
        "memory": _size(memory),
        "extrahosts": ",".join(hosts) if hosts else None,
        "timeout": timeout or None,
        "q": quiet or None,
        "rm": True,
        "forcerm": True,
    }
    headers = _secrets(secrets)
    with client() as api:
        code = _show(api.lines("POST", "/build", query, body=body, headers=headers))
    if code:
        raise typer.Exit(code)


def _show(lines: Iterator[Any]) -> int:
    """Print the stream as it comes; the exit status. Docker's: that of the command that failed."""
    for line in lines:
        if line.get("error"):
            detail = line.get("errorDetail") or {}
            sys.stdout.flush()
            print(f"cluster: {clean(str(detail.get('message') or line['error']))}", file=sys.stderr)
            return int(detail.get("code") or 1)
        text = str(line.get("stream") or "")
        if not text and line.get("status"):
            text = f"{line.get('id', '')} {line['status']}".strip() + "\n"
        if text:
            sys.stdout.write("\n".join(clean(one) for one in _plain(text).split("\n")))
            sys.stdout.flush()
    return 0


def _plain(text: str) -> str:
    """Without the colours that the daemon gives standard error, and with tabs spread."""
    return text.replace("\x1b[91m", "").replace("\x1b[0m", "").replace("\r\n", "\n").expandtabs()


def _body(context: str, file: str | None) -> tuple[str, Iterator[bytes]]:
    """(the Dockerfile's name in the context, the context's tar)."""
    if context == "-":
        if file == "-":
            raise InvalidArgument("the context and the Dockerfile cannot both come from stdin")
        return _from_stdin(file)
    root = Path(context)
    if not root.is_dir():
        raise InvalidArgument(f"{context} is no directory: name the directory with the Dockerfile, or - for a tar on stdin")
    if file == "-":
        data = _stdin()
        return _sent(root, root / "Dockerfile", data)
    dockerfile = Path(file) if file else root / "Dockerfile"
    if not file and not dockerfile.exists() and (root / "dockerfile").exists():
        dockerfile = root / "dockerfile"
    if not dockerfile.is_file():
        raise InvalidArgument(f"there is no {dockerfile}: write one, or name it with --file")
    try:
        inside = dockerfile.resolve().relative_to(root.resolve())
    except ValueError:
        return _sent(root, dockerfile, dockerfile.read_bytes())
    return _sent(root, dockerfile, None, inside.as_posix())


def _sent(root: Path, dockerfile: Path, data: bytes | None, name: str = "") -> tuple[str, Iterator[bytes]]:
    left_out = build_context.matcher(root, dockerfile)
    if data is not None:
        name = f".dockerfile.{os.urandom(8).hex()}"
        added = {name: data}
    else:
        added = {}
    always = frozenset((name, build_context.IGNORE))
    return name, _counted(build_context.pieces(root, left_out, added, always))


def _counted(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """On a terminal, says at the end how much was sent."""
    total = 0
    for piece in pieces:
        total += len(piece)
        yield piece
    if sys.stderr.isatty():
        print(f"Sent {size(total)} of build context", file=sys.stderr, flush=True)


def _stdin() -> bytes:
    if sys.stdin.isatty():
        raise InvalidArgument("nothing on stdin: redirect a Dockerfile or a tar")
    return sys.stdin.buffer.read()


def _from_stdin(file: str | None) -> tuple[str, Iterator[bytes]]:
    """A tar, plain or compressed, passes through; any other text is a Dockerfile without a context."""
    if sys.stdin.isatty():
        raise InvalidArgument("nothing on stdin: redirect a Dockerfile or a tar")
    head = sys.stdin.buffer.read(512)
    magics = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
    if head[257:262] == b"ustar" or head.startswith(magics):

        def passed() -> Iterator[bytes]:
            yield head
            while piece := sys.stdin.buffer.read(_PIECE):
                yield piece

        return file or "Dockerfile", passed()
    if file:
        raise InvalidArgument("stdin holds a Dockerfile, not a context: leave --file out")
    import tarfile

    data = head + sys.stdin.buffer.read()
    info = tarfile.TarInfo("Dockerfile")
    info.size = len(data)
    return "Dockerfile", iter((info.tobuf(), data, b"\0" * (-len(data) % 512), b"\0" * 1024))


def _arguments(given: list[str] | None) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name:
            raise InvalidArgument(f"--build-arg {text!r} is not of the form NAME=VALUE")
        found[name] = value if equals else os.environ.get(name)
    return found


def _json(found: dict[str, Any]) -> str | None:
    return json.dumps(found) if found else None


def _size(text: str | None) -> int | None:
    from cli.stack import units

    return units.size(text, "--memory") if text else None


def _secrets(given: list[str] | None) -> dict[str, str]:
    """The header that carries them; see docs/build.md."""
    found: dict[str, str] = {}
    for text in given or ():
        words = dict(fields(text, "--secret"))
        name = words.get("id")
        source, variable = words.get("src") or words.get("source"), words.get("env")
        if not name or bool(source) == bool(variable):
            raise InvalidArgument(f"--secret {text!r}: write id=NAME,src=FILE or id=NAME,env=VARIABLE")
        try:
            data = Path(source).read_bytes() if source else os.environ[str(variable)].encode()
        except KeyError:
            raise InvalidArgument(f"--secret {text!r}: the environment has no {variable}") from None
        except OSError as error:
            raise InvalidArgument(f"--secret {text!r}: cannot read {source}: {error.strerror}") from None
        found[name] = base64.b64encode(data).decode()
    if not found:
        return {}
    return {"X-Covey-Build-Secrets": base64.b64encode(json.dumps(found).encode()).decode()}


@app.command("commit")
def commit(
    container: str,
    reference: Annotated[str, typer.Argument(metavar="[NAME[:TAG]]", show_default=False)] = "",
    author: Annotated[str | None, typer.Option("--author", "-a", show_default=False)] = None,
    change: Annotated[_MANY, typer.Option("--change", "-c", help="A Dockerfile instruction", show_default=False)] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", show_default=False)] = None,
    no_pause: Annotated[bool, typer.Option("--no-pause", help="Let it run meanwhile")] = False,
) -> None:
    """Make an image of a container's changes; print its id."""
    name, colon, tag = reference.rpartition(":")
    if not colon or "/" in tag:
        name, tag = reference, ""
    query = {
        "container": container,
        "repo": name or None,
        "tag": tag or None,
        "author": author,
        "comment": message,
        "changes": change or None,
        "pause": not no_pause,
    }
    with client() as api:
        print(api.post("/commit", query, json={})["Id"])
