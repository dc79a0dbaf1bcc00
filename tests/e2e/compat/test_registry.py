"""Images go to and from Debian's docker-registry by the unmodified docker command, as they do with Debian's Docker."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey.testing import images, lab_machine

from . import registries
from .conftest import DOCKERS, Endpoint
from .registries import MIRROR, OPEN, PASSWORD, PRIVATE, USER, Client, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    registries.check()
    directory = Path(tempfile.mkdtemp(prefix="covey-test-registries-"))
    stage = Stage(lab_machine.Machine("registries", directory), directory, f"/{directory.name}")
    try:
        stage.start()
        archive = images.docker_archive(
            "app:1", [images.tar([("base", 0o644, b"b" * 70_000)]), images.busybox_rootfs_tar()], {"Cmd": ["sh"]}
        )
        (directory / "app.tar").write_bytes(archive)
        yield stage
    finally:
        stage.end()


@pytest.fixture(params=list(DOCKERS))
def docker(request: pytest.FixtureRequest, stage: Stage, tmp_path: Path) -> Client:
    """An unmodified docker command at Covey, with an empty configuration."""
    return stage.client(DOCKERS[request.param], config=tmp_path)


@pytest.fixture
def peer(stage: Stage, tmp_path: Path) -> Client:
    """The docker command at Debian's dockerd."""
    return stage.client("/usr/bin/docker", config=tmp_path, endpoint=stage.dockerd)


@pytest.fixture
def cluster(stage: Stage, tmp_path: Path) -> Client:
    return stage.client(registries.CLUSTER, config=tmp_path)


def load(client: Client, stage: Stage) -> str:
    """``app:1`` is there; its id."""
    client("load", "-i", str(stage.directory / "app.tar"))
    return client("image", "inspect", "-f", "{{.Id}}", "app:1").strip()


def digest_in(text: str) -> str:
    found = re.search(r"sha256:[0-9a-f]{64}", text)
    assert found, text
    return found.group()


def repo_digests(client: Client, name: str) -> list[str]:
    found: list[str] = json.loads(client("image", "inspect", "-f", "{{json .RepoDigests}}", name))
    return found


def test_an_image_goes_to_a_registry_and_comes_back(stage: Stage, docker: Client, request: pytest.FixtureRequest) -> None:
    name = f"{OPEN}/there-and-back/{'a' if 'at-hand' in request.node.name else 'b'}:1"
    image_id = load(docker, stage)
    docker("tag", "app:1", name)
    pushed = docker("push", name)
    assert pushed.startswith(f"The push refers to repository [{name.removesuffix(':1')}]\n")
    digest = digest_in(pushed.splitlines()[-1])
    again = docker("push", name)
    assert again.count("Layer already exists") == 2
    assert digest_in(again.splitlines()[-1]) == digest, "the same image must be the same bytes each time"
    assert repo_digests(docker, name) == [f"{name.removesuffix(':1')}@{digest}"]
    docker("rmi", "app:1", name)
    pulled = docker("pull", name)
    assert pulled.count("Pull complete") == 2
    assert pulled.splitlines()[-3:] == [f"Digest: {digest}", f"Status: Downloaded newer image for {name}", name]
    assert docker("image", "inspect", "-f", "{{.Id}}", name).strip() == image_id
    assert f"Status: Image is up to date for {name}" in docker("pull", name)
    assert digest in docker("images", "--digests")
    by_digest = f"{name.removesuffix(':1')}@{digest}"
    docker("rmi", name)
    assert f"Status: Downloaded newer image for {by_digest}" in docker("pull", by_digest)
    assert docker("image", "inspect", "-f", "{{.Id}} {{.RepoTags}}", by_digest).strip() == f"{image_id} []"
    docker("rmi", by_digest)


def test_what_docker_pushed_covey_pulls_and_pushes_unchanged(stage: Stage, docker: Client, peer: Client) -> None:
    """The manifest (Docker's schema 2) and every layer are the registry's own bytes, wherever they have been."""
    theirs, ours = f"{OPEN}/docker/app:1", f"{OPEN}/covey/app:1"
    load(peer, stage)
    peer("tag", "app:1", theirs)
    digest = digest_in(peer("push", theirs).splitlines()[-1])
    docker("pull", theirs)
    docker("tag", theirs, ours)
    moved = docker("push", ours)
    assert digest_in(moved.splitlines()[-1]) == digest
    peer("pull", ours)
    assert repo_digests(peer, ours) == [f"{OPEN}/covey/app@{digest}", f"{OPEN}/docker/app@{digest}"]
    docker("rmi", theirs, ours)


