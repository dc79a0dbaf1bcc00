"""Images across the cluster: ``POST /covey/images/distribute`` brings an image that some node has to others.

It decides which nodes and which of several images of a name; the bytes travel between the nodes (manager.images.tracker). Each
node is asked over its own Engine API to receive the image, and its progress passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from covey.engine_api import framing
from covey.engine_api.aio import Client
from covey.engine_api.answers import Answer, Stream
from covey.engine_api.call import Call
from covey.errors import CoveyError, InvalidArgument, NotFound, Unavailable
from covey.wire.messages import HeldImage
from manager.images.catalogue import Catalogue, spellings
from manager.routes.door import Door, find_node
from scheduler.snapshot import NodeView

#: What was loaded a moment ago may still be on its way into the catalogue.
ANNOUNCED_SECONDS = 5.0
LOOK_SECONDS = 0.05


class Images:
    """Handlers by route name in ``handlers``."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def handlers(self) -> dict[str, Any]:
        return {"covey_image_distribute": self.distribute}

    async def distribute(self, call: Call) -> Answer:
        """``{"Name", "Id"?, "Nodes"?}`` → a line for each step of each node, and last ``{"Received", "Failed"}``."""
        body = await call.json()
        name, image_id, nodes = body.get("Name"), body.get("Id") or "", body.get("Nodes") or []
        if not isinstance(name, str) or not name:
            raise InvalidArgument("Name is missing: give the name of an image")
        if not isinstance(image_id, str) or not isinstance(nodes, list) or not all(isinstance(one, str) for one in nodes):
            raise InvalidArgument("Id is a string and Nodes a list of node names or ids")
        snapshot = await self._door.view()
        chosen = [find_node(snapshot, one) for one in nodes] if nodes else list(snapshot.nodes.values())
        full, image = await self._wait_image(name, image_id)
        return Stream(self._send_out(full, image, sorted(chosen, key=lambda view: view.hostname)))

    async def _wait_image(self, name: str, image_id: str) -> tuple[str, HeldImage]:
        """The image's full name and itself, once a node has announced it. Raises NotFound."""
        clock, catalogue = self._door.clock, self._door.images.tracker.catalogue
        deadline = clock.monotonic() + ANNOUNCED_SECONDS
        while (found := _find(catalogue, name, image_id)) is None:
            if clock.monotonic() > deadline:
                raise NotFound(f"No such image: {name} on any node: load it with `cluster image load --all-nodes`")
            await clock.sleep(LOOK_SECONDS)
        return found

    async def _send_out(self, name: str, image: HeldImage, nodes: Sequence[NodeView]) -> AsyncIterator[bytes]:
        lines: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        received: list[str] = []
        failed: dict[str, str] = {}

        async def send_to(view: NodeView) -> None:
            hostname = view.hostname or view.id
            try:
                async for line in self._receive(view, name, image):
                    if "error" in line:
                        raise Unavailable(str(line["error"]))
                    lines.put_nowait({"node": hostname, **line})
                received.append(hostname)
            except CoveyError as error:
                failed[hostname] = error.message
                lines.put_nowait({"node": hostname, "status": "Failed", "message": error.message})

        async def send_to_all() -> None:
            await asyncio.gather(*(send_to(view) for view in nodes))
            lines.put_nowait(None)

        sending = asyncio.create_task(send_to_all(), name=f"distribute {name}")
        try:
            while (line := await lines.get()) is not None:
                yield framing.line(line)
            yield framing.line({"Received": sorted(received), "Failed": failed})
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _receive(self, view: NodeView, name: str, image: HeldImage) -> AsyncIterator[dict[str, Any]]:
        if not self._door.images.tracker.reachable(view.id):
            raise Unavailable(f"node {view.hostname or view.id} is not connected: start its daemon, see `node ls`")
        client = Client(lambda: self._door.dials.connect(view.id, f"image {name}"), name=f"node {view.hostname or view.id}")
        request = {"Manifest": image.manifest, "Names": [name]}
        last: dict[str, Any] = {}
        async with client.stream("covey_image_receive", json=request) as response:
            async for last in response.lines():
                yield last
        if "progressDetail" in last or not last:
            raise Unavailable(f"node {view.hostname or view.id} broke off before the image was there: try again")


def _find(catalogue: Catalogue, name: str, image_id: str) -> tuple[str, HeldImage] | None:
    for full in spellings(name):
        if (found := catalogue.find(full, image_id=image_id)) is not None:
            return full, found
    return None
