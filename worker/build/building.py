"""The builds of a node: from a request to a running build and its lines, and what they leave in the cache.

Decides what is an error before anything is answered (a context or Dockerfile that cannot be read), that a client which
leaves ends its build, and that a daemon's start clears what a former life left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass

from covey.errors import CoveyError, InvalidArgument
from worker.build import base_images, builder, context, run, workspace
from worker.build.caches import Caches
from worker.build.options import BuildOptions
from worker.build.output import Output
from worker.build.threads import whole
from worker.containers import remove
from worker.containers.engine import Engine
from worker.dockerfile import arguments, parser, plan
from worker.dockerfile.arguments import Arguments
from worker.dockerfile.plan import Plan
from worker.images import image
from worker.images.compression import Readable
from worker.images.image import short
from worker.kernel import trees

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """A build that may begin."""

    options: BuildOptions
    plan: Plan
    given: Arguments
    context_fd: int


class Building:
    """``pull``: fetches base images."""

    def __init__(self, engine: Engine, pull: base_images.Pull | None) -> None:
        self._engine, self._host, self._pull = engine, engine.host, pull
        self._caches = Caches(engine.host)
        self._cleared = self._host.spawn(self._clear(), "builds: what a former life left")

    async def _clear(self) -> None:
        host = self._host
        for container in [one for one in host.registry if run.LABEL in one.labels]:
            await remove.remove(host, host.live(container), force=True, volumes=True)
        await whole(host, workspace.clear, host)
        await whole(host, trees.emptied, context.directory(host))

    async def prepare(self, options: BuildOptions, body: Readable, stack: AsyncExitStack) -> Work:
        """The context received and the Dockerfile read. InvalidArgument; what is held goes with ``stack``."""
        host = self._host
        if options.remote:
            raise InvalidArgument(
                f"a remote context ({options.remote}) is refused: fetch it and send it as the context "
                f"(git clone …, or curl … | docker build -)"
            )
        # What a former life left is told from ours by having been there first.
        await asyncio.wait({self._cleared})
        fd = await stack.enter_async_context(context.received(host, body))
        text = await whole(host, context.dockerfile, fd, options.dockerfile)
        here = f"linux/{image.host_architecture()}"
        given = Arguments(options.arguments, arguments.platform_arguments(options.platform or here, here))
        return Work(options, plan.plan(parser.parse(text), given, options.target, options.labels), given, fd)

    async def lines(self, work: Work) -> AsyncGenerator[bytes, None]:
        """The build's stream; the build ends with it."""
        output = Output(work.options.quiet)
        task = self._host.spawn(self._carry_out(work, output), "build")
        try:
            while (line := await output.next()) is not None:
                yield line
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _carry_out(self, work: Work, output: Output) -> None:
        options = work.options
        one = builder.Builder(self._engine, options, work.plan, work.given, work.context_fd, output, self._caches, self._pull)
        try:
            async with asyncio.timeout(options.timeout or None):
                made = await one.run()
            if options.quiet:
                await output.result(f"{made.id}\n")
            await output.say(f"Successfully built {short(made.id)}\n")
            for name in options.names:
                self._host.events.publish("image", "tag", made.id, {"name": name.familiar})
                await output.say(f"Successfully tagged {name.familiar}\n")
        except run.StepFailed as fault:
            await output.failed(fault.message, fault.code)
        except CoveyError as fault:
            await output.failed(fault.message)
        except TimeoutError:
            await output.failed(f"the build took longer than the {options.timeout:g} s it was given, and was ended")
        except Exception:
            log.exception("a build failed")
            await output.failed("internal error: the daemon's log has its traceback")
        finally:
            output.end()

    async def prune(self, unused_since: float | None) -> tuple[list[str], int]:
        """Forget cached steps, those not used since then, and without a time cache mounts too; (ids, bytes freed)."""
        host = self._host
        gone = await whole(host, host.images.steps.prune, unused_since)
        freed = await whole(host, host.images.collect)
        if unused_since is None:
            names, more = await whole(host, self._caches.prune)
            gone, freed = [*gone, *names], freed + more
        return gone, freed