def test_what_covey_pushed_docker_runs_with(stage: Stage, docker: Client, peer: Client) -> None:
    name = f"{OPEN}/from-covey/app:1"
    image_id = load(docker, stage)
    docker("tag", "app:1", name)
    digest = digest_in(docker("push", name).splitlines()[-1])
    assert f"Digest: {digest}" in peer("pull", name)
    assert peer("image", "inspect", "-f", "{{.Id}}", name).strip() == image_id
    docker("rmi", "app:1", name)
    peer("rmi", name)


def test_a_layer_the_registry_has_elsewhere_is_mounted(stage: Stage, docker: Client, request: pytest.FixtureRequest) -> None:
    which = "a" if "at-hand" in request.node.name else "b"
    first, second = f"{OPEN}/mount/{which}-first:1", f"{OPEN}/mount/{which}-second:1"
    load(docker, stage)
    docker("tag", "app:1", first)
    docker("push", first)
    docker("rmi", "app:1", first)
    docker("pull", first)
    docker("tag", first, second)
    assert docker("push", second).count(f"Mounted from mount/{which}-first") == 2
    docker("rmi", first, second)


def test_a_private_registry_wants_a_login(stage: Stage, docker: Client, request: pytest.FixtureRequest) -> None:
    name = f"{PRIVATE}/secret/{'a' if 'at-hand' in request.node.name else 'b'}:1"
    load(docker, stage)
    docker("tag", "app:1", name)
    assert "no basic auth credentials" in docker.fails("push", name)
    assert "no basic auth credentials" in docker.fails("pull", name)
    assert "unauthorized" in docker.fails("login", "-u", USER, "--password-stdin", PRIVATE, stdin="wrong").lower()
    assert "Login Succeeded" in docker("login", "-u", USER, "--password-stdin", PRIVATE, stdin=PASSWORD)
    docker("push", name)
    docker("rmi", name)
    docker("pull", name)
    docker("logout", PRIVATE)
    docker("rmi", name)
    assert "no basic auth credentials" in docker.fails("pull", name)


def test_a_mirror_stands_for_docker_hub(stage: Stage, docker: Client) -> None:
    load(docker, stage)
    docker("tag", "app:1", f"{MIRROR}/library/stage-app:1")
    docker("push", f"{MIRROR}/library/stage-app:1")
    docker("rmi", "app:1", f"{MIRROR}/library/stage-app:1")
    assert "Status: Downloaded newer image for stage-app:1" in docker("pull", "stage-app:1")
    assert repo_digests(docker, "stage-app:1")[0].startswith("stage-app@sha256:")
    docker("rmi", "stage-app:1")


def test_skopeo_copies_both_ways(stage: Stage, docker: Client, tmp_path: Path) -> None:
    """An image skopeo put into the registry comes byte for byte, and what Covey put there skopeo takes."""
    load(docker, stage)
    source = f"docker-archive:{stage.directory / 'app.tar'}"
    into, out = f"{OPEN}/skopeo/in:1", f"{OPEN}/skopeo/out:1"
    quiet = ("--tmpdir", str(tmp_path), "--insecure-policy", "copy")
    assert (done := stage.run("skopeo", *quiet, "--dest-tls-verify=false", source, f"docker://{into}")).returncode == 0, done
    pulled = docker("pull", into)
    docker("tag", into, out)
    docker("push", out)
    copy = tmp_path / "copy"
    done = stage.run("skopeo", *quiet, "--src-tls-verify=false", f"docker://{out}", f"dir:{copy}")
    assert done.returncode == 0, done.stderr
    assert digest_in(pulled) == digest_in(docker("push", out).splitlines()[-1])
    manifest = (copy / "manifest.json").read_bytes()
    raw = stage.run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{into}")
    assert raw.stdout.encode() == manifest
    docker("rmi", "app:1", into, out)


REFUSALS = [
    ("pull", f"{OPEN}/nobody/none:1"),
    ("pull", "127.0.0.1:5999/x:1"),
    ("pull", f"{PRIVATE}/x:1"),
    ("pull", "x/UPPER"),
    ("push", f"{OPEN}/nobody/none:1"),
]


