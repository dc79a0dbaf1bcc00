"""Files of containers over the Engine API: docker cp, diff, export."""

from __future__ import annotations

import base64
import json
from typing import Any

from covey.engine_api.answers import Answer, Empty, Stream
from covey.engine_api.call import Call
from covey.engine_api.server import Handler
from worker.containers import copying
from worker.containers.engine import Engine
from worker.routes.bodies import BodyReader

TAR = "application/x-tar"
STAT_HEADER = "X-Docker-Container-Path-Stat"


def stat_header(found: dict[str, Any]) -> dict[str, str]:
    """ContainerPathStat as the header that carries it."""
    return {STAT_HEADER: base64.b64encode(json.dumps(found).encode()).decode()}


class Archives:
    """One method a route."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handlers(self) -> dict[str, Handler]:
        return {
            "container_archive_head": self.head,
            "container_archive_get": self.get,
            "container_archive_put": self.put,
            "container_changes": self.changes,
            "container_export": self.export,
        }

    async def head(self, call: Call) -> Answer:
        host = self._engine.host
        found = await copying.stat_path(host, host.resolve(call.params["id"]), call.text("path"))
        return Empty(200, stat_header(found))

    async def get(self, call: Call) -> Answer:
        host, path = self._engine.host, call.text("path")
        live = host.resolve(call.params["id"])
        found = await copying.stat_path(host, live, path)
        host.publish(live.container, "archive-path", {"path": path})
        return Stream(copying.pack(host, live, path), TAR, headers=stat_header(found))

    async def put(self, call: Call) -> Answer:
        host = self._engine.host
        await copying.put(
            host,
            host.resolve(call.params["id"]),
            call.text("path"),
            BodyReader(call.chunks),
            strict=call.boolean("noOverwriteDirNonDir"),
            container_owner=call.boolean("copyUIDGID"),
        )
        return Empty(200)

    async def changes(self, call: Call) -> Answer:
        host = self._engine.host
        return await copying.changes(host, host.resolve(call.params["id"]))

    async def export(self, call: Call) -> Answer:
        host = self._engine.host
        live = host.resolve(call.params["id"])
        host.publish(live.container, "export")
        return Stream(copying.export(host, live), "application/octet-stream")
