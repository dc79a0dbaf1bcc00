"""Which parts of an instruction have variables put in. Pure.

Docker expands names and values of ENV, LABEL and ARG, paths, owners and here-documents of COPY and ADD, and the settings;
what a shell will read (RUN, CMD, ENTRYPOINT) it leaves alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from worker.dockerfile import words
from worker.dockerfile.instructions import Arg, Command, Copy, Env, Instruction, Label, Listing, Setting
from worker.dockerfile.parser import Heredoc


def expanded(command: Instruction, variables: Mapping[str, str], escape: str = "\\") -> Instruction:
    """``command`` with variables put into the parts that Docker expands. InvalidArgument for what cannot be read."""

    def word(text: str) -> str:
        return words.expand(text, variables, escape)

    def each(texts: Sequence[str]) -> tuple[str, ...]:
        return tuple(word(text) for text in texts)

    match command:
        case Env(pairs):
            return Env(tuple((word(name), word(value)) for name, value in pairs))
        case Label(pairs):
            return Label(tuple((word(name), word(value)) for name, value in pairs))
        case Arg(defaults):
            return Arg(tuple((word(name), None if value is None else word(value)) for name, value in defaults))
        case Copy():
            files = tuple(_document(one, variables) for one in command.files)
            return replace(
                command,
                sources=each(command.sources),
                destination=word(command.destination),
                files=files,
                owner=word(command.owner),
                mode=word(command.mode),
                excluded=each(command.excluded),
                checksum=word(command.checksum),
            )
        case Command(mounts=mounts) if mounts:
            return replace(command, mounts=each(mounts))
        case Setting("STOPSIGNAL" | "USER" | "WORKDIR" as kind, value):
            return Setting(kind, word(value))
        case Listing("EXPOSE", values):
            return Listing("EXPOSE", tuple(one for text in values for one in words.expand_words(text, variables, escape)))
        case Listing("VOLUME", values):
            return Listing("VOLUME", each(values))
        case _:
            return command


def _document(heredoc: Heredoc, variables: Mapping[str, str]) -> Heredoc:
    return replace(heredoc, content=words.expand_document(heredoc.content, variables)) if heredoc.expand else heredoc
