"""A build, from a plan to an image: stage after stage, step after step, each looked up in the cache before it is done.

Decides the order, and what a client is told. Files are ``transfer``'s, processes ``run``'s, config changes those of
worker.dockerfile. Nothing of a build that fails or is left by its client stays, but for cached steps.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from covey.clock import rfc3339
from covey.errors import CoveyError, InvalidArgument
from worker.build import base_images, committing, copies, run, run_mounts, workspace
from worker.build.caches import Caches
from worker.build.options import BuildOptions
from worker.build.output import Output
from worker.build.stage import StageState, copied, key, note
from worker.build.threads import whole
from worker.containers.engine import Engine
from worker.dockerfile import arguments, mounts, plan
from worker.dockerfile import config as dockerfile
from worker.dockerfile.arguments import Arguments
from worker.dockerfile.instructions import Arg, Command, Copy, Health, Setting, Step
from worker.dockerfile.parser import DockerfileError
from worker.dockerfile.plan import Plan, Stage
from worker.images import commit, draft, image
from worker.images.content import Lease
from worker.images.draft import Draft
from worker.images.image import Image, Layer, short

TRIGGER_LIMIT = 1000
DEPTH_LIMIT = 127
"""Docker's, which an image that is to run elsewhere has to keep to."""


class Builder:
    """One build. ``run`` once."""

    def __init__(
        self,
        engine: Engine,
        options: BuildOptions,
        plan_: Plan,
        given: Arguments,
        context_fd: int,
        output: Output,
        caches: Caches,
        pull: base_images.Pull | None,
    ) -> None:
        self._engine, self._host = engine, engine.host
        self._options, self._plan, self._given = options, plan_, given
        self._context_fd, self._output, self._caches, self._pull = context_fd, output, caches, pull
        self._results: dict[int, Draft] = {}
        self._announced = 0
        self._cache_images: list[Image] = []
        self._lease: Lease

    async def run(self) -> Image:
        """The image, named. Raises CoveyError; a failed RUN is run.StepFailed."""
        images = self._host.images
        try:
            with images.content.lease() as self._lease:
                await self._find_cache_images()
                for step in self._plan.global_arguments:
                    await self._announce(step)
                for index in self._plan.needed:
                    await self._result(index)
                made = self._results[self._plan.needed[-1]]
                if self._nothing(made):
                    raise InvalidArgument("No image was generated. Is your Dockerfile empty?")
                stored = await whole(self._host, commit.store, images, made, self._options.names, self._lease)
        finally:
            await self._host.carry(self._host.run(images.collect), "build: collect")
        unused = self._given.unused()
        if unused:
            await self._output.say(f"[Warning] One or more build-args [{' '.join(unused)}] were not consumed\n")
        return stored

    async def _find_cache_images(self) -> None:
        for name in self._options.cache_from:
            try:
                found = await base_images.ensure(self._host, name, self._options, "", self._pull, self._output)
            except CoveyError:
                continue  # Docker too takes an image that is not there for an empty cache.
            await self._hold(draft.begin(found))
            self._cache_images.append(found)

    async def _announce(self, step: Step) -> None:
        self._announced += 1
        text = step.node.original.strip()
        await self._output.say(f"Step {self._announced}/{self._plan.length} : {text}\n")

    async def _told(self, made: Draft) -> None:
        await self._output.say(f" ---> {'' if self._nothing(made) else short(made.id)}\n")

    @staticmethod
    def _nothing(made: Draft) -> bool:
        return made.image is None and not made.history and not made.layers

    async def _hold(self, made: Draft) -> None:
        """Keep its layers while the build runs. NotFound when one is gone."""
        for layer in made.layers:
            self._lease.pin(layer.chain_id)
            self._lease.pin(layer.digest)
        await whole(self._host, self._host.images.layer_dirs, made.as_image())

    async def _result(self, index: int) -> Draft:
        """The image of a stage, built now if it was not."""
        if index not in self._results:
            self._results[index] = await self._stage(self._plan.stages[index])
        return self._results[index]

    async def _stage(self, stage: Stage) -> Draft:
        base = await self._result(stage.base_stage) if stage.base_stage is not None else None
        await self._announce(stage.head)
        if base is None:
            base = await self._base(stage)
        state = StageState.begin(base, self._given.stage())
        await self._triggers(stage, state)
        await self._told(state.draft)
        for step in stage.steps:
            await self._announce(step)
            await self._step(stage, state, step)
            await self._told(state.draft)
        await self._output.image(state.draft.id)
        return state.draft

    async def _base(self, stage: Stage) -> Draft:
        if stage.base == plan.SCRATCH:
            architecture, _, variant = (stage.platform or self._options.platform).removeprefix("linux/").partition("/")
            return draft.scratch(architecture or image.host_architecture(), variant)
        found = await base_images.ensure(self._host, stage.base, self._options, stage.platform, self._pull, self._output)
        if found.platform_warning:
            await self._output.say(f" ---> [Warning] {found.platform_warning}\n")
        begun = draft.begin(found)
        await self._hold(begun)
        return begun

    async def _triggers(self, stage: Stage, state: StageState) -> None:
        if not state.triggers:
            return
        if len(state.triggers) > TRIGGER_LIMIT:
            raise InvalidArgument(f"{stage.base} has {len(state.triggers)} ONBUILD triggers, more than {TRIGGER_LIMIT}")
        many = "s" if len(state.triggers) > 1 else ""
        await self._output.say(f"# Executing {len(state.triggers)} build trigger{many}\n")
        for text in state.triggers:
            await self._step(stage, state, plan.trigger(text, self._plan.escape))

    async def _step(self, stage: Stage, state: StageState, step: Step) -> None:
        try:
            command = state.expanded(step.command, self._plan.escape)
            match command:
                case Command("RUN"):
                    await self._run(stage, state, command)
                case Copy():
                    await self._copy(stage, state, command)
                case Setting("WORKDIR"):
                    await self._workdir(state, command)
                case _:
                    await self._setting(state, command)
        except InvalidArgument as error:
            if isinstance(error, DockerfileError) or not step.node.start:
                raise
            raise InvalidArgument(f"{error.message} (line {step.node.start}: {step.node.original.strip()[:200]})") from error

    async def _setting(self, state: StageState, command: Any) -> None:
        config = state.copy()
        comment = dockerfile.apply(config, command)
        if isinstance(command, Health) and (state.config.get("Healthcheck") or {}).get("Test"):
            former = " ".join(state.config["Healthcheck"]["Test"])
            await self._output.say(f"Note: overriding previous HEALTHCHECK: [{former}]\n")
        if isinstance(command, Arg):
            for name, default in command.pairs:
                state.arguments.declare(name, default)
        if isinstance(command, Setting) and command.word == "MAINTAINER":
            state.author = command.value
        created_by = note(config, comment)
        if not await self._cached(state, config, created_by, key(created_by, config)):
            await self._follow(state, config, created_by, key(created_by, config), None)

    async def _workdir(self, state: StageState, command: Setting) -> None:
        config = state.copy()
        created_by = copied(config, dockerfile.apply(config, command))
        kept = key(created_by, config)
        if await self._cached(state, config, created_by, kept):
            return
        layer = None
        async with workspace.of_draft(self._host, state.draft) as here:
            if await whole(self._host, copies.make_workdir, self._host, here.fd, config["WorkingDir"]):
                layer = await self._packed(state, here)
        await self._follow(state, config, created_by, kept, layer)

    async def _packed(self, state: StageState, here: workspace.Workspace) -> Layer | None:
        return await whole(self._host, committing.packed, self._host, here.overlay_id, state.draft.layers, self._lease)

    def _tree(self, stage: Stage, stack: AsyncExitStack) -> Callable[[str], Awaitable[int]]:
        """Roots of stages and images by name, mounted until ``stack`` closes."""
        roots: dict[str, int] = {"": self._context_fd}

        async def root(name: str) -> int:
            if name not in roots:
                index = self._plan.stage_named(name, stage.index)
                if index is not None:
                    found = await self._result(index)
                else:
                    found = draft.begin(await base_images.ensure(self._host, name, self._options, "", self._pull, self._output))
                    await self._hold(found)
                roots[name] = (await stack.enter_async_context(workspace.of_draft(self._host, found))).fd
            return roots[name]

        return root

    async def _copy(self, stage: Stage, state: StageState, command: Copy) -> None:
        host = self._host
        config = state.copy()
        async with AsyncExitStack() as stack:
            root = await self._tree(stage, stack)(command.stage)
            found = await copies.find(host, command, root, stack)
            where = copies.destination(config, command)
            copies.fits([*found.local, *found.fetched], command)
            chown = f"--chown={command.owner}" if command.owner else ""
            created_by = copied(config, f"{command.word} {chown}{found.checksum} in {command.destination} ")
            kept = key(created_by, config, [copies.mode(command), command.parents])
            if await self._cached(state, config, created_by, kept):
                return
            here = await stack.enter_async_context(workspace.of_draft(host, state.draft))
            await whole(host, copies.carry_out, host, here.fd, command, where, found)
            layer = await self._packed(state, here)
        await self._follow(state, config, created_by, kept, layer)

    async def _run(self, stage: Stage, state: StageState, command: Command) -> None:
        host = self._host
        config = state.copy()
        environment = dockerfile.environment(config)
        seen = state.arguments.of_run(environment)
        argv = run.argv_of(command, config)
        declared = {name: seen[name] for name in state.arguments.visible(environment)}
        script = run.script(command)
        created_by = " ".join(arguments.recorded(declared, argv)) + (f" <<{script}" if script else "")
        wanted = [mounts.parse(text, config.get("WorkingDir") or "/") for text in command.mounts]
        async with AsyncExitStack() as stack:
            tree = self._tree(stage, stack)
            kept = key(created_by, config, [command.network, await run_mounts.key(host, wanted, tree)])
            if await self._cached(state, config, created_by, kept):
                return
            ready = await run_mounts.prepare(host, wanted, tree, self._caches, self._options.secrets, stack)
            bound = [*ready.mounts]
            if script is not None:
                path = await run_mounts.file(host, script.encode("utf-8", "surrogateescape"), 0o755, (0, 0), stack)
                bound.append({"Type": "bind", "Source": str(path), "Target": argv[0], "ReadOnly": True})
            around = run.Surroundings(self._options.limits, self._network(command), bound, ready.variables)
            body = run.body(
                state.draft,
                config,
                argv,
                [*(config.get("Env") or []), *(f"{name}={value}" for name, value in seen.items())],
                around,
            )
            kept_container = not self._options.force_remove and not self._options.remove
            if kept_container:
                # Its image has to be there as long as it is, and no start of the daemon may take it for a leftover.
                await whole(host, commit.store, host.images, state.draft, [], self._lease)
                body["Labels"] = {}
            layer = await run.layer(self._engine, state.draft, body, self._output, self._lease, kept=kept_container)
        await self._follow(state, config, created_by, kept, layer)

    def _network(self, command: Command) -> str:
        return command.network if command.network not in ("", "default") else self._options.network

    async def _cached(self, state: StageState, config: dict[str, Any], created_by: str, kept: str) -> bool:
        """Whether the step was found, and the stage has gone on by it."""
        if not self._options.use_cache:
            return False
        found = self._host.images.steps.find(state.draft.id, kept)
        if found is not None:
            try:
                await self._hold(found)
            except CoveyError:
                found = None
        if found is None:
            inherited = (draft.inherit(state.draft, one, config, created_by) for one in self._cache_images)
            found = next((one for one in inherited if one is not None), None)
        if found is None:
            return False
        await self._output.say(" ---> Using cache\n")
        state.draft, state.config = found, config
        return True

    async def _follow(self, state: StageState, config: dict[str, Any], created_by: str, kept: str, layer: Layer | None) -> None:
        if layer is not None and len(state.draft.layers) >= DEPTH_LIMIT:
            raise InvalidArgument(f"max depth exceeded: an image has at most {DEPTH_LIMIT} layers; join steps, or use stages")
        made = draft.follow(state.draft, config, rfc3339(self._host.clock.now()), created_by, layer=layer, author=state.author)
        await whole(self._host, self._host.images.steps.keep, state.draft.id, kept, made)
        state.draft, state.config = made, config
