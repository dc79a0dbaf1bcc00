"""Execs over the Engine API."""

from __future__ import annotations

from covey.engine_api import framing
from covey.engine_api.answers import Answer, Empty, Taken, created
from covey.engine_api.call import Call
from covey.engine_api.server import Handler
from covey.engine_api.types.base import validate
from covey.engine_api.types.container import ExecStart, validate_exec_create
from covey.errors import CoveyError
from worker.containers.engine import Engine


class Execs:
    """One method a route."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handlers(self) -> dict[str, Handler]:
        return {
            "exec_create": self.create,
            "exec_start": self.start,
            "exec_resize": self.resize,
            "exec_inspect": self.inspect,
        }

    async def create(self, call: Call) -> Answer:
        body = await call.json()
        validate_exec_create(body)
        return created({"Id": self._engine.exec_create(call.params["id"], body)})

    async def start(self, call: Call) -> Answer:
        body = await call.json(required=False)
        request = validate(ExecStart, body)
        one = self._engine.exec_find(call.params["id"])
        size = list(request.ConsoleSize or []) or None
        if request.Detach:
            await self._engine.exec_detached(one.id, size)
            return Empty(200)
        tty = bool(one.request.get("Tty"))
        client = await call.hijack(tty)
        try:
            await self._engine.exec_attached(one.id, client, size)
        except CoveyError as error:
            # The head is sent: Docker, too, writes what went wrong into the stream; the exit code says the rest.
            text = f"{error.message}\r\n".encode()
            client[1].write(text if tty else framing.encode(framing.STDOUT, text))
        return Taken()

    async def resize(self, call: Call) -> Answer:
        await self._engine.exec_resize(call.params["id"], call.required_integer("h"), call.required_integer("w"))
        return Empty(200)

    async def inspect(self, call: Call) -> Answer:
        return self._engine.exec_inspect(call.params["id"])
