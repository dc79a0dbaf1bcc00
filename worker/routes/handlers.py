"""All handlers of the node part of the Engine API, by route name, over one engine."""

from __future__ import annotations

from covey.engine_api.server import Handler
from worker.containers.engine import Engine
from worker.images.from_registry import FromRegistry
from worker.routes.archives import Archives
from worker.routes.build import Builds
from worker.routes.containers import Containers
from worker.routes.execs import Execs
from worker.routes.image_archives import ImageArchives
from worker.routes.image_care import ImageCare
from worker.routes.images import Images
from worker.routes.networks import Networks
from worker.routes.registry import Registry
from worker.routes.system import System
from worker.routes.volumes import Volumes

RELEASE = "0.1.0"


def handlers(engine: Engine, release: str = RELEASE) -> dict[str, Handler]:
    """Handlers by route name; the front door adds the cluster's. The engine must be entered."""
    found: dict[str, Handler] = {}
    registry = Registry(engine)
    for noun in (
        Archives(engine),
        Builds(engine, FromRegistry(engine.remote).pull),
        Containers(engine),
        Execs(engine),
        ImageArchives(engine),
        ImageCare(engine),
        Images(engine, registry),
        Networks(engine),
        registry,
        System(engine, release),
        Volumes(engine),
    ):
        found.update(noun.handlers())
    return found
