"""The processes of a container as ``ps`` of the machine shows them (docker top)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from covey.errors import InvalidArgument, NotImplementedYet


def table(text: str, pids: Collection[int]) -> dict[str, Any]:
    """The rows of these processes. Raises InvalidArgument when there is no PID column."""
    lines = text.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise InvalidArgument("Couldn't find PID field in ps output: choose columns that have it")
    column = titles.index("PID")
    rows = []
    for line in lines[1:]:
        fields = line.split(None, len(titles) - 1)
        if len(fields) > column and fields[column].isdigit() and int(fields[column]) in pids:
            rows.append(fields + [""] * (len(titles) - len(fields)))
    return {"Titles": titles, "Processes": rows}


async def top(pids: Collection[int], arguments: str) -> dict[str, Any]:
    """ContainerTopResponse; ``arguments`` are those of ps."""
    words = arguments.split() or ["-ef"]
    try:
        child = await asyncio.create_subprocess_exec(
            "ps", *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError:
        raise NotImplementedYet("top needs ps on the node: install the package procps") from None
    output, errors = await child.communicate()
    if child.returncode:
        raise InvalidArgument(f"ps {' '.join(words)} failed: {errors.decode('utf-8', 'replace').strip()}")
    return table(output.decode("utf-8", "replace"), pids)
