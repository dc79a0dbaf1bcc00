"""Flags as data: one table row an option, and the signature Typer reads made of them.

A command of sixty options would otherwise be a signature of three hundred lines, written twice more for update and run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple, TypeVar

import typer

Function = TypeVar("Function", bound=Callable[..., Any])


class Flag(NamedTuple):
    """One option: ``names`` as ``--env -e``; ``kind`` str, int, float, bool or list (may be given several times)."""

    names: str
    kind: type
    help: str

    @property
    def key(self) -> str:
        """The name under which the command receives it."""
        return self.names.split()[0].removeprefix("--").replace("-", "_")


def with_flags(*tables: Iterable[Flag]) -> Callable[[Function], Function]:
    """The command takes all flags of ``tables`` in place of its ``**flags``; what was not given is None (bool: False)."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function, eval_str=True)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        rows = [flag for table in tables for flag in table]
        function.__signature__ = signature.replace(parameters=[*own, *(_parameter(flag) for flag in rows)])  # type: ignore[attr-defined]
        return function

    return decorate


def _parameter(flag: Flag) -> inspect.Parameter:
    option = typer.Option(*flag.names.split(), help=flag.help, show_default=False)
    kind: Any = flag.kind
    wanted: Any = bool if kind is bool else (list[str] if kind is list else kind) | None
    return inspect.Parameter(
        flag.key,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if kind is bool else None,
        annotation=Annotated[wanted, option],
    )


Format = Annotated[
    str | None, typer.Option("--format", help="json, or a template such as '{{.ID}} {{.Name}}'", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only ids")]
Filter = Annotated[list[str] | None, typer.Option("--filter", "-f", help="Only what fits, as key=value", show_default=False)]
NoTrunc = Annotated[bool, typer.Option("--no-trunc", help="Whole ids and texts")]
References = Annotated[list[str], typer.Argument(show_default=False)]