@pytest.mark.parametrize("words", REFUSALS, ids=[" ".join(words) for words in REFUSALS])
def test_refusals_read_as_dockers(stage: Stage, tmp_path: Path, peer: Client, words: tuple[str, str]) -> None:
    docker = stage.client("/usr/bin/docker", config=tmp_path)

    def said(text: str) -> str:
        # Docker asks by HEAD and for /v2/ first; what was the matter is the same.
        return re.sub(r'(Head|Get) "([^"]*/v2/)[^"]*"', r'Get "\2"', text)

    assert said(docker.fails(*words)) == said(peer.fails(*words))


STATUSES = [
    ("POST", f"/v1.41/images/create?fromImage={OPEN}/nobody/none&tag=1"),
    ("POST", "/v1.41/images/create?fromImage=127.0.0.1:5999/x&tag=1"),
    ("POST", f"/v1.41/images/create?fromImage={PRIVATE}/x&tag=1"),
    ("POST", "/v1.41/images/create?fromImage=x/UPPER&tag=1"),
    ("GET", f"/v1.41/distribution/{OPEN}/nobody/none:1/json"),
    ("POST", f"/v1.41/images/{OPEN}/nobody/none/push?tag=1"),
]


@pytest.mark.parametrize(("method", "path"), STATUSES, ids=[path for _, path in STATUSES])
def test_status_codes_are_dockers(stage: Stage, method: str, path: str) -> None:
    headers = {"X-Registry-Auth": "e30="}
    ours, theirs = (Endpoint.call(one, method, path, headers=headers) for one in (stage.covey, stage.dockerd))
    assert ours.status == theirs.status, (ours, theirs)


def test_distribution_inspect_says_what_docker_says(stage: Stage, peer: Client) -> None:
    load(peer, stage)
    name = f"{OPEN}/distribution/app:1"
    peer("tag", "app:1", name)
    peer("push", name)
    ours, theirs = (one.json("GET", f"/distribution/{name}/json") for one in (stage.covey, stage.dockerd))
    assert ours == theirs


def test_events_tell_of_pulls_and_pushes(stage: Stage, docker: Client) -> None:
    name = f"{OPEN}/events/app:1"
    load(docker, stage)
    docker("tag", "app:1", name)
    docker("push", name)
    docker("pull", name)
    now = docker("info", "-f", "{{.SystemTime}}").strip()
    told = docker("events", "--since", "5m", "--until", now, "--filter", "type=image", "--format", "{{.Action}} {{.Actor.ID}}")
    wanted = [line for line in told.splitlines() if line.endswith(name)]
    assert wanted[-2:] == [f"push {name}", f"pull {name}"]
    docker("rmi", "app:1", name)


def test_the_cluster_command_does_the_same(stage: Stage, cluster: Client, docker: Client) -> None:
    """And both commands share their logins."""
    name = f"{PRIVATE}/by-cluster/app:1"
    load(docker, stage)
    docker("tag", "app:1", name)
    assert "no basic auth credentials" in cluster.fails("push", name)
    assert "Login Succeeded" in cluster("login", "-u", USER, "--password-stdin", PRIVATE, stdin=PASSWORD)
    digest = digest_in(cluster("push", name).splitlines()[-1])
    docker("pull", name)
    docker("rmi", "app:1", name)
    told = cluster("pull", name).splitlines()
    assert told[-2:] == [f"Digest: {digest}", f"Status: Downloaded newer image for {name}"]
    assert sum(line.endswith(": Pull complete") for line in told) == 2
    cluster("image", "rm", name)
    assert cluster("run", "--rm", name, "echo", "pulled") == "pulled\n"
    cluster("logout", PRIVATE)
    assert "no basic auth credentials" in docker.fails("pull", name)
    assert "offers no search" in cluster.fails("image", "search", f"{OPEN}/app")
    docker("rmi", name)


