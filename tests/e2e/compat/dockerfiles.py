"""Dockerfiles of ours, as data: what two builders are given to make the same of.

``EXPECTED`` are those that Debian's classic builder cannot read; they say what has to come out.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field

from covey.testing import images

BASE = "covey/busybox:demo"
_ARCHIVE = images.tar([("inside", 0o750, None), ("inside/one", 0o640, b"one\n"), ("link", 0o777, "inside/one")])


@dataclass(frozen=True)
class Link:
    """A symbolic link in a context."""

    target: str


@dataclass(frozen=True)
class Case:
    """``files``: path → content, (content, mode) or Link. ``flags``: of ``docker build``. ``first``: built before it, as
    ``name-first``."""

    name: str
    text: str
    files: Mapping[str, bytes | tuple[bytes, int] | Link] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    first: str = ""


TREE: Mapping[str, bytes | tuple[bytes, int] | Link] = {
    "a.txt": b"a\n",
    "b.txt": b"bb\n",
    "c.log": b"ccc\n",
    "run.sh": (b"#!/bin/sh\necho run\n", 0o755),
    "d/one": b"1",
    "d/deep/two": (b"22", 0o600),
    "d/deep/up": Link("../one"),
    "d/gone": Link("/nowhere"),
    "to-a": Link("a.txt"),
    "to-d": Link("d"),
    "e f/g h": b"spaces\n",
}

CASES = (
    Case(
        "stages",
        f"""\
FROM {BASE} AS build
RUN mkdir -p /out/deep && echo made > /out/deep/file && chown 1000:1000 /out/deep/file && ln -s file /out/deep/link
FROM {BASE} AS middle
COPY --from=build /out /from-build
FROM {BASE}
COPY --from=middle /from-build /x
COPY --from=0 /out/deep/file /y/
COPY --from={BASE} /etc/passwd /z
CMD ["cat", "/z"]
""",
    ),
    Case(
        "arguments",
        f"""\
ARG base={BASE}
ARG unused
FROM ${{base}}
ARG one=1
ARG two
ARG three=${{one}}3
ENV FOUR=four-$one
ARG FOUR=hidden
RUN echo "$one $two $three $FOUR" > /said
LABEL it="$one-$two" other=${{nothing:-default}} more=${{one:+set}}
""",
        flags=("--build-arg", "two=zwei", "--build-arg", "one=eins", "--build-arg", "HTTP_PROXY=http://nowhere.invalid"),
    ),
    Case(
        "ignore",
        f"FROM {BASE}\nCOPY . /all\n",
        {
            **TREE,
            ".dockerignore": b"# remark\n*.txt\n!b.txt\nd/**\n!d/deep\n**/two\nDockerfile\n",
            "sub/x.txt": b"not at the top",
            "sub/deep/two": b"2",
        },
    ),
    Case(
        "onbuild",
        "FROM onbuild-first\nRUN cat /app/a.txt > /seen\n",
        TREE,
        first=f"FROM {BASE}\nONBUILD COPY a.txt /app/\nONBUILD RUN echo $X > /trigger\nONBUILD ENV X=y\nENV X=x\n",
    ),
    Case(
        "owners",
        f"""\
FROM {BASE}
RUN echo 'app:x:77:88::/:/bin/sh' >> /etc/passwd && echo 'app:x:99:' >> /etc/group
COPY --chown=app a.txt /names/
COPY --chown=app:www d /names/d
COPY --chown=5:6 run.sh /numbers
COPY --chown=1000 b.txt /new/deep/dir/
USER app
RUN id -u > /tmp/who
COPY c.log /tmp/
""",
        TREE,
    ),
    Case(
        "archives",
        f"""\
FROM {BASE}
ADD plain.tar /plain/
ADD packed.tar.gz /packed
ADD no.tar /kept/
COPY plain.tar /copied/
ADD a.txt d /mixed/
""",
        {**TREE, "plain.tar": _ARCHIVE, "packed.tar.gz": gzip.compress(_ARCHIVE, mtime=0), "no.tar": b"no archive\n"},
    ),
    Case(
        "health",
        f"""\
FROM {BASE}
HEALTHCHECK --interval=1m30s --timeout=250ms --start-period=2h --retries=9 CMD wget -q localhost || exit 1
STOPSIGNAL SIGQUIT
EXPOSE 8080 53/udp 90-92
""",
    ),
    Case("unhealthy", f'FROM {BASE}\nHEALTHCHECK CMD ["true"]\nHEALTHCHECK NONE\nENTRYPOINT ["a", "b\\"c"]\nCMD d e\n'),
    Case(
        "shell",
        f"""\
FROM {BASE}
SHELL ["/bin/busybox", "sh", "-ec"]
RUN echo one > /one; \\
  # between
  echo two > /two
