"""What Covey does for images beyond Docker: look whether they are as they were written, keep them from collection."""

from __future__ import annotations

from collections.abc import AsyncIterator

from covey.engine_api import framing
from covey.engine_api.answers import Answer, Empty, Stream
from covey.engine_api.call import Call
from covey.engine_api.server import Handler
from worker.containers.engine import Engine


class ImageCare:
    """One method a route."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def handlers(self) -> dict[str, Handler]:
        return {"covey_image_fsck": self.fsck, "covey_image_pins": self.pins, "covey_image_pin": self.pin}

    async def fsck(self, call: Call) -> Answer:
        """A line a fault as it is found; the last says how many there were, and how many are left to the user."""
        host = self._engine.host
        findings = self._engine.images.fsck(call.boolean("repair"))

        async def lines() -> AsyncIterator[bytes]:
            found = left = 0
            while (finding := await host.run(next, findings, None)) is not None:
                found, left = found + 1, left + (not finding.mended)
                fault = finding.fault
                yield framing.line(
                    {
                        "Kind": fault.kind,
                        "Path": str(fault.path),
                        "What": fault.what,
                        "Step": "" if finding.mended else fault.step,
                        "Done": finding.done,
                    }
                )
            yield framing.line({"Faults": found, "Left": left})

        return Stream(lines())

    async def pins(self, call: Call) -> Answer:
        pinned = await self._engine.host.run(self._engine.images.pins)
        return [{"Id": one.id, "RepoTags": list(one.repo_tags), "RepoDigests": list(one.repo_digests)} for one in pinned]

    async def pin(self, call: Call) -> Answer:
        await self._engine.host.run(self._engine.images.pin, call.params["name"], call.boolean("pinned", True))
        return Empty(204)
