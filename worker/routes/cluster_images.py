"""What managers ask of a node's images: a blob to pass on, an image to fetch from the cluster, what was sent and received."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from covey.engine_api import framing
from covey.engine_api.answers import Answer, Stream
from covey.engine_api.call import Call
from covey.engine_api.server import Handler
from covey.errors import CoveyError, InvalidArgument
from worker.agent.cluster_images import ClusterImages
from worker.containers.events import EventBus
from worker.images import reference


class NodeImages:
    """One method a route."""

    def __init__(self, images: ClusterImages, events: EventBus) -> None:
        self._images = images
        self._events = events

    def handlers(self) -> dict[str, Handler]:
        return {"covey_blob": self.blob, "covey_blobs": self.traffic, "covey_image_receive": self.receive}

    async def blob(self, call: Call) -> Answer:
        upload = await self._images.uploads.open(call.params["id"], call.integer("offset") or 0, relayed=True)
        length = {"Content-Length": str(upload.size - upload.offset)}
        return Stream(upload.pieces, "application/octet-stream", headers=length)

    async def traffic(self, call: Call) -> Answer:
        return self._images.statistics()

    async def receive(self, call: Call) -> Answer:
        """``{"Manifest", "Names"}`` → progress lines; the last says the image's id, or the error."""
        body = await call.json()
        manifest, names = body.get("Manifest"), body.get("Names") or []
        if not isinstance(manifest, str) or not isinstance(names, list):
            raise InvalidArgument("give Manifest (a digest) and Names (a list)")
        reference.check_digest(manifest)
        return Stream(self._receive(manifest, [reference.parse_tagged(str(name)) for name in names]))

    async def _receive(self, manifest: str, names: list[reference.Reference]) -> AsyncIterator[bytes]:
        lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        def said(current: int, total: int) -> None:
            lines.put_nowait({"status": "Receiving", "progressDetail": {"current": current, "total": total}})

        async def fetch() -> None:
            try:
                image = await self._images.receive(manifest, names, said)
            except CoveyError as error:
                lines.put_nowait({"error": error.message, "errorDetail": {"message": error.message}})
            except OSError as error:
                words = f"{error.strerror}: {error.filename}"
                lines.put_nowait({"error": words, "errorDetail": {"message": words}})
            else:
                for name in names:
                    self._events.publish("image", "pull", name.familiar, {"name": name.familiar})
                lines.put_nowait({"status": "Received", "id": image.id})

        fetching = asyncio.create_task(fetch(), name="receive image")
        try:
            while True:
                line = await lines.get()
                yield framing.line(line)
                if "progressDetail" not in line:
                    return
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
