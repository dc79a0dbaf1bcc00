"""Containers in every state that a client can bring about, and what a daemon answers to each verb in each of them.

It speaks the Engine API raw, so that Covey and dockerd are asked the same; what is expected is the tests' business.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

API = "/v1.41"
WAITS = 0.4
PATIENCE = 30.0
#: Seconds in which something can be asked of a container before it is started again.
ENOUGH = 1.0
#: A stream that has begun and goes on.
STREAMS = "…"


class Answer(NamedTuple):
    """The message of an error, else the body; ``STREAMS`` for one that does not end."""

    status: int
    text: str


class Caller:
    """An Engine API behind a Unix socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def call(self, method: str, path: str, body: Any = None, *, upgrade: bool = False, patience: float = WAITS) -> Answer:
        """``body``: JSON, or bytes for a tar. ``patience``: seconds for a wait or a stream of statistics."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(PATIENCE)
        kind = "application/x-tar" if isinstance(body, bytes) else "application/json"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Content-Type": kind} if data is not None else {}
        try:
            connection.sock.connect(str(self._path))
            if upgrade:
                headers |= {"Connection": "Upgrade", "Upgrade": "tcp"}
            sock = connection.sock
            connection.request(method, f"{API}{path}", data, headers)
            response = connection.getresponse()
            if response.status == 101:
                return Answer(101, STREAMS)
            sock.settimeout(patience if "/wait" in path or "stats" in path else PATIENCE)
            try:
                text = response.read().decode(errors="replace")
            except TimeoutError:
                return Answer(response.status, STREAMS)
        finally:
            connection.close()
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        message = found.get("message") if isinstance(found, dict) else None
        return Answer(response.status, str(message if message is not None else text).strip())

    def must(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.call(method, path, body)
        assert answer.status < 300, f"{method} {path}: {answer}"
        return json.loads(answer.text) if answer.text else None

    def until(self, ref: str, what: str, true: Callable[[dict[str, Any]], Any]) -> None:
        """Wait until ``true`` of the container's inspect."""
        end = time.monotonic() + PATIENCE
        while not true(seen := self.must("GET", f"/containers/{ref}/json")):
            assert time.monotonic() < end, f"{ref} is not {what}: {seen['State']}"
            time.sleep(0.02)


@dataclass(frozen=True)
class Verb:
    """``{}`` in the path is the container's name. ``alone``: it changes the container, which is then used up."""

    name: str
    method: str
    path: str
    body: Any = None
    alone: bool = False
    upgrade: bool = False


VERBS = (
    Verb("create its name again", "POST", "/containers/create?name={}", {"Image": "{image}"}),
    Verb("start", "POST", "/containers/{}/start", alone=True),
    Verb("stop", "POST", "/containers/{}/stop?t=0", alone=True),
    Verb("restart", "POST", "/containers/{}/restart?t=0", alone=True),
    Verb("kill", "POST", "/containers/{}/kill", alone=True),
    Verb("kill with a bad signal", "POST", "/containers/{}/kill?signal=NOPE"),
    Verb("pause", "POST", "/containers/{}/pause", alone=True),
    Verb("unpause", "POST", "/containers/{}/unpause", alone=True),
    Verb("rename", "POST", "/containers/{}/rename?name={}-new", alone=True),
    Verb("rename to its own name", "POST", "/containers/{}/rename?name={}"),
    Verb("rename to a taken name", "POST", "/containers/{}/rename?name=sv-taken"),
    Verb("rename to nothing", "POST", "/containers/{}/rename?name="),
    Verb("rename to what is no name", "POST", "/containers/{}/rename?name=a%20b"),
    Verb("rm", "DELETE", "/containers/{}", alone=True),
    Verb("rm -f", "DELETE", "/containers/{}?force=1", alone=True),
    Verb("wait", "POST", "/containers/{}/wait"),
    Verb("wait for the next exit", "POST", "/containers/{}/wait?condition=next-exit"),
    Verb("wait for the removal", "POST", "/containers/{}/wait?condition=removed"),
    Verb("exec", "POST", "/containers/{}/exec", {"Cmd": ["true"]}),
    Verb("exec of nothing", "POST", "/containers/{}/exec", {"Cmd": []}),
    Verb("attach", "POST", "/containers/{}/attach?stream=1&stdout=1", upgrade=True),
    Verb("attach with bad keys", "POST", "/containers/{}/attach?stream=1&stdout=1&detachKeys=nope", upgrade=True),
    Verb("exec with bad keys", "POST", "/containers/{}/exec", {"Cmd": ["true"], "DetachKeys": "nope"}),
    Verb("resize", "POST", "/containers/{}/resize?h=20&w=70"),
    Verb("update", "POST", "/containers/{}/update", {"Memory": 64 << 20, "MemorySwap": -1}),
    Verb("update of the policy", "POST", "/containers/{}/update", {"RestartPolicy": {"Name": "unless-stopped"}}, alone=True),
    Verb("update to a bad policy", "POST", "/containers/{}/update", {"RestartPolicy": {"Name": "often"}}),
    Verb("update to too little memory", "POST", "/containers/{}/update", {"Memory": 1000}),
    Verb("top", "GET", "/containers/{}/top"),
    Verb("top without pids", "GET", "/containers/{}/top?ps_args=-o%20comm"),
    Verb("stats, one shot", "GET", "/containers/{}/stats?stream=0&one-shot=1"),
    Verb("stats", "GET", "/containers/{}/stats"),
    Verb("logs", "GET", "/containers/{}/logs?stdout=1"),
    Verb("logs of no stream", "GET", "/containers/{}/logs"),
    Verb("cp out", "GET", "/containers/{}/archive?path=/etc/passwd"),
    Verb("cp out of nothing", "GET", "/containers/{}/archive?path=/nothing"),
    Verb("cp in", "PUT", "/containers/{}/archive?path=/tmp", bytes(1024)),
    Verb("cp into nothing", "PUT", "/containers/{}/archive?path=/nothing", bytes(1024)),
    Verb("diff", "GET", "/containers/{}/changes"),
    Verb("export", "GET", "/containers/{}/export"),
    Verb("inspect", "GET", "/containers/{}/json?size=1"),
)  # fmt: skip

