"""One stage under way: its image so far, and what its instructions see. Pure but for what it holds.

Decides what history and the cache call a step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.dockerfile import config as dockerfile
from worker.dockerfile import expansion
from worker.dockerfile.arguments import StageArguments
from worker.dockerfile.instructions import Instruction
from worker.images.draft import Draft

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class StageState:
    """``config`` is what the next step begins with; ``images``: all that came about in the stage, for messages."""

    draft: Draft
    arguments: StageArguments
    config: dict[str, Any]
    author: str = ""
    triggers: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, draft: Draft, arguments: StageArguments) -> StageState:
        config = draft.config
        if not any(entry.startswith("PATH=") for entry in config.get("Env") or []):
            config["Env"] = [*(config.get("Env") or []), PATH]
        triggers = config.pop("OnBuild", None) or []
        return cls(draft, arguments, config, triggers=triggers)

    @property
    def variables(self) -> dict[str, str]:
        """What an instruction may name."""
        environment = dockerfile.environment(self.config)
        return {**self.arguments.visible(environment), **environment}

    def expanded(self, command: Instruction, escape: str) -> Instruction:
        return expansion.expanded(command, self.variables, escape)

    def copy(self) -> dict[str, Any]:
        """The config, to be changed."""
        copied: dict[str, Any] = json.loads(json.dumps(self.config))
        return copied


def note(config: Mapping[str, Any], comment: str) -> str:
    """How history tells a step that runs nothing."""
    return " ".join([*dockerfile.shell(config), "#(nop) ", comment])


def copied(config: Mapping[str, Any], comment: str) -> str:
    """The same of COPY, ADD and WORKDIR, which Docker spells with one space."""
    return " ".join([*dockerfile.shell(config), f"#(nop) {comment}"])


def key(created_by: str, config: Mapping[str, Any], more: Sequence[Any] = ()) -> str:
    """What makes a step on a given image the same as another."""
    return json.dumps([created_by, config, list(more)], sort_keys=True)
