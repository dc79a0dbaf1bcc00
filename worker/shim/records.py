"""The files a shim leaves in its directory: shim.json (who it is) and exit.json (how its container ended).

Both are written to a temporary file, synced and renamed: a reader sees all of it or none.
"""

from __future__ import annotations

import os

from worker.kernel import process
from worker.kernel.bare import Any, suppress
from worker.runtime import compact_json

VERSION = 1
EXIT = "exit.json"


def write(directory: str, name: str, body: dict[str, Any], *, durable: bool) -> None:
    path = os.path.join(directory, name)
    temporary = f"{path}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, compact_json.dumps({"version": VERSION, **body}))
        if durable:
            os.fsync(fd)
        os.rename(temporary, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def identity(ident: str, keeper: int, cgroup: str | None) -> dict[str, Any]:
    """What shim.json says: who the shim is, and which cgroup is to be swept if it is killed."""
    return {"id": ident, "pid": keeper, "start_time": process.start_time(keeper), "cgroup": cgroup}


def forget(directory: str) -> None:
    """Remove socket, identity and, when nothing else is in it, the directory of a shim that ends and leaves no exit."""
    for name in ("shim.sock", "shim.json"):
        with suppress(OSError):
            os.unlink(os.path.join(directory, name))
    with suppress(OSError):
        os.rmdir(directory)


def read(directory: str, name: str) -> dict[str, Any] | None:
    """The record, or None where there is none (or one of a version nobody knows)."""
    try:
        with open(os.path.join(directory, name), "rb") as file:
            body = compact_json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return body if isinstance(body, dict) and body.get("version") == VERSION else None
