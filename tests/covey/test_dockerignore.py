"""What a ``.dockerignore`` leaves out. Facts: docs.docker.com and Go's path.Match."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.dockerignore import BadPattern, Matcher, compiled, lines


@pytest.mark.parametrize(
    ("patterns", "path", "excluded"),
    [
        ("*.txt", "a.txt", True),
        ("*.txt", "d/a.txt", False),
        ("**/*.txt", "a.txt", True),
        ("**/*.txt", "d/e/a.txt", True),
        ("*/a", "d/a", True),
        ("*/a", "d/e/a", False),
        ("d", "d/e/f", True),
        ("d/", "d/e", True),
        ("/d", "d", True),
        ("d/**", "d/e", True),
        ("d/**", "d", False),
        ("d\n!d/e", "d/e", False),
        ("d\n!d/e", "d/e/f", False),
        ("d\n!d/e", "d/f", True),
        ("!d/e\nd", "d/e", True),
        ("*\n!a", "a", False),
        ("*\n!a", "b", True),
        ("*\n!a\na", "a", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("[^a-c]x", "dx", True),
        ("[]a]x", "]x", True),
        ("a\\*", "a*", True),
        ("a\\*", "ab", False),
        ("# remark\n\n  spaced  ", "spaced", True),
        (" #no remark", "#no remark", True),
        ("./a/../b", "b", True),
        (".", "anything", False),
        ("**", "d/e", True),
        ("a.b", "axb", False),
    ],
)
def test_patterns(patterns: str, path: str, excluded: bool) -> None:
    assert Matcher(lines(patterns)).excludes(path) is excluded


@pytest.mark.parametrize("pattern", ["[", "[a", "a\\", "[]", "[^]", "[z-a]"])
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(BadPattern):
        compiled(pattern)


def test_few_and_many_stars_say_the_same() -> None:
    """The regular expression of few stars and the automaton of many, on all short paths."""
    from covey import dockerignore

    few = dockerignore._FEW_STARS
    for pattern in ("a*b", "**/b", "a**b", "*/[^b]", "**a*", "?*", "a/**", "**/a/**", "*", "**"):
        paths = ["".join(letters) for size in range(6) for letters in itertools.product("ab/", repeat=size)]
        results = []
        for limit in (few, -1):
            dockerignore._FEW_STARS = limit
            dockerignore.compiled.cache_clear()
            results.append([path for path in paths if dockerignore.compiled(pattern).fullmatch(path)])
        dockerignore._FEW_STARS = few
        dockerignore.compiled.cache_clear()
        assert results[0] == results[1], pattern
        assert results[0] or pattern == "", pattern


def test_no_pattern_takes_for_ever() -> None:
    start = time.process_time()
    assert not compiled("**a" * 30 + "b").fullmatch("a" * 4000)
    assert not compiled("*a" * 30 + "b").fullmatch("a" * 255)
    assert not compiled("**a**b").fullmatch("a" * 4000)
    assert time.process_time() - start < 5


def test_a_lonely_exception() -> None:
    with pytest.raises(BadPattern, match="line 2"):
        lines("a\n!\n")


@settings(max_examples=300, deadline=None)
@given(st.text("ab*?[]^-\\/!.# \n", max_size=20), st.text("ab/.", min_size=1, max_size=12))
def test_any_file_is_read_or_refused(text: str, path: str) -> None:
    try:
        Matcher(lines(text)).excludes(path)
    except BadPattern:
        return
