"""A daemon with scripted handlers on a real socket, and the command line run against it."""

import asyncio
import threading
from typing import NamedTuple

import pytest

from cli.main import main
from covey.engine_api.listeners import listen_unix
from covey.engine_api.server import Server
from covey.errors import NotImplementedYet


class Done(NamedTuple):
    status: int
    out: str
    err: str


class Daemon:
    """Serves ``handlers`` (by route name; may be changed while it runs) in a thread of its own; remembers the calls."""

    def __init__(self, path):
        self.path = path
        self.handlers = {}
        self.calls = []
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self):
        self._stop = asyncio.Event()
        server = Server({}, forwards=dict.fromkeys(("node", "cluster", "merged"), self._dispatch))
        async with listen_unix(server, self.path):
            self._up.set()
            await self._stop.wait()

    async def _dispatch(self, call):
        name = call.route.name
        if name not in self.handlers:
            raise NotImplementedYet(f"{name} is not scripted")
        body = await call.json() if call.route.body == "json" else None
        self.calls.append((name, dict(call.params), dict(call.query), body))
        answer = self.handlers[name](call) if body is None else self.handlers[name](call, body)
        return await answer if asyncio.iscoroutine(answer) else answer

    def __enter__(self):
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def daemon(tmp_path_factory, monkeypatch):
    path = str(tmp_path_factory.mktemp("s") / "s")
    monkeypatch.setenv("COVEY_HOST", f"unix://{path}")
    monkeypatch.delenv("DOCKER_API_VERSION", raising=False)
    with Daemon(path) as daemon:
        yield daemon


@pytest.fixture
def cluster(capfd):
    """Run ``cluster …`` in this process."""

    def run(*argv):
        capfd.readouterr()
        status = main([str(word) for word in argv])
        out, err = capfd.readouterr()
        return Done(status, out, err)

    return run
