"""Services of a private image from the unmodified docker command: with --with-registry-auth, without, with a new password."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from covey.testing import images, lab_machine

from . import registries
from .conftest import DOCKERS
from .registries import PASSWORD, PRIVATE, USER, Client, Stage

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

ADDRESS = "198.51.100.201"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    registries.check()
    directory = Path(tempfile.mkdtemp(prefix="covey-test-logins-"))
    stage = Stage(lab_machine.Machine("logins", directory), directory, f"/{directory.name}")
    try:
        stage.start()
        archive = images.docker_archive(
            "app:1", [images.busybox_rootfs_tar()], {"Cmd": ["sleep", "1000"], "StopSignal": "SIGKILL"}
        )
        (directory / "app.tar").write_bytes(archive)
        owner = stage.client(registries.CLUSTER, config=directory / "owner")
        owner("init", "--advertise-addr", ADDRESS)
        owner("image", "load", "-i", str(directory / "app.tar"))
        owner("login", PRIVATE, "-u", USER, "--password-stdin", stdin=PASSWORD)
        yield stage
    finally:
        stage.end()


@pytest.fixture
def docker(stage: Stage, tmp_path: Path) -> Client:
    """The docker command of somebody who is logged in nowhere."""
    return stage.client(DOCKERS["debian"], config=tmp_path / "docker")


@pytest.fixture
def cluster(stage: Stage, tmp_path: Path) -> Client:
    return stage.client(registries.CLUSTER, config=tmp_path / "cluster")


@pytest.fixture
def push(stage: Stage) -> Callable[[str], str]:
    """A private image of a name that the node does not have; its full name."""

    def pushed(name: str) -> str:
        owner = stage.client(registries.CLUSTER, config=stage.directory / "owner")
        full = f"{PRIVATE}/{name}"
        owner("image", "tag", "app:1", full)
        owner("image", "push", full)
        owner("image", "rm", full)
        return full

    return pushed


@pytest.fixture
def service(docker: Client) -> Iterator[str]:
    yield "private"
    docker.run("service", "rm", "private")


def tasks(stage: Stage) -> list[Any]:
    found: list[Any] = json.loads(stage.covey.call("GET", "/v1.44/tasks").text)
    return found


def wait(stage: Stage, wanted: Callable[[list[Any]], bool]) -> list[Any]:
    deadline = time.monotonic() + 40
    while True:
        found = tasks(stage)
        if wanted(found):
            return found
        if time.monotonic() > deadline:
            shown = [(one["DesiredState"], one["Status"]) for one in found]
            pytest.fail(f"not in time; tasks: {shown}; log: {(stage.directory / 'covey.log').read_text()[-1500:]}")
        time.sleep(0.1)


def running(found: list[Any]) -> bool:
    return any(one["Status"]["State"] == "running" and one["DesiredState"] == "running" for one in found)


def errors(found: list[Any]) -> list[str]:
    return [one["Status"].get("Err", "") for one in found if one["Status"]["State"] in ("failed", "rejected")]


def set_password(stage: Stage, password: str) -> None:
    made = subprocess.run(["htpasswd", "-Bbn", USER, password], capture_output=True, text=True, check=True, timeout=20)
    (stage.directory / "passwords").write_text(made.stdout)


def check_secret_is_nowhere(stage: Stage, *secrets: str) -> None:
    for path in ("/services", "/tasks", "/covey/logins", "/covey/statistics"):
        shown = stage.covey.call("GET", f"/v1.44{path}").text
        assert not any(secret in shown for secret in secrets), path
    logs = [stage.directory / "covey.log", *(stage.directory / "covey" / "logs").glob("manager.log")]
    journals = [one for one in (stage.directory / "covey" / "agent").rglob("*") if one.is_file()]
    assert journals
    for file in (*logs, *journals):
        data = file.read_bytes()
        assert not any(secret.encode() in data for secret in secrets), file


def test_without_a_login_it_fails_and_says_what_to_do(
    stage: Stage, docker: Client, push: Callable[[str], str], service: str
) -> None:
    image = push("without:1")
    docker("service", "create", "--detach", "--no-resolve-image", "--name", service, image)
    [error, *_] = errors(wait(stage, lambda found: bool(errors(found))))
    assert "no basic auth credentials" in error
    assert f"`cluster registry login {PRIVATE}`" in error
    assert "--with-registry-auth" in error


def test_with_registry_auth_it_runs_and_an_update_without_keeps_the_login(
    stage: Stage, docker: Client, push: Callable[[str], str], service: str
) -> None:
    image, other = push("with:1"), push("with:2")
    docker("login", "-u", USER, "--password-stdin", PRIVATE, stdin=PASSWORD)
    docker("service", "create", "--detach", "--with-registry-auth", "--name", service, image)
    wait(stage, running)
    docker("logout", PRIVATE)
    docker("service", "update", "--detach", "--no-resolve-image", "--image", other, service)
    wait(stage, lambda found: any(running([one]) and "with:2" in one["Spec"]["ContainerSpec"]["Image"] for one in found))
    check_secret_is_nowhere(stage, PASSWORD)


def test_docker_pys_login_goes_along_with_its_service(stage: Stage, push: Callable[[str], str], service: str) -> None:
    image = push("sdk:1")
    sdk = pytest.importorskip("docker").DockerClient(base_url=stage.covey.host)
    try:
        sdk.login(USER, PASSWORD, registry=PRIVATE)
        sdk.services.create(image, name=service)
        wait(stage, running)
    finally:
        sdk.close()
    check_secret_is_nowhere(stage, PASSWORD)


def test_a_service_is_held_to_the_digest_its_tag_meant(
    stage: Stage, docker: Client, push: Callable[[str], str], service: str
) -> None:
    image = push("held:1")
    docker("login", "-u", USER, "--password-stdin", PRIVATE, stdin=PASSWORD)
    docker("service", "create", "--detach", "--with-registry-auth", "--name", service, image)
    [first] = [one["ID"] for one in wait(stage, running) if running([one])]
    (stage.directory / "other.tar").write_bytes(images.docker_archive("other:1", [images.busybox_rootfs_tar({"other": b""})]))
    owner = stage.client(registries.CLUSTER, config=stage.directory / "owner")
    owner("image", "load", "-i", str(stage.directory / "other.tar"))
    owner("image", "tag", "other:1", image)
    owner("image", "push", image)
    owner("image", "rm", image)
    docker("service", "update", "--detach", "--force", service)
    found = wait(stage, lambda tasks: any(running([one]) and one["ID"] != first for one in tasks))
    [container] = [one["Status"]["ContainerStatus"]["ContainerID"] for one in found if running([one]) and one["ID"] != first]
    made_of = json.loads(stage.covey.call("GET", f"/v1.44/containers/{container}/json").text)["Image"]
    meant = json.loads(stage.covey.call("GET", "/v1.44/images/app:1/json").text)["Id"]
    assert made_of == meant


def test_a_rotated_password_is_used_by_the_next_pull_and_no_service_is_touched(
    stage: Stage, docker: Client, cluster: Client, push: Callable[[str], str], service: str
) -> None:
    image = push("rotated:1")
    docker("login", "-u", USER, "--password-stdin", PRIVATE, stdin=PASSWORD)
    set_password(stage, "rotated horse")
    try:
        docker("service", "create", "--detach", "--no-resolve-image", "--with-registry-auth", "--name", service, image)
        [error, *_] = errors(wait(stage, lambda found: bool(errors(found))))
        assert f"none of 1 logins of the cluster to {PRIVATE} will do" in error
        version = docker("service", "inspect", "-f", "{{.Version.Index}}", service)
        assert "unauthorized" in cluster.fails("registry", "login", PRIVATE, "-u", USER, "--password-stdin", stdin=PASSWORD)
        cluster("registry", "login", PRIVATE, "-u", USER, "--password-stdin", stdin="rotated horse")
        wait(stage, running)
        assert docker("service", "inspect", "-f", "{{.Version.Index}}", service) == version
        listed = cluster("registry", "ls")
        assert [line.split()[:3] for line in listed.splitlines()[1:]] == [[PRIVATE, USER, "password"]] * 2
        check_secret_is_nowhere(stage, PASSWORD, "rotated horse")
    finally:
        set_password(stage, PASSWORD)
        cluster.run("registry", "logout", PRIVATE)


def test_a_stack_with_registry_auth(
    stage: Stage, docker: Client, cluster: Client, push: Callable[[str], str], tmp_path: Path
) -> None:
    for name, client in (("docker", docker), ("cluster", cluster)):
        image = push(f"stack-{name}:1")
        file = tmp_path / f"{name}.yml"
        file.write_text(json.dumps({"version": "3.8", "services": {"one": {"image": image}}}))
        client("login", "-u", USER, "--password-stdin", PRIVATE, stdin=PASSWORD)
        client("stack", "deploy", "--with-registry-auth", "-c", str(file), "private")
        try:
            (task, *_) = wait(stage, running)
            held = task["Spec"]["ContainerSpec"]["Image"]
            assert held.startswith(f"{image}@sha256:")
            client("stack", "deploy", "--resolve-image", "changed", "-c", str(file), "private")
            (service,) = json.loads(stage.covey.call("GET", "/v1.44/services").text)
            assert service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == held
            assert len(tasks(stage)) == 1, f"{name} replaced: {tasks(stage)}"
        finally:
            client.run("stack", "rm", "private")
        wait(stage, lambda found: not found)
