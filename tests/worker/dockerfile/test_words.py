"""Variables, quotes and escapes, by BuildKit's rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.errors import InvalidArgument
from worker.dockerfile import words

KNOWN = {"A": "one", "B": "", "P": "/usr/lib/x.tar.gz", "S": "a b", "Q": "'$A\"", "1": "first"}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", "plain"),
        ("$A", "one"),
        ("${A}s", "ones"),
        ("$As", ""),
        ("$nothing", ""),
        ("$", "$"),
        ("a$", "a$"),
        ("$ A", "$ A"),
        ("$1x", "firstx"),
        ("\\$A", "$A"),
        ("'$A'", "$A"),
        ('"$A"', "one"),
        ('"\\$A"', "$A"),
        ('"a\\b\\"c"', 'a\\b"c'),
        ("a\\b", "ab"),
        ("$Q", "'$A\""),
        ("'a\"b'\"c'd\"", "a\"bc'd"),
        ("${A:-x}${B:-x}${C:-x}", "onexx"),
        ("${A-x}${B-x}${C-x}", "onex"),
        ("${A:+x}${B:+x}${C:+x}", "x"),
        ("${A+x}${B+x}${C+x}", "xx"),
        ("${C:-${D:-$A}}", "one"),
        ("${C:-'q $A'}", "q $A"),
        ("${P#*/}", "usr/lib/x.tar.gz"),
        ("${P##*/}", "x.tar.gz"),
        ("${P%.*}", "/usr/lib/x.tar"),
        ("${P%%.*}", "/usr/lib/x"),
        ("${P/lib/share}", "/usr/share/x.tar.gz"),
        ("${P//\\//_}", "_usr_lib_x.tar.gz"),
        ("${P/l*b/x}", "/usr/x/x.tar.gz"),
        ("${P//r/}", "/us/lib/x.ta.gz"),
        ("${P//?/-}", "-" * 17),
        ("${P#/*r/}", "lib/x.tar.gz"),
        ("${P%gz*}", "/usr/lib/x.tar."),
        ("${P#x}", "/usr/lib/x.tar.gz"),
        ("\\", ""),
    ],
)
def test_expansion(text: str, expanded: str) -> None:
    assert words.expand(text, KNOWN) == expanded


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("'open", "single-quote"),
        ('"open', "double-quote"),
        ("${", "missing '}'"),
        ("${A", "missing '}'"),
        ("${}", "bad substitution"),
        ("${:x}", "bad substitution"),
        ("${A!x}", "unsupported modifier"),
        ("${A:-x", "missing '}'"),
        ("${C:?}", "C: not allowed to be unset"),
        ("${C?give it}", "C: give it"),
    ],
)
def test_faults(text: str, fault: str) -> None:
    with pytest.raises(InvalidArgument, match=fault):
        words.expand(text, KNOWN)


def test_documents_keep_their_quotes() -> None:
    text = """a "$A" '$A' \\$A \\\\ \\n \\" ${B:-"x"} $\n"""
    assert words.expand_document(text, KNOWN) == """a "one" 'one' $A \\ \\n \\" x $\n"""


def test_the_other_escape() -> None:
    assert words.expand("C:\\$A`$A", KNOWN, "`") == "C:\\one$A"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a  b", ["a", "b"]),
        ("$S", ["a", "b"]),
        ('"$S" c', ["a b", "c"]),
        ("a\\ b", ["a b"]),
        ("$B", []),
        ('""', [""]),
        ("x$S", ["xa", "b"]),
    ],
)
def test_words(text: str, found: list[str]) -> None:
    assert words.expand_words(text, KNOWN) == found


def test_split_keeps_quotes() -> None:
    assert words.split("a=1 b=\"c d\" e='f g' h=i\\ j \\") == ["a=1", 'b="c d"', "e='f g'", "h=i\\ j"]


def test_what_grows_is_bounded() -> None:
    with pytest.raises(InvalidArgument, match="nested more than"):
        words.expand("${C:-" * 500 + "}" * 500, {})
    with pytest.raises(InvalidArgument, match="at most 4096"):
        words.expand("${A#*x}", {"A": "x" * 5000})
    assert words.expand("${A##" + "*a" * 40 + "b}", {"A": "a" * 4000}) == "a" * 4000
    with pytest.raises(InvalidArgument, match="expands to more than"):
        words.expand("$A" * 2000, {"A": "x" * 1000})


@settings(max_examples=400, deadline=None)
@given(st.text("$A{}:-+?#%/\\'\"* x", max_size=24))
def test_any_word_expands_or_is_refused(text: str) -> None:
    try:
        words.expand(text, KNOWN)
    except InvalidArgument:
        return
