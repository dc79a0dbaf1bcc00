"""A Dockerfile's lines: directives, comments, continuations, flags, here-documents; errors that name the line."""

from __future__ import annotations

import importlib.util
import platform
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.errors import InvalidArgument
from worker.dockerfile import expansion, instructions, parser
from worker.dockerfile.parser import DockerfileError

PIECES = (
    "FROM a", "RUN x", "\n", "\n", "\n", "\\\n", "\\ \n", " ", "\t", "# c\n", "\\", "`", "`\n", "<<EOF", "<<-EOF", '<<"EOF"',
    "EOF", "\nEOF\n", "\n\tEOF\n", "COPY --from=b", '--x="y z"', "ENV a=b", '"', "'", "$x", "${x:-y}", "ONBUILD", "RUN", "ADD ",
    '[ "a" ]', "\r\n", "# escape=`\n", "#syntax=x\n", "a", "--", "<<3", "\v", "\f", "HEALTHCHECK --retries=3 CMD ", "LABEL x",
    "FROM b AS c", "é", "\ufeff", "\0",
)  # fmt: skip


def lines(text: str) -> list[tuple[str, int, int]]:
    return [(node.word, node.start, node.end) for node in parser.parse(text).nodes]


def test_lines_are_counted_as_people_do() -> None:
    text = "\ufeff# syntax=docker/dockerfile:1\n\nFROM a\n  # remark\nrun b \\\n# between\n\n  c\n"
    text += "COPY <<E <<F /d/\nx\nE\ny\nF\nUSER u"
    assert lines(text) == [("FROM", 3, 3), ("RUN", 5, 8), ("COPY", 9, 13), ("USER", 14, 14)]
    node = parser.parse(text).nodes[1]
    assert node.rest == "b   c"
    assert [one.content for one in parser.parse(text).nodes[2].heredocs] == ["x\n", "y\n"]


def test_the_escape_directive() -> None:
    found = parser.parse("# escape=`\nFROM a\nRUN b `\n  c\\\nUSER d")
    assert found.escape == "`"
    assert [node.rest for node in found.nodes] == ["a", "b   c\\", "d"]
    assert parser.parse("# remark\n# escape=`\nFROM a").escape == "\\"


def test_heredocs() -> None:
    (node,) = parser.parse('RUN <<-"EOF" cat <<b\n\t$x\n\tEOF\n\t$y\nb\n').nodes
    assert [(one.name, one.content, one.expand) for one in node.heredocs] == [("EOF", "$x\n", False), ("b", "\t$y\n", True)]
    assert parser.parse("RUN echo $((1<<2)) a<<b\n").nodes[0].heredocs == ()
    assert parser.parse("ENV a=<<b\n").nodes[0].heredocs == ()


def test_flags() -> None:
    (node,) = parser.parse("""COPY --from=a --chown="b c":d --x\\ y -- --z /w""").nodes
    assert node.flags == ("--from=a", "--chown=b c:d", "--x y")
    assert node.rest == "--z /w"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("FROM a\n\nFORM b", 3, "unknown instruction: FORM"),
        ("# escape=x\nFROM a", 1, "invalid ESCAPE 'x'. Must be ` or \\"),
        ("# escape=`\n# escape=`\nFROM a", 2, "only one escape parser directive can be used"),
        ("FROM a\nRUN <<EOF\nx\n", 2, "unterminated heredoc: no line is EOF"),
        ("FROM a\nRUN " + "x" * 70_000, 2, "greater than maximum allowed size of 65535"),
        ("FROM a\nENV b", 2, "ENV must have two arguments"),
        ("FROM a\nENV a=b c", 2, 'can\'t find = in "c"'),
        ("FROM a\nCOPY b", 2, "only one was provided"),
        ("FROM a\nCOPY --what b c", 2, "unknown flag: --what"),
        ("FROM a\nCOPY --from b c", 2, "missing a value on flag: --from"),
        ("FROM a\nCOPY --from=a --from=b b c", 2, "duplicate flag specified: --from"),
        ('FROM a\nRUN ["a", 1]', 2, "arrays must be comprised of strings only"),
        ("FROM a b", 1, "either one or three arguments"),
        ("FROM a AS 1b", 1, "invalid name for build stage"),
        ("FROM a\nSHELL sh", 2, "in JSON form"),
        ("FROM a\nONBUILD ONBUILD RUN x", 2, "Chaining ONBUILD"),
        ("FROM a\nONBUILD FROM x", 2, "isn't allowed as an ONBUILD trigger"),
        ("FROM a\nONBUILD ENV x", 2, "ENV must have two arguments"),
        ("FROM a\nHEALTHCHECK --interval=1x CMD y", 2, "no duration"),
        ("FROM a\nHEALTHCHECK MAYBE", 2, "Unknown type 'MAYBE'"),
        ("FROM a\nRUN --security=insecure x", 2, "no privileges"),
        ("FROM a\nUSER", 2, "USER requires exactly one argument"),
        ('FROM a\nVOLUME [""]', 2, "can not be an empty string"),
        ("FROM a\n" + "USER b\n" * 10_001, 10_001, "more than 10000 instructions"),
    ],
)
def test_errors_name_the_line(text: str, line: int, words: str) -> None:
    with pytest.raises(DockerfileError) as failed:
        everything(text)
    assert failed.value.line == line
    assert failed.value.message.startswith(f"dockerfile parse error on line {line}: ")
    assert words in failed.value.message