CMD echo hi
""",
    ),
    Case(
        "volume",
        f"""\
FROM {BASE}
RUN mkdir /v && echo before > /v/before
VOLUME /v
RUN echo lost > /v/lost
COPY a.txt /v/
VOLUME ["/w", "/x y"]
""",
        TREE,
    ),
    Case(
        "places",
        f"""\
FROM {BASE}
WORKDIR /srv/app
WORKDIR deeper
ENV SUB=there
WORKDIR $SUB/..
RUN pwd > where
COPY a.txt .
COPY b.txt new/
USER www:www
WORKDIR /home/mine
RUN id > /tmp/id
""",
        TREE,
    ),
    Case(
        "shapes",
        f"""\
FROM {BASE}
COPY d /one
COPY d/ /two/
COPY *.txt /three/
COPY ?.txt d/o*e /four/
COPY to-a /five
COPY to-a to-d /six/
COPY ["e f/g h", "/seven eight"]
COPY a.txt /nine
COPY b.txt /nine
COPY d /etc
COPY d/deep /one/deep
RUN ln -s /one /linked && echo x > /x
COPY c.log /linked/
COPY [a-b].txt /ten/
""",
        TREE,
    ),
    Case(
        "deletions",
        f"""\
FROM {BASE}
RUN rm -rf /www /etc/group && mkdir /www && echo new > /www/new
RUN rm /www/new && ln -s /etc /www/new && mknod /fifo p && chmod 4755 /bin/busybox
RUN echo same > /h1 && ln /h1 /h2 && mkdir -m 1777 /sticky && touch -d @1000000000 /sticky/old
RUN mv /home /moved && true
RUN true
""",
    ),
    Case(
        "from-nothing",
        f"""\
FROM {BASE} AS tools
FROM scratch
COPY --from=tools /bin/busybox /bin/sh
COPY d /d
RUN ["/bin/sh", "-c", "echo x > /x"]
""",
        TREE,
    ),
    Case(
        "words",
        f"""\
FROM {BASE}
ENV A="a b" B='c $A' C=d\\ e F=$A\\$A G="q\\"q" H=${{A}}x
ENV old style with  spaces
LABEL "k k"="v v" multi="one \\
two"
MAINTAINER Some One <some@example.org>
RUN echo "$A|$B|$C|$F|$G|$H|$old" > /said
COPY $nothing"a.txt" /$old/
""",
        TREE,
        flags=("--label", "given=on line"),
    ),
)  # fmt: skip

EXPECTED: Mapping[str, tuple[Case, Mapping[str, str]]] = {
    "heredocs": (
        Case(
            "heredocs",
            f"""\
# syntax=docker/dockerfile:1
FROM {BASE}
ARG who=world
RUN <<EOF
echo one > /one
  echo "two $who" > /two
EOF
RUN cat <<A > /three && cat <<'B' >> /three
a $who
A
b $who
B
RUN <<EOF
#!/bin/cat
program
EOF
COPY <<EOF <<"raw" /files/
hello ${{who}} \\$5
EOF
raw $who
raw
COPY <<-TABS /tabs
\t\tindented
\tTABS
""",
        ),
        {
            "one": "one\n",
            "two": "two world\n",
            "three": "a world\nb $who\n",
            "files/EOF": "hello world $5\n",
            "files/raw": "raw $who\n",
            "tabs": "indented\n",
        },
    ),
    "modes": (
        Case(
            "modes",
            f"FROM {BASE}\nCOPY --chmod=0640 a.txt /m/\nCOPY --link --exclude=deep --exclude=g* d /e/\n"
            "RUN stat -c '%a %n' /m/a.txt > /said && ls /e >> /said\n",
            TREE,
        ),
        {"said": "640 /m/a.txt\none\n"},
    ),
    "mounts": (
        Case(
            "mounts",
            f"""\
FROM {BASE} AS other
RUN mkdir /data && echo theirs > /data/x
FROM {BASE}
RUN --mount=type=cache,target=/cache --mount=type=tmpfs,target=/t/deep echo kept > /cache/f && touch /t/deep/x
RUN --mount=type=cache,target=/cache cat /cache/f > /one
RUN --mount=target=/ctx --mount=from=other,source=/data,target=/their cat /ctx/a.txt /their/x > /two
RUN --mount=target=/ctx,rw rm /ctx/a.txt && ls /ctx | wc -l > /three
RUN --mount=target=/ctx ls /ctx/a.txt > /four
RUN ls -d /cache /t /ctx /their >> /five 2>/dev/null; cat /five | wc -l > /six
RUN --network=none ip -o link | wc -l > /seven
""",
            TREE,
        ),
        {"one": "kept\n", "two": "a\ntheirs\n", "four": "/ctx/a.txt\n", "five": "", "six": "0\n", "seven": "1\n"},
    ),
}
