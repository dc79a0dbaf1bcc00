"""``cluster build`` and ``cluster commit``: what is sent, from where, and how it looks. Files that are fetched by address."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from covey.testing import images

from .conftest import BASE, BuildNode, tar_of

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

CLUSTER = str(Path(sys.executable).with_name("cluster"))


def cluster(builds: BuildNode, *arguments: str, data: bytes = b"", code: int = 0, cwd: Path | None = None) -> tuple[str, str]:
    done = subprocess.run(
        [CLUSTER, "-H", f"unix://{builds.node.socket}", *arguments],
        input=data,
        capture_output=True,
        timeout=60,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == code, done
    return done.stdout.decode(), done.stderr.decode()


def write(place: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


LISTING = f"FROM {BASE}\nCOPY . /all\nRUN cd /all && find . -type f | sort > /listing; cat /listing\n"


def listed(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("./")]


def test_what_is_sent(builds: BuildNode, tmp_path: Path) -> None:
    files = {"Dockerfile": LISTING, "a": "", "b.log": "", "d/b.log": "", "d/keep/c": "", "secret/x": "", ".hidden": ""}
    context = write(tmp_path / "context", {**files, ".dockerignore": "**/*.log\nsecret\nd/*\n!d/keep\nDockerfile\n"})
    (context / "secret").chmod(0)
    out, _ = cluster(builds, "build", ".", cwd=context)
    # The daemon takes back what is sent in spite of being ignored, and has to be.
    assert listed(out) == ["./.dockerignore", "./.hidden", "./a", "./d/keep/c"]
    write(context, {"Dockerfile.dockerignore": "*\n!a\n"})
    assert "./a" in listed(cluster(builds, "build", "--no-cache", str(context))[0])


def test_dockerfiles_from_elsewhere(builds: BuildNode, tmp_path: Path) -> None:
    context = write(tmp_path / "context", {"Dockerfile": "FROM nothing\n", "a": ""})
    other = write(tmp_path, {"Other": LISTING}) / "Other"
    out, _ = cluster(builds, "build", "-t", "elsewhere:1", "-f", str(other), str(context))
    assert "Successfully tagged elsewhere:1" in out
    assert {"./Dockerfile", "./a"} <= set(listed(out))
    out, _ = cluster(builds, "build", "-f", "-", str(context), data=LISTING.encode())
    assert {"./Dockerfile", "./a"} <= set(listed(out))
    out, _ = cluster(builds, "build", "-", data=f"FROM {BASE}\nRUN echo from stdin\n".encode())
    assert "from stdin" in out
    out, _ = cluster(builds, "build", "-", data=tar_of({"Dockerfile": LISTING.encode(), "in-tar": b""}))
    assert "./in-tar" in listed(out)
    out, _ = cluster(builds, "build", "-q", "-t", "quiet:1", "-f", "-", str(context), data=f"FROM {BASE}\nENV a=b\n".encode())
    assert out.strip() == builds.node.inspect("quiet:1")["Id"]
    builds.node.docker("rmi", "elsewhere:1", "quiet:1")


def test_errors(builds: BuildNode, tmp_path: Path) -> None:
    context = write(tmp_path / "context", {"Dockerfile": f"FROM {BASE}\nRUN echo words >&2; exit 5\n"})
    out, errors = cluster(builds, "build", str(context), code=5)
    assert "words" in out
    assert "\x1b" not in out
    assert errors == "cluster: The command '/bin/sh -c echo words >&2; exit 5' returned a non-zero code: 5\n"
    (context / "Dockerfile").write_text("FORM x\n")
    _, errors = cluster(builds, "build", str(context), code=1)
    assert errors == "cluster: dockerfile parse error on line 1: unknown instruction: FORM\n"
    (context / "Dockerfile").write_text(f"FROM {BASE}\nCOPY absent /\n")
    _, errors = cluster(builds, "build", str(context), code=1)
    assert "stat absent: file does not exist (line 2: COPY absent /)" in errors
    for arguments, words in (
        ((str(tmp_path / "nowhere"),), "is no directory"),
        (("-f", "absent", str(context)), "there is no absent"),
        (("-f", "-", "-"), "cannot both come from stdin"),
        (("--secret", "id=x", str(context)), "id=NAME,src=FILE"),
        (("--build-arg", "=x", str(context)), "NAME=VALUE"),
    ):
        assert words in cluster(builds, "build", *arguments, code=1)[1]


def test_commit(builds: BuildNode) -> None:
    made = builds.node.out("run", "-d", BASE, "sh", "-c", "echo x > /x; sleep 1000")
    for reference in ("committed:1", ""):
        arguments = ("-c", "CMD cat /x", "-m", "by hand", "-a", "me", made, *([reference] if reference else []))
        out, _ = cluster(builds, "commit", *arguments)
        found = builds.node.inspect(out.strip())
        assert (found["Comment"], found["Author"], found["RepoTags"]) == ("by hand", "me", [reference] if reference else [])
    assert builds.node.state(made)["Status"] == "running"
    assert builds.node.out("run", "--rm", "committed:1") == "x"
    assert "commit" in builds.node.events("event=commit", "container=" + made)
    assert "No such container: absent" in cluster(builds, "commit", "absent", code=1)[1]


@contextlib.contextmanager
def served(builds: BuildNode, directory: Path) -> Iterator[str]:
    """The address at which a web server beside the node has the directory."""
    server = subprocess.Popen(
        builds.node.inside(
            sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(directory), "0"
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    try:
        yield server.stdout.readline().split("(")[1].split(")")[0].rstrip("/")
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_files_by_address(builds: BuildNode, tmp_path: Path) -> None:
    archive = images.tar([("f", 0o644, b"f")])
    write(tmp_path, {"plain": "fetched"})
    (tmp_path / "packed.tar").write_bytes(archive)
    os.utime(tmp_path / "plain", (1_000_000_000, 1_000_000_000))
    with served(builds, tmp_path) as address:
        digest = hashlib.sha256(b"fetched").hexdigest()
        text = f"""\
