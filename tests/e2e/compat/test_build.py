"""``docker build`` by the unmodified client, on Covey and on Debian's dockerd: the same file system, config and history."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from .conftest import DOCKERS, Endpoint, Program
from .dockerfiles import BASE, CASES, EXPECTED, TREE, Case, Link

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

#: What an engine puts into every container, and no image holds.
_PLACES = re.compile(r"(dev|proc|sys)(/.*)?|\.dockerenv|etc/(hosts|hostname|resolv\.conf|mtab)|run/secrets")
_HASH = re.compile(r"(file|dir|multi):[0-9a-f]{64}")
_CONFIG = (
    "Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels", "OnBuild", "Shell", "StopSignal", "User", "Volumes",
    "WorkingDir",
)  # fmt: skip


class Builder:
    """The docker command at one daemon."""

    def __init__(self, endpoint: Endpoint, config: Path) -> None:
        self.endpoint = endpoint
        self._environ = {
            **os.environ,
            "DOCKER_HOST": endpoint.host,
            "DOCKER_CONFIG": str(config),
            "DOCKER_BUILDKIT": "0",
        }

    def run(self, *arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = [next(path for path in DOCKERS.values() if os.access(path, os.X_OK)), *arguments]
        return subprocess.run(command, input=data, capture_output=True, timeout=90, check=False, env=self._environ)

    def __call__(self, *arguments: str) -> bytes:
        done = self.run(*arguments)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout.decode()}{done.stderr.decode()}"
        return done.stdout

    def build(self, tag: str, context: Path, *flags: str) -> str:
        """What it printed."""
        return self("build", "-t", tag, *flags, str(context)).decode()

    def tree(self, image: str) -> dict[str, tuple[Any, ...]]:
        """path → (type, mode, uid, gid, size, link, digest of the content) of all files of an image."""
        made = self("create", "-w", "/", image, "/nothing").decode().strip()
        try:
            archive = self("export", made)
        finally:
            self("rm", made)
        found: dict[str, tuple[Any, ...]] = {}
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for info in tar:
                name = info.name.strip("/").removeprefix("./")
                if not name or _PLACES.fullmatch(name):
                    continue
                file = tar.extractfile(info) if info.isreg() or info.islnk() else None
                data = file.read() if file else b""
                found[name] = (
                    "f" if info.islnk() else info.type.decode().replace("0", "f"),
                    oct(info.mode & 0o7777),
                    info.uid,
                    info.gid,
                    len(data),
                    info.linkname if info.issym() else "",
                    hashlib.sha256(data).hexdigest() if data else "",
                )
        return found

    def text(self, image: str, path: str) -> str:
        made = self("create", "-w", "/", image, "/nothing").decode().strip()
        try:
            with tarfile.open(fileobj=io.BytesIO(self("cp", f"{made}:/{path}", "-"))) as tar:
                (info,) = tar.getmembers()
                file = tar.extractfile(info)
                assert file is not None
                return file.read().decode()
        finally:
            self("rm", made)

    def config(self, image: str) -> dict[str, Any]:
        (found,) = json.loads(self("image", "inspect", image))
        config = {key: found["Config"].get(key) for key in _CONFIG}
        kept = {key: value for key, value in config.items() if value not in (None, {}, [], "")}
        return {**kept, "Author": found["Author"], "layers": len(found["RootFS"]["Layers"])}

    def history(self, image: str) -> list[tuple[str, bool, str]]:
        """(created by, whether it weighs anything, comment), newest first, checksums masked."""
        found = json.loads(self.endpoint.call("GET", f"/v1.41/images/{image}/history").text)
        return [(_HASH.sub(r"\1:…", one["CreatedBy"]), one["Size"] > 0, one["Comment"]) for one in found]


@pytest.fixture(scope="session")
def builders(covey: Endpoint, dockerd: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[Builder, Builder]:
    """(Covey's, Debian's)."""
    config = tmp_path_factory.mktemp("build-config")
    return Builder(covey, config), Builder(dockerd, config)


def write(case: Case, place: Path) -> Path:
    """The context of a case on disk."""
    place.mkdir(exist_ok=True)
    for name, content in {**case.files, "Dockerfile": case.text.encode()}.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            path.symlink_to(content.target)
            continue
        data, mode = content if isinstance(content, tuple) else (content, 0o644)
        path.write_bytes(data)
        path.chmod(mode)
    return place


def said(output: str) -> list[str]:
    """The lines of a build without ids, and without the containers that Docker makes for steps that run nothing."""
    lines = []
    for line in output.splitlines():
        text = re.sub(r"\b[0-9a-f]{12}\b", "ID", line)
        if not re.match(r"Sending build context| ---> Running in|Removing intermediate|$", text):
            lines.append(text)
    return lines


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_builds_are_the_same(case: Case, builders: tuple[Builder, Builder], tmp_path: Path) -> None:
    context = write(case, tmp_path / "context")
    tag = f"{case.name}-built"
    first = write(replace(case, text=case.first), tmp_path / "first")
    outputs = []
    for builder in builders:
        if case.first:
            builder.build(f"{case.name}-first", first)
        outputs.append(said(builder.build(tag, context, *case.flags)))
    ours, theirs = builders
    assert outputs[0] == outputs[1]
    assert ours.tree(tag) == theirs.tree(tag)
    assert ours.config(tag) == theirs.config(tag)
    assert ours.history(tag) == theirs.history(tag)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_old_builder_cannot_read(name: str, builders: tuple[Builder, Builder], tmp_path: Path) -> None:
    case, files = EXPECTED[name]
    ours = builders[0]
    ours.build(f"{name}-built", write(case, tmp_path / "context"), *case.flags)
    assert {path: ours.text(f"{name}-built", path) for path in files} == dict(files)


def hits(output: str) -> list[bool]:
    """For each step whether it came from the cache."""
    steps = re.split(r"^Step \d+/\d+ : ", output, flags=re.MULTILINE)[1:]
    return ["Using cache" in step for step in steps]


CACHE = Case(
    "cache",
    f"""\
