"""Which stages a build needs, and in which order: from a Dockerfile, arguments and a target to a plan. Pure.

Decides what FROM means and what is an error before anything runs. Stages that the target does not stand on are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from covey.errors import InvalidArgument
from worker.dockerfile import expansion, instructions, parser, words
from worker.dockerfile.arguments import Arguments
from worker.dockerfile.instructions import Arg, Command, Copy, From, Label, Step
from worker.dockerfile.mounts import stage_of
from worker.dockerfile.parser import Dockerfile, DockerfileError, Node

SCRATCH = "scratch"
STAGE_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Stage:
    """``base`` is an image or, when ``base_stage`` is not None, that stage; ``head`` its FROM."""

    index: int
    name: str
    head: Step
    base: str
    base_stage: int | None
    platform: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """``needed``: indices into ``stages``, in their order, the target last. ``global_arguments``: ARGs before FROM."""

    stages: tuple[Stage, ...]
    needed: tuple[int, ...]
    global_arguments: tuple[Step, ...]
    escape: str

    @property
    def length(self) -> int:
        """How many steps a client sees."""
        return len(self.global_arguments) + sum(1 + len(self.stages[index].steps) for index in self.needed)

    def stage_named(self, reference: str, before: int) -> int | None:
        """The stage that ``--from=reference`` means in stage ``before``; None when it is an image."""
        for stage in self.stages[:before][::-1]:
            if stage.name and stage.name == reference.lower():
                return stage.index
        if reference.isascii() and reference.isdigit() and int(reference) < len(self.stages):
            if int(reference) >= before:
                raise InvalidArgument(f"invalid from flag value {reference}: that stage comes later, or is this one")
            return int(reference)
        return None


def plan(dockerfile: Dockerfile, arguments: Arguments, target: str = "", labels: Mapping[str, str] | None = None) -> Plan:
    """The plan of a build. ``labels`` become a last step. DockerfileError, InvalidArgument for what can never be built."""
    escape = dockerfile.escape
    steps = [instructions.read(node, escape) for node in dockerfile.nodes]
    heads = [place for place, step in enumerate(steps) if isinstance(step.command, From)]
    first = heads[0] if heads else len(steps)
    global_arguments = tuple(_global(step, arguments, escape) for step in steps[:first])
    if not heads:
        raise DockerfileError(steps[-1].node.start, "no build stage in current context: there is no FROM")
    if len(heads) > STAGE_LIMIT:
        raise InvalidArgument(f"the Dockerfile has {len(heads)} stages, more than {STAGE_LIMIT}")
    stages: list[Stage] = []
    for place, end in zip(heads, [*heads[1:], len(steps)]):
        stages.append(_stage(steps[place], tuple(steps[place + 1 : end]), stages, arguments.before_from(), escape))
    chosen = _target(stages, target)
    if labels:
        last = stages[chosen]
        stages[chosen] = replace(last, steps=(*last.steps, _labels(labels)))
    found = Plan(tuple(stages), (), global_arguments, escape)
    return replace(found, needed=tuple(sorted(_needed(found, chosen))))


def _global(step: Step, arguments: Arguments, escape: str) -> Step:
    if not isinstance(step.command, Arg):
        raise DockerfileError(step.node.start, f"no build stage in current context: {step.node.word} comes before any FROM")
    try:
        command = expansion.expanded(step.command, arguments.before_from(), escape)
    except InvalidArgument as error:
        raise DockerfileError(step.node.start, error.message) from None
    assert isinstance(command, Arg)
    for name, default in command.pairs:
        arguments.declare_global(name, default)
    return step


def _stage(head: Step, steps: tuple[Step, ...], before: Sequence[Stage], variables: Mapping[str, str], escape: str) -> Stage:
    command = head.command
    assert isinstance(command, From)
    try:
        base = words.expand(command.base, variables, escape)
        platform = words.expand(command.platform, variables, escape)
        if not base:
            raise InvalidArgument(f"base name ({command.base}) should not be blank")
    except InvalidArgument as error:
        raise DockerfileError(head.node.start, error.message) from None
    if command.name and any(stage.name == command.name for stage in before):
        raise DockerfileError(head.node.start, f"duplicate name {command.name}")
    base_stage = next((stage.index for stage in before if stage.name and stage.name == base.lower()), None)
    return Stage(len(before), command.name, head, base, base_stage, platform, steps)


def _target(stages: Sequence[Stage], target: str) -> int:
    if not target:
        return len(stages) - 1
    for stage in stages:
        if stage.name and stage.name == target.lower():
            return stage.index
    if target.isascii() and target.isdigit() and int(target) < len(stages):
        return int(target)
    raise InvalidArgument(f"failed to reach build target {target} in Dockerfile")


def _labels(labels: Mapping[str, str]) -> Step:
    pairs = tuple(sorted(labels.items()))
    text = "LABEL " + " ".join(f"{name}={value}" for name, value in pairs)
    return Step(
        Node("LABEL", (), text[6:], text, 0, 0), Label(tuple((_literal(name), _literal(value)) for name, value in pairs))
    )


def _literal(text: str) -> str:
    """Quoted so that expansion gives ``text`` back."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _needed(plan_: Plan, chosen: int) -> set[int]:
    """The target and what it stands on; references of the others are looked at too, an error in them is one."""
    stands_on = {
        stage.index: [
            *(() if stage.base_stage is None else (stage.base_stage,)),
            *(one for step in stage.steps for one in _stages_of(plan_, step, stage.index)),
        ]
        for stage in plan_.stages
    }
    found: set[int] = set()
    pending = [chosen]
    while pending:
        index = pending.pop()
        if index not in found:
            found.add(index)
            pending += stands_on[index]
    return found


def _stages_of(plan_: Plan, step: Step, index: int) -> list[int]:
    """The stages that a step copies or mounts from."""
    command = step.command
    names: list[str] = []
    if isinstance(command, Copy) and command.stage:
        names = [command.stage]
    elif isinstance(command, Command):
        names = [name for name in map(stage_of, command.mounts) if name]
    try:
        found = [plan_.stage_named(name, index) for name in names]
    except InvalidArgument as error:
        raise DockerfileError(step.node.start, error.message) from None
    return [one for one in found if one is not None]


def trigger(text: str, escape: str) -> Step:
    """An ONBUILD trigger of a base image, to be run in the stage that begins with it."""
    try:
        node = parser.single(text)
        if node.word in ("FROM", "MAINTAINER", "ONBUILD"):
            raise InvalidArgument(f"{node.word} isn't allowed as an ONBUILD trigger")
        return instructions.read(node, escape)
    except InvalidArgument as error:
        raise InvalidArgument(f"ONBUILD trigger {text[:80]!r} of the base image: {error.message}") from None
