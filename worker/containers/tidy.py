"""What a node does for its images when nobody asks: lets go those that nothing needs, makes unpacked layers durable.

It decides when; which images go is worker.images.retention's.
"""

from __future__ import annotations

import asyncio
import logging

from covey.errors import CoveyError
from worker.containers.host import Host
from worker.containers.record import SERVICE_LABEL

log = logging.getLogger(__name__)


async def keep(host: Host) -> None:
    """Until cancelled."""
    while True:
        await asyncio.sleep(host.options.tidy_every)
        try:
            await once(host)
        except (CoveyError, OSError) as error:
            log.warning("images cannot be tidied: %s", error)


async def once(host: Host) -> None:
    """One look."""
    await host.run(host.images.settle)
    services = {container.labels[SERVICE_LABEL] for container in host.registry if SERVICE_LABEL in container.labels}
    gone = await host.run(host.images.reclaim, host.options.retention, services)
    for name in gone.untagged:
        host.events.publish("image", "untag", name, {"name": name})
    for one in gone.deleted:
        host.events.publish("image", "delete", one, {"name": one})