FROM {BASE}
ARG early=1
COPY a.txt /
RUN echo $early
ARG late=1
COPY d /d
RUN echo $late > /late
CMD ["x"]
""",
    TREE,
)


def test_the_cache_is_hit_alike(builders: tuple[Builder, Builder], tmp_path: Path) -> None:
    """Each row is what changed before a further build."""
    context = write(CACHE, tmp_path / "context")

    def change(path: str, text: str) -> None:
        (context / path).write_text(text)

    def touch() -> None:
        os.utime(context / "a.txt", (1, 1))

    rows: list[tuple[Any, tuple[str, ...]]] = [
        (lambda: None, ()),
        (lambda: None, ()),
        (touch, ()),
        (lambda: change("d/one", "other"), ()),
        (lambda: (context / "a.txt").chmod(0o600), ()),
        (lambda: change("b.txt", "not copied"), ()),
        (lambda: None, ("--build-arg", "late=2")),
        (lambda: None, ("--build-arg", "early=2")),
        (lambda: None, ("--no-cache",)),
        (lambda: None, ("--label", "a=b")),
        (lambda: change("Dockerfile", CACHE.text.replace('"x"', '"y"')), ()),
    ]
    for number, (prepare, flags) in enumerate(rows):
        prepare()
        ours, theirs = (hits(builder.build("cache-built", context, *flags)) for builder in builders)
        assert ours == theirs, f"row {number}"
    assert any(ours)


ERRORS = {
    "unknown": ("FROM {base}\nFORM x\n", "unknown instruction: FORM"),
    "code": ("FROM {base}\nRUN exit 3\n", "The command '/bin/sh -c exit 3' returned a non-zero code: 3"),
    "missing": ("FROM {base}\nCOPY nope /x\n", "stat nope: file does not exist"),
    "outside": ("FROM {base}\nCOPY ../x /x\n", "forbidden path outside the build context: ../x ()"),
    "many": ("FROM {base}\nCOPY a.txt b.txt /x\n", "the destination must be a directory and end with a /"),
    "none": ("FROM {base}\nCOPY *.nope /x\n", "no source files were specified"),
    "no-from": ("RUN x\n", "no build stage in current context"),
    "no-value": ("FROM {base}\nENV a\n", "ENV must have two arguments"),
    "absent": ("FROM covey/absent:1\n", "covey/absent"),
    "flag": ("FROM {base}\nCOPY --what=1 a.txt /\n", "nknown flag: "),
    "owner": ("FROM {base}\nCOPY --chown=nobody-here a.txt /\n", "nobody-here"),
    "shell": ("FROM {base}\nSHELL sh\n", "SHELL requires the arguments to be in JSON form"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_the_same(name: str, builders: tuple[Builder, Builder], tmp_path: Path) -> None:
    text, words = ERRORS[name]
    context = write(Case(name, text.format(base=BASE), TREE), tmp_path / "context")
    for builder in builders if name != "absent" else builders[:1]:
        done = builder.run("build", str(context))
        assert done.returncode == (3 if name == "code" else 1), done
        assert words in done.stderr.decode(), done.stderr.decode()
        left = builder("ps", "-aq").decode().split()
        if builder is builders[0]:
            assert left == []
        elif left:
            # Docker leaves the container of the step that failed.
            builder("rm", "-f", *left)


def test_a_target_and_a_dockerfile_from_elsewhere(builders: tuple[Builder, Builder], tmp_path: Path) -> None:
    text = f"FROM {BASE} AS one\nRUN echo 1 > /one\nFROM one AS two\nRUN echo 2 > /two\nFROM two\nRUN exit 9\n"
    context = write(Case("target", "FROM nothing-at-all\n", TREE), tmp_path / "context")
    elsewhere = tmp_path / "Elsewhere"
    elsewhere.write_text(text)
    for builder in builders:
        builder.build("target-built", context, "-f", str(elsewhere), "--target", "two")
        assert {"one", "two"} <= set(builder.tree("target-built"))
        done = builder.run("build", "-t", "stdin-built", "-", data=text.replace("exit 9", "true").encode())
        assert done.returncode == 0, done
        quiet = builder("build", "-q", "-t", "quiet-built", "--target", "one", "-f", str(elsewhere), str(context)).decode()
        assert quiet.strip() == json.loads(builder("image", "inspect", "quiet-built"))[0]["Id"]


def test_each_docker_command(docker: Program, tmp_path: Path) -> None:
    """Debian's command and a newer one, each told nothing but DOCKER_BUILDKIT=0."""
    context = write(CACHE, tmp_path / "context")
    client = replace(docker, environ={**docker.environ, "DOCKER_BUILDKIT": "0"})
    out = client("build", "-t", "by-command:1", "--iidfile", str(tmp_path / "id"), str(context))
    assert "Successfully tagged by-command:1" in out
    assert (tmp_path / "id").read_text() == client("image", "inspect", "-f", "{{.Id}}", "by-command:1").strip()
    made = client("create", "by-command:1").strip()
    try:
        assert client("commit", made, "by-command:2").startswith("sha256:")
    finally:
        client("rm", made)
    history = client("history", "--no-trunc", "--format", "{{.CreatedBy}}", "by-command:2").splitlines()
    assert history[:2] == ["x", '/bin/sh -c #(nop)  CMD ["x"]']
    client("rmi", "by-command:2", "by-command:1")
    assert "reclaimed space" in client("builder", "prune", "-f")
