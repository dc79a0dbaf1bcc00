"""``docker commit`` by the unmodified client, on Covey and on Debian's dockerd: the same file system, config and history."""

from __future__ import annotations

import json

import pytest

from .conftest import DOCKERS, Endpoint
from .dockerfiles import BASE
from .test_build import Builder, builders

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
__all__ = ["DOCKERS", "Endpoint", "builders"]

CHANGES = """\
rm -rf /www && mkdir /www && echo new > /www/index.html
rm /etc/group; ln -s /etc/passwd /linked; echo one > /h1; ln /h1 /h2; mkfifo /fifo; chmod 4711 /bin/busybox
mkdir -m 1777 /sticky; chown 12:34 /sticky; touch -d @1000000000 /sticky/old; mv /home /moved
"""
COMMITS = {
    "plain": (),
    "named": ("-a", "Some One", "-m", "what was done"),
    "changed": (
        *("-c", "ENV A=b C=$PATH", "-c", 'CMD ["x", "y"]', "-c", "EXPOSE 80", "-c", "WORKDIR /w", "-c", "USER 5"),
        *("-c", "LABEL k=v", "-c", "VOLUME /v", "-c", "ONBUILD RUN x", "-c", "HEALTHCHECK NONE"),
    ),
    "unpaused": ("--pause=false",),
}


@pytest.mark.parametrize("name", COMMITS)
@pytest.mark.parametrize("running", [False, True], ids=["ended", "running"])
def test_commits_are_the_same(name: str, running: bool, builders: tuple[Builder, Builder]) -> None:
    ours, theirs = builders
    tag = f"commit-{name}-{running}:1".lower()
    for builder in builders:
        script = CHANGES + ("echo done; sleep 1000" if running else "")
        options = ("-l", "made=here", "-e", "OWN=1", "-w", "/tmp", "-v", "/mounted")
        made = builder("run", "-d", *options, BASE, "sh", "-c", script).decode().strip()
        try:
            if running:
                builder.endpoint.wait("it has changed things", lambda b=builder, m=made: b"done" in b("logs", m))
            else:
                builder("wait", made)
            identity = builder("commit", *COMMITS[name], made, tag).decode().strip()
            assert json.loads(builder("image", "inspect", tag))[0]["Id"] == identity
            assert builder("inspect", "-f", "{{.State.Status}}", made).decode().strip() == ("running" if running else "exited")
        finally:
            builder("rm", "-f", "-v", made)
    assert ours.tree(tag) == theirs.tree(tag)
    assert ours.config(tag) == theirs.config(tag)
    assert ours.history(tag) == theirs.history(tag)
    again = [builder("run", "--rm", tag, "cat", "/www/index.html", "/h2").decode() for builder in builders]
    assert again == ["new\none\n"] * 2 if name != "changed" else again[0] == again[1]


def test_what_cannot_be_committed(builders: tuple[Builder, Builder]) -> None:
    for builder in builders:
        assert b"No such container: absent" in builder.run("commit", "absent").stderr
        made = builder("create", BASE, "true").decode().strip()
        try:
            done = builder.run("commit", "-c", "RUN x", made)
            assert done.returncode == 1
            assert b"not a valid change command" in done.stderr
            assert builder.run("commit", made, "UPPER").returncode == 1
        finally:
            builder("rm", made)