PUT = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.stdin.buffer.read(), {"Content-Type": sys.argv[2]}, method="PUT")
print(urllib.request.urlopen(request, timeout=20).headers["Docker-Content-Digest"])
"""


def test_an_index_gives_each_platform_its_own_as_docker_does(stage: Stage, docker: Client, peer: Client) -> None:
    name, kind = f"{OPEN}/platforms/app", "application/vnd.docker.distribution.manifest.list.v2+json"
    entries, ids = [], {}
    for architecture in ("amd64", "arm64"):
        layer = images.tar([(architecture, 0o644, architecture.encode())])
        archive = stage.directory / f"{architecture}.tar"
        made = images.docker_archive(f"{name}:{architecture}", [layer], {"Cmd": ["x"]})
        archive.write_bytes(_for_platform(made, architecture))
        peer("load", "-i", str(archive))
        pushed = peer("push", f"{name}:{architecture}").splitlines()[-1]
        ids[architecture] = peer("image", "inspect", "-f", "{{.Id}}", f"{name}:{architecture}").strip()
        platform = {"os": "linux", "architecture": architecture}
        size = int(pushed.rpartition("size: ")[2])
        media_type = "application/vnd.docker.distribution.manifest.v2+json"
        entries.append({"mediaType": media_type, "digest": digest_in(pushed), "size": size, "platform": platform})
        peer("rmi", f"{name}:{architecture}")
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries})
    put = stage.run(sys.executable, "-c", PUT, f"http://{OPEN}/v2/platforms/app/manifests/all", kind, stdin=index)
    assert put.returncode == 0, put.stderr
    digest = put.stdout.strip()
    for architecture in ("arm64", "amd64"):
        for client in (docker, peer):
            assert f"Digest: {digest}" in client("pull", "--platform", f"linux/{architecture}", f"{name}:all")
            inspected = client("image", "inspect", "-f", "{{.Id}} {{.Architecture}}", f"{name}:all").strip()
            assert inspected == f"{ids[architecture]} {architecture}"
        # Docker 20.10 leaves the digest with the platform that was pulled first.
        assert repo_digests(docker, f"{name}:all") == [f"{name}@{digest}"]
    ours, theirs = (one.json("GET", f"/distribution/{name}:all/json") for one in (stage.covey, stage.dockerd))
    assert ours == theirs
    assert "no matching manifest for linux/s390x" in docker.fails("pull", "--platform", "linux/s390x", f"{name}:all")
    docker("rmi", f"{name}:all")
    peer("rmi", f"{name}:all")


def _for_platform(archive: bytes, architecture: str) -> bytes:
    """The archive's image as of another architecture (its config is named by its digest, and is the only JSON of its kind)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as source, tarfile.open(fileobj=out, mode="w") as target:
        held = {member.name: source.extractfile(member).read() for member in source if member.isfile()}  # type: ignore[union-attr]
        manifest = json.loads(held.pop("manifest.json"))
        config = json.dumps({**json.loads(held.pop(manifest[0]["Config"])), "architecture": architecture}).encode()
        manifest[0]["Config"] = hashlib.sha256(config).hexdigest() + ".json"
        held = {**held, manifest[0]["Config"]: config, "manifest.json": json.dumps(manifest).encode()}
        for path, data in held.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_docker_py_pulls_and_pushes(stage: Stage, docker: Client) -> None:
    sdk = pytest.importorskip("docker").DockerClient(base_url=stage.covey.host)
    repository = f"{PRIVATE}/sdk/app"
    login = {"username": USER, "password": PASSWORD}
    try:
        load(docker, stage)
        assert sdk.images.get("app:1").tag(repository, "1")
        refused = list(sdk.images.push(repository, tag="1", stream=True, decode=True))[-1]
        assert "no basic auth credentials" in refused["errorDetail"]["message"]
        lines = list(sdk.images.push(repository, tag="1", auth_config=login, stream=True, decode=True))
        (aux,) = [line["aux"] for line in lines if "aux" in line]
        assert (aux["Tag"], aux["Digest"][:7]) == ("1", "sha256:")
        image_id = sdk.images.get("app:1").id
        for name in ("app:1", f"{repository}:1"):
            sdk.images.remove(name)
        pulled = sdk.images.pull(repository, tag="1", auth_config=login)
        assert (pulled.id, pulled.tags) == (image_id, [f"{repository}:1"])
        data = sdk.images.get_registry_data(f"{repository}:1", auth_config=login)
        assert (data.id, data.has_platform("linux/amd64")) == (aux["Digest"], images.architecture() == "amd64")
        assert sdk.login(USER, PASSWORD, registry=PRIVATE)["Status"] == "Login Succeeded"
        sdk.images.remove(f"{repository}:1")
    finally:
        sdk.close()