@pytest.mark.parametrize("text", ["", "\n\n", "# only a remark\n", "   \n\t\n"])
def test_an_empty_file(text: str) -> None:
    with pytest.raises(InvalidArgument, match="file with no instructions"):
        parser.parse(text)


def everything(text: str) -> None:
    for node in parser.parse(text).nodes:
        instructions.read(node)


def survives(text: str) -> None:
    """No other exception than the one for a bad Dockerfile; lines lie in the file and go up."""
    try:
        found = parser.parse(text)
        last = 0
        for node in found.nodes:
            assert last < node.start <= node.end <= text.count("\n") + 1
            assert parser.parse(text).nodes
            last = node.start
            step = instructions.read(node, found.escape)
            expansion.expanded(step.command, {"x": "$x ${y}", "y": "'"}, found.escape)
    except InvalidArgument:
        return


@settings(max_examples=250, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=14).map("".join))
def test_anything_is_a_dockerfile_or_one_error(text: str) -> None:
    survives(text)


@pytest.mark.long
@settings(max_examples=20_000, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=20).map("".join))
def test_anything_at_length(text: str) -> None:
    survives(text)


def ours(text: str) -> list[object] | None:
    """None where we refuse what BuildKit's parser leaves to a later stage."""
    try:
        found = parser.parse(text)
        for node in found.nodes:
            instructions.read(node, found.escape)
    except InvalidArgument:
        return None
    return [
        (node.word, node.flags, node.original, node.start, node.end, tuple((one.name, one.content) for one in node.heredocs))
        for node in found.nodes
    ]


def theirs(text: str) -> list[object] | str:
    import dockerfile

    try:
        found = dockerfile.parse_string(text)
    except dockerfile.GoParseError as error:
        return str(error)
    return [
        (
            one.cmd.upper(),
            one.flags,
            one.original.split("\n")[0] if one.heredocs else one.original,
            one.start_line,
            one.end_line,
            tuple((each.name, each.content) for each in one.heredocs),
        )
        for one in found
        if one.cmd
    ]


def compared(count: int, seed: int) -> None:
    """What we read, BuildKit's own parser reads alike; but for letters in flags, which it cuts to bytes."""
    generator = random.Random(seed)
    pieces = [piece for piece in PIECES if piece not in ("\0", "\ufeff", "é")]
    read = 0
    for _ in range(count):
        text = "".join(generator.choice(pieces) for _ in range(generator.randint(1, 10)))
        mine = ours(text)
        if mine is not None:
            read += 1
            assert mine == theirs(text), repr(text)
    assert read > count / 20, "nearly nothing was compared"


BUILDKIT = pytest.mark.skipif(
    platform.machine() != "x86_64" and importlib.util.find_spec("dockerfile") is None,
    reason="the package dockerfile has wheels for x86_64 only",
)


@BUILDKIT
def test_we_read_what_buildkit_reads() -> None:
    compared(8_000, 5)


@BUILDKIT
@pytest.mark.long
def test_we_read_what_buildkit_reads_at_length() -> None:
    compared(300_000, 6)