STATES = ("created", "running", "paused", "restarting", "exited", "missing")
_SLEEP = ["sh", "-c", "trap 'exit 0' TERM; echo here; while :; do sleep 0.05; done"]


def make(caller: Caller, image: str, state: str, name: str) -> None:
    """A container that is on its way to ``state``; ``settle`` waits for it."""
    if state == "missing":
        return
    command, policy = {"exited": (["true"], ""), "restarting": (["false"], "always")}.get(state, (_SLEEP, ""))
    body = {"Image": image, "Cmd": command, "HostConfig": {"RestartPolicy": {"Name": policy}, "NetworkMode": "none"}}
    caller.must("POST", f"/containers/create?name={name}", body)
    if state != "created":
        caller.must("POST", f"/containers/{name}/start")
    if state == "paused":
        caller.must("POST", f"/containers/{name}/pause")


def settle(caller: Caller, state: str, name: str) -> None:
    if state == "restarting":
        caller.until(name, "restarting", lambda seen: seen["State"]["Restarting"] and _waits_for(seen) > ENOUGH)
    elif state != "missing":
        caller.until(name, state, lambda seen: seen["State"]["Status"] == state)


def _waits_for(seen: dict[str, Any]) -> float:
    """Seconds until a container that waits for its restart is started again: a tenth, doubled with each that was."""
    ended = datetime.fromisoformat(seen["State"]["FinishedAt"][:19] + "+00:00").timestamp()
    return ended + min(60.0, 0.1 * 2.0 ** seen["RestartCount"]) - time.time()


def _ask(caller: Caller, image: str, verb: Verb, name: str) -> Answer:
    body = {"Image": image} if verb.name.startswith("create") else verb.body
    return caller.call(verb.method, verb.path.replace("{}", name), body, upgrade=verb.upgrade)


def probe(caller: Caller, image: str, states: tuple[str, ...] = STATES) -> dict[tuple[str, str], Answer]:
    """The answer to every verb in every one of ``states``; names are replaced by NAME, ids by ID."""
    found: dict[tuple[str, str], Answer] = {}
    caller.must("POST", "/containers/create?name=sv-taken", {"Image": image})
    alone = [verb for verb in VERBS if verb.alone]
    names = {(state, verb.name): f"sv-{state}-{number}" for state in states for number, verb in enumerate(alone)}
    names |= {(state, ""): f"sv-{state}-shared" for state in states}
    try:
        for (state, _), name in names.items():
            make(caller, image, state, name)
        for state in states:
            for verb in VERBS:
                name = names[state, verb.name if verb.alone else ""]
                settle(caller, state, name)
                answer = _ask(caller, image, verb, name)
                found[state, verb.name] = Answer(answer.status, normal(answer.text, name))
                if answer.status == 201 and verb.name.startswith("create"):
                    caller.call("DELETE", f"/containers/{name}?force=1")
                if verb.alone:
                    for one in (name, f"{name}-new"):
                        caller.call("DELETE", f"/containers/{one}?force=1")
    finally:
        for name in ("sv-taken", *names.values()):
            caller.call("DELETE", f"/containers/{name}?force=1")
    return found


def normal(text: str, name: str) -> str:
    """Without what differs from run to run; the bodies of successes are cut short."""
    text = text.replace(name, "NAME")
    return re.sub(r"[0-9a-f]{64}", "ID", text)[:300]


def table(text: str) -> dict[tuple[str, str], int]:
    """(state, verb) → status, of lines ``verb | status in each of STATES``; ``-`` leaves one out."""
    found: dict[tuple[str, str], int] = {}
    for line in text.strip().splitlines():
        verb, _, codes = line.partition("|")
        for state, code in zip(STATES, codes.split(), strict=True):
            if code != "-":
                found[state, verb.strip()] = int(code)
    return found
