"""Files of the network room: one JSON file a network and one an attachment, each replaced by a rename.

Networks outlive a power cut, so they are synced. Attachments mean something only while the kernel that holds their links
runs (they carry its boot id), so they need no sync: a crash of the daemon loses nothing that was renamed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import msgspec

from worker.kernel import trees

log = logging.getLogger(__name__)


def write(path: Path, record: object, *, sync: bool) -> None:
    """Replaces the file whole, by what JSON makes of ``record`` (objects, dataclasses); the directory must exist."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        trees.overwrite(temporary, msgspec.json.encode(record), sync=sync)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def read_all(directory: Path) -> list[dict[str, Any]]:
    """Every readable record of a directory, in the order of file names; an unreadable one is logged and left out.

    What a daemon that died was about to write is removed.
    """
    for path in directory.glob(".*.tmp"):
        remove(path)
    records = []
    for path in sorted(directory.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            log.warning("network record %s cannot be read and is ignored: %s", path, error)
            continue
        if record.get("version") != 1:
            log.warning("network record %s has version %s, this release reads 1", path, record.get("version"))
            continue
        records.append(record)
    return records


def remove(path: Path) -> None:
    """Removes the file if it is there."""
    path.unlink(missing_ok=True)


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
