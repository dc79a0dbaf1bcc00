"""Groups and commands that are built when they are called: a call pays for the one command it names.

It decides how a Typer app's commands become click commands one at a time, and lets flags be given as Docker users write
them (``--detach=false``). It must not know any noun.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import click
import typer
import typer.core
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command_from_info, get_command_name
from typer.models import CommandInfo

# Without this, Typer imports rich for the help of every argument whenever somebody has it installed, and escapes for it.
typer.core.HAS_RICH = False

_TRUE = ("true", "1", "t")
_FALSE = ("false", "0", "f")


class Command(TyperCommand):
    """A command whose flags may carry a value, as Go programs take them: ``--rm=true``, ``--detach=false``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._plain(args))

    def _plain(self, args: Sequence[str]) -> list[str]:
        flags, valued = self._options()
        out: list[str] = []
        words = iter(args)
        for word in words:
            name, equals, value = word.partition("=")
            if word == "--" or (word[:1] != "-" and not self.allow_interspersed_args):
                return [*out, word, *words]
            if equals and name in flags and value.lower() in (*_TRUE, *_FALSE):
                if value.lower() in _TRUE:
                    out.append(name)
                continue
            out.append(word)
            if self._takes_next(word, flags, valued) and (following := next(words, None)) is not None:
                out.append(following)
        return out

    @property
    def allow_interspersed_args(self) -> bool:  # type: ignore[override]
        return bool(self.context_settings.get("allow_interspersed_args", True))

    def _options(self) -> tuple[set[str], set[str]]:
        flags: set[str] = set()
        valued: set[str] = set()
        for parameter in self.params:
            if isinstance(parameter, click.Option):
                (flags if parameter.is_flag or parameter.count else valued).update(parameter.opts)
        return flags, valued

    @staticmethod
    def _takes_next(word: str, flags: set[str], valued: set[str]) -> bool:
        """Whether the word after ``word`` is its value."""
        if word.startswith("--"):
            return word in valued
        if word[:1] != "-" or len(word) < 2:
            return False
        for place, letter in enumerate(word[1:], 1):
            if f"-{letter}" in valued:
                return place == len(word) - 1
            if f"-{letter}" not in flags:
                return False
        return False


def _short(info: CommandInfo) -> str:
    text = info.short_help or info.help or inspect.getdoc(info.callback) or ""
    return text.strip().partition("\n")[0]


def command_of(app: typer.Typer, name: str) -> click.Command | None:
    """The command ``name`` of ``app``, built now; None when there is none."""
    for info in app.registered_commands:
        if _name(info) == name:
            if info.cls is None or info.cls is TyperCommand:
                info.cls = Command
            return get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode=None)
    return None


def _name(info: CommandInfo) -> str:
    return info.name or get_command_name(getattr(info.callback, "__name__", ""))


class Noun(TyperGroup):
    """The commands of one Typer app under its noun."""

    def __init__(self, name: str, app: typer.Typer, help_text: str) -> None:
        super().__init__(name=name, help=help_text, rich_markup_mode=None, no_args_is_help=True)
        self._app = app

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [_name(info) for info in self._app.registered_commands if not info.hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return command_of(self._app, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(_name(info), _short(info)) for info in self._app.registered_commands if not info.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Entry(NamedTuple):
    """Where a root command lives: a module's app, one command of it, or (``verb`` "") all of it under the noun."""

    module: str
    verb: str
    help: str
    section: str


class Root(TyperGroup):
    """The root: a table of nouns and verbs, none of whose modules is imported before it is called."""

    table: Mapping[str, Entry] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.table.get(cmd_name)
        if entry is None:
            return None
        app: typer.Typer = importlib.import_module(entry.module).app
        if not entry.verb:
            return Noun(cmd_name, app, entry.help)
        return command_of(app, entry.verb)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.table and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], self.table, 1)
            hint = f": did you mean '{near[0]}'?" if near else ": see 'cluster --help'"
            ctx.fail(f"No such command '{args[0]}'{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, entry in self.table.items():
            sections.setdefault(entry.section, []).append((name, entry.help))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)
