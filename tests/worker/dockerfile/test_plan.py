"""Which stages a build needs, what FROM means, which arguments are seen where."""

from __future__ import annotations

import pytest

from covey.errors import InvalidArgument
from worker.dockerfile import mounts, parser, plan
from worker.dockerfile.arguments import Arguments, platform_arguments, recorded
from worker.dockerfile.expansion import expanded
from worker.dockerfile.instructions import Label

PLATFORM = platform_arguments("linux/arm64/v8", "linux/amd64")


def made(text: str, target: str = "", given: dict[str, str] | None = None, labels: dict[str, str] | None = None) -> plan.Plan:
    return plan.plan(parser.parse(text), Arguments(given or {}, PLATFORM), target, labels)


STAGES = """\
FROM a AS one
RUN x
FROM b AS two
COPY --from=one /x /
FROM c AS three
RUN --mount=from=0,target=/m y
FROM two AS four
COPY --from=elsewhere /x /
FROM scratch
COPY --from=FOUR / /
"""


@pytest.mark.parametrize(
    ("target", "needed"),
    [("", (0, 1, 3, 4)), ("one", (0,)), ("three", (0, 2)), ("FOUR", (0, 1, 3)), ("2", (0, 2))],
)
def test_only_needed_stages(target: str, needed: tuple[int, ...]) -> None:
    assert made(STAGES, target).needed == needed


def test_bases() -> None:
    found = made(
        "ARG base=x\nARG v=$base-1\nFROM $v AS a\nFROM --platform=$TARGETPLATFORM a\nFROM --platform=$BUILDPLATFORM A:b"
    )
    assert [(one.base, one.base_stage, one.platform) for one in found.stages] == [
        ("x-1", None, ""),
        ("a", 0, "linux/arm64/v8"),
        ("A:b", None, "linux/amd64"),
    ]
    assert found.length == 3
    assert made("ARG base=x\nFROM $base", given={"base": "y"}).stages[0].base == "y"


def test_labels_become_a_last_step() -> None:
    found = made("FROM a\nFROM b\n", labels={"k'": "$v w"})
    assert [len(stage.steps) for stage in found.stages] == [0, 1]
    assert expanded(found.stages[1].steps[0].command, {"v": "wrong"}) == Label((("k'", "$v w"),))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RUN x", "line 1: no build stage in current context"),
        ("ARG a", "line 1: no build stage in current context"),
        ("FROM $nothing", "line 1: base name"),
        ("FROM a AS b\nFROM c AS b", "line 2: duplicate name b"),
        ("FROM a\nCOPY --from=0 x y", "line 2: invalid from flag value 0"),
        ("FROM a\nCOPY --from=1 x y\nFROM b", "line 2: invalid from flag value 1"),
        ("FROM a\n" * 501, "501 stages, more than 500"),
    ],
)
def test_what_cannot_be_planned(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        made(text)


def test_no_such_target() -> None:
    with pytest.raises(InvalidArgument, match="failed to reach build target nine in Dockerfile"):
        made(STAGES, "nine")


def test_arguments_of_stages() -> None:
    given = Arguments({"a": "given", "HTTP_PROXY": "p", "unknown": "x"}, PLATFORM)
    given.declare_global("g", "global")
    stage = given.stage()
    assert stage.visible([]) == {}
    stage.declare("a", "default")
    stage.declare("g", None)
    stage.declare("b", "default")
    stage.declare("c", None)
    stage.declare("TARGETARCH", None)
    assert stage.visible(["b"]) == {"a": "given", "g": "global", "TARGETARCH": "arm64"}
    assert stage.of_run(["b"]) == {"a": "given", "g": "global", "TARGETARCH": "arm64", "HTTP_PROXY": "p"}
    assert given.stage().visible([]) == {}
    assert given.unused() == ["unknown"]
    assert recorded({"b": "2", "a": "1 x"}, ["/bin/sh", "-c", "y"]) == ["|2", "a=1 x", "b=2", "/bin/sh", "-c", "y"]
    assert recorded({}, ["y"]) == ["y"]


def test_triggers() -> None:
    assert plan.trigger("COPY <<E /x\nhi\nE", "\\").node.heredocs[0].content == "hi\n"
    for text in ("FROM x", "RUN a\nRUN b", "WHAT", "ONBUILD RUN x"):
        with pytest.raises(InvalidArgument, match="ONBUILD trigger"):
            plan.trigger(text, "\\")


def test_mounts() -> None:
    cache = mounts.parse("type=cache,dst=c,id=x,sharing=locked,mode=0700,uid=5", "/w")
    assert (cache.target, cache.id, cache.sharing, cache.mode, cache.uid, cache.read_only) == (
        "/w/c",
        "x",
        "locked",
        0o700,
        5,
        False,
    )
    bind = mounts.parse('target=/m,"source=a,b",from=st,rw')
    assert (bind.type, bind.source, bind.stage, bind.read_only) == ("bind", "a,b", "st", False)
    secret = mounts.parse("type=secret,id=t,required")
    assert (secret.target, secret.required, secret.read_only) == ("/run/secrets/t", True, True)
    assert mounts.parse("type=secret,id=t,env=T").target == ""
    assert mounts.parse("type=tmpfs,target=/t,size=1m").size == 1 << 20


@pytest.mark.parametrize(
    "text",
    [
        "type=ssh", "type=what,target=/x", "type=cache", "target=/", "target=/x,what=y", "type=cache,target=/x,sharing=no",
        "type=tmpfs,target=/x,size=big", "type=cache,target=/x,mode=9", "target", "type=secret",
        "target=/x,ro=maybe", "type=cache,target=/x,uid=-1",
    ],
)  # fmt: skip
def test_bad_mounts(text: str) -> None:
    with pytest.raises(InvalidArgument):
        mounts.parse(text)
    assert mounts.stage_of(text) == ""
