"""References mean what Docker takes them to mean."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.errors import InvalidArgument
from worker.images import reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("library/busybox", "docker.io/library/busybox", "busybox"),
        ("user/app", "docker.io/user/app", "user/app"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("localhost/x", "localhost/x", "localhost/x"),
        ("localhost:5000/a/b:t", "localhost:5000/a/b:t", "localhost:5000/a/b:t"),
        ("[fd00::1]:5000/x", "[fd00::1]:5000/x", "[fd00::1]:5000/x"),
        ("ghcr.io/o/r", "ghcr.io/o/r", "ghcr.io/o/r"),
        ("UPPER.example/x", "UPPER.example/x", "UPPER.example/x"),
        (f"x@{DIGEST}", f"docker.io/library/x@{DIGEST}", f"x@{DIGEST}"),
        (f"x:t@{DIGEST}", f"docker.io/library/x:t@{DIGEST}", f"x:t@{DIGEST}"),
        ("a__b/c-d.e--f", "docker.io/a__b/c-d.e--f", "a__b/c-d.e--f"),
        ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("docker.io/a.example/b", "docker.io/a.example/b", "docker.io/a.example/b"),
        ("docker.io/localhost/b", "docker.io/localhost/b", "docker.io/localhost/b"),
        ("docker.io/docker.io/b", "docker.io/docker.io/b", "docker.io/docker.io/b"),
    ],
)
def test_normalises(text: str, full: str, familiar: str) -> None:
    parsed = reference.parse(text)
    assert (str(parsed), parsed.familiar) == (full, familiar)
    assert reference.parse(parsed.familiar) == parsed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid reference format"),
        (":tag", "invalid reference format"),
        ("Busybox", "must be lowercase"),
        ("docker.io/Busybox", "must be lowercase"),
        ("a//b", "invalid reference format"),
        ("../etc", "invalid reference format"),
        ("x:", "invalid reference format"),
        ("x:" + "t" * 129, "invalid reference format"),
        ("x:ta g", "invalid reference format"),
        ("x\n", "invalid reference format"),
        ("x@sha256:abc", "invalid reference format"),
        ("x@sha256:" + "a" * 63, "invalid checksum digest length"),
        ("x@md4:" + "a" * 64, "unsupported digest algorithm"),
        ("x@sha256:" + "A" * 64, "invalid checksum digest format"),
        ("a" * 300, "must not be more than 255"),
        ("ab" * 32, "cannot specify 64-byte hexadecimal strings"),
        ("-x", "invalid reference format"),
        ("a___b", "invalid reference format"),
    ],
)
def test_refuses(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        reference.parse(text)
    assert words in refused.value.message


def test_default_tag_only_where_nothing_is_said() -> None:
    assert reference.parse_tagged("x").tag == "latest"
    assert reference.parse_tagged("x:1").tag == "1"
    assert reference.parse_tagged(f"x@{DIGEST}").tag is None


def test_parts_of_the_api() -> None:
    assert reference.from_parts("x", "").familiar == "x:latest"
    assert reference.from_parts("x:1", "").familiar == "x:1"
    assert reference.from_parts("x:1", "2").familiar == "x:2"
    assert reference.from_parts("x", DIGEST).familiar == f"x@{DIGEST}"
    with pytest.raises(InvalidArgument):
        reference.from_parts("x", "not a tag")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="aA0./:@-_[]é\n", max_size=24))
def test_whatever_parses_stays_the_same(text: str) -> None:
    try:
        parsed = reference.parse(text)
    except InvalidArgument:
        return
    assert reference.parse(str(parsed)) == parsed
    assert ".." not in parsed.path