FROM {BASE}
ADD {address}/plain /d/
ADD {address}/plain?q=1 /named
ADD --checksum=sha256:{digest} --chown=www {address}/plain /checked
ADD {address}/packed.tar /kept/
RUN stat -c '%a %u %Y %n' /d/plain /named /checked /kept/*
"""
        built = builds.build(text)
        assert built.error == ""
        lines = built.text.splitlines()
        for line in ("600 0 1000000000 /d/plain", "600 0 1000000000 /named", "600 1000 1000000000 /checked"):
            assert line in lines, built.text
        assert any(line.startswith("600 0") and line.endswith("/kept/packed.tar") for line in lines)
        assert builds.build(text).text.count("Using cache") == 5
        (tmp_path / "plain").write_text("changed")
        assert "digest mismatch" in builds.build(text).error
        for words, line in (
            ("status 404", f"ADD {address}/absent /x"),
            ("cannot fetch", "ADD http://127.0.0.1:1/x /x"),
            ("only http and https", "ADD ftp://127.0.0.1/x /x"),
            ("git repository", "ADD https://127.0.0.1/x.git /x"),
            ("determine filename", f"ADD {address}/ /x/"),
        ):
            assert words in builds.build(f"FROM {BASE}\n{line}\n").error


def test_import_by_address(builds: BuildNode, tmp_path: Path) -> None:
    (tmp_path / "root.tar.gz").write_bytes(gzip.compress(images.busybox_rootfs_tar()))
    (tmp_path / "cut.tar").write_bytes(images.busybox_rootfs_tar()[:100_000])
    with served(builds, tmp_path) as address:
        said = builds.node.out("import", "-c", "CMD echo by address", f"{address}/root.tar.gz", "by-address:1").splitlines()
        assert said[0] == f"Downloading from {address}/root.tar.gz"
        assert builds.node.inspect("by-address:1")["Id"] == said[-1]
        assert builds.node.out("run", "--rm", "by-address:1") == "by address"
        sdk = pytest.importorskip("docker").APIClient(base_url=f"unix://{builds.node.socket}")
        told = sdk.import_image_from_url(f"{address.removeprefix('http://')}/root.tar.gz", repository="by-sdk")
        sdk.close()
        assert f"Downloading from {address}/root.tar.gz" in told
        assert builds.node.inspect("by-sdk:latest")["Id"] in told
        before = builds.node.out("images", "-aq")
        for words, source in (
            ("status 404", f"{address}/absent"),
            ("cannot fetch", "http://127.0.0.1:1/x"),
            ("cut short", f"{address}/cut.tar"),
        ):
            assert words in builds.node.docker("import", source, "bad:1", code=1).stderr
        assert builds.node.out("images", "-aq") == before
