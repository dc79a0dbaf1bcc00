"""``cluster pull``, ``push``, ``search``, ``login``, ``logout`` against a scripted daemon, with files as docker keeps them."""

import base64
import io
import json
import stat

import pytest

from cli.progress import Display
from cli.transfer import Transfer
from covey import credentials
from covey.engine_api.answers import Stream
from covey.engine_api.framing import error_line, line
from covey.errors import Internal, NotFound, Unauthorized


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path / "docker" / "config.json"


def streamed(*messages):
    async def lines():
        for message in messages:
            yield message if isinstance(message, bytes) else line(message)

    return Stream(lines())


def step(name, text, current=0, total=0):
    detail = {"current": current, "total": total} if total else {}
    return {"id": name, "status": text, "progressDetail": detail}


class Registry:
    """Remembers the login that came with each call."""

    def __init__(self, daemon):
        self.logins = []
        self.told = [
            {"id": "latest", "status": "Pulling from app"},
            step("aaa", "Pulling fs layer"),
            step("aaa", "Downloading", 5, 10),
            step("aaa", "Pull complete"),
            {"status": "Digest: sha256:1"},
        ]
        daemon.handlers.update(image_create=self.stream, image_push=self.stream, system_auth=self.auth)

    def stream(self, call):
        self.logins.append(credentials.from_header(call.headers.get("X-Registry-Auth", "")))
        return streamed(*self.told)

    def auth(self, call, body):
        if body.get("password") == "wrong":
            raise Unauthorized("unauthorized: no")
        return {"Status": "Login Succeeded", "IdentityToken": "kept" if body.get("username") == "tokens" else ""}


@pytest.fixture
def registry(daemon, config):
    return Registry(daemon)


def test_a_pull_shows_a_line_a_step(daemon, registry, cluster):
    done = cluster("image", "pull", "reg.example:5000/app")
    assert done.status == 0, done.err
    assert done.out.splitlines() == [
        "latest: Pulling from app", "aaa: Pulling fs layer", "aaa: Pull complete", "Digest: sha256:1",
    ]  # fmt: skip
    name, _, query, _ = daemon.calls[-1]
    assert (name, query["fromImage"], query["tag"]) == ("image_create", "reg.example:5000/app", "latest")


@pytest.mark.parametrize(
    ("words", "query"),
    [
        (["pull", "app:1"], {"fromImage": "app", "tag": "1"}),
        (["pull", "-a", "app"], {"fromImage": "app", "tag": ""}),
        (
            ["image", "pull", "--platform", "linux/arm64", "app"],
            {"fromImage": "app", "tag": "latest", "platform": "linux/arm64"},
        ),
        (["pull", "app@sha256:" + "a" * 64], {"fromImage": "app@sha256:" + "a" * 64, "tag": ""}),
        (["push", "reg.example/app:1"], {"tag": "1"}),
        (["push", "reg.example/app"], {"tag": "latest"}),
        (["image", "push", "-a", "reg.example/app"], {}),
    ],
)
def test_what_is_asked(daemon, registry, cluster, words, query):
    assert cluster(*words).status == 0
    assert daemon.calls[-1][2] == query


def test_quiet_says_the_name_only(registry, cluster):
    assert cluster("pull", "-q", "app:1").out == "app:1\n"


@pytest.mark.parametrize("verb", ["pull", "push"])
def test_a_tag_and_all_tags_is_refused(registry, cluster, verb):
    assert "cannot be used with --all-tags" in cluster(verb, "-a", "app:1").err


def test_what_goes_wrong_in_the_middle_is_the_status(registry, cluster):
    registry.told.append(error_line("unexpected EOF"))
    done = cluster("pull", "app")
    assert (done.status, done.err) == (1, "cluster: unexpected EOF\n")


def test_the_login_of_the_image_s_registry_goes_along(registry, cluster, config):
    config.parent.mkdir()
    entry = {"auth": base64.b64encode(b"ann:secret").decode()}
    config.write_text(
        json.dumps({"auths": {"reg.example:5000": entry, "https://index.docker.io/v1/": {**entry, "identitytoken": "i"}}})
    )
    for name in ("reg.example:5000/app", "other.example/app", "app", "reg.example:5000/app:1"):
        cluster("pull", name)
    assert [bool(login) for login in registry.logins] == [True, False, True, True]
    assert (registry.logins[0].username, registry.logins[0].password) == ("ann", "secret")
    assert registry.logins[2].identity_token == "i"


def login(cluster, monkeypatch, *words, password="secret"):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{password}\n"))
    return cluster("login", "--password-stdin", *words)


def test_a_login_is_kept_as_docker_keeps_it(registry, cluster, config, monkeypatch):
    config.parent.mkdir()
    config.write_text(json.dumps({"detachKeys": "ctrl-x", "auths": {"other.example": {"auth": "eDp5"}}}))
    done = login(cluster, monkeypatch, "-u", "ann", "reg.example:5000")
    assert (done.status, done.out) == (0, "Login Succeeded\n")
    assert "kept unencrypted" in done.err
    kept = json.loads(config.read_text())
    assert kept["detachKeys"] == "ctrl-x"
    assert kept["auths"] == {
        "other.example": {"auth": "eDp5"},
        "reg.example:5000": {"auth": base64.b64encode(b"ann:secret").decode()},
    }
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert list(config.parent.iterdir()) == [config]
    assert cluster("logout", "reg.example:5000").out == "Removing login credentials for reg.example:5000\n"
    assert json.loads(config.read_text())["auths"] == {"other.example": {"auth": "eDp5"}}
    assert cluster("logout", "reg.example:5000").out == "Not logged in to reg.example:5000\n"


def test_an_identity_token_is_kept_in_the_password_s_place(registry, cluster, config, monkeypatch):
    login(cluster, monkeypatch, "-u", "tokens")
    entry = json.loads(config.read_text())["auths"]["https://index.docker.io/v1/"]
    assert entry == {"auth": base64.b64encode(b"tokens:").decode(), "identitytoken": "kept"}
    assert credentials.lookup(config, "docker.io").identity_token == "kept"


def test_a_refused_login_changes_nothing(registry, cluster, config, monkeypatch):
    done = login(cluster, monkeypatch, "-u", "ann", "reg.example", password="wrong")
    assert (done.status, done.err) == (1, "cluster: unauthorized: no\n")
    assert not config.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reg.example"], "without a terminal"),
        (["--password-stdin", "reg.example"], "needs --username"),
        (["-u", "a", "-p", "b", "--password-stdin"], "mutually exclusive"),
        (["-u", "a", "-p", "b", "user@host"], "is no registry"),
    ],
)
def test_a_login_that_cannot_be_is_refused(registry, cluster, monkeypatch, words, said):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    done = cluster("login", *words)
    assert done.status == 1
    assert said in done.err


def test_a_helper_keeps_the_login(registry, cluster, config, monkeypatch, tmp_path):
    config.parent.mkdir()
    config.write_text(json.dumps({"credsStore": "test-covey"}))
    helper = tmp_path / "docker-credential-test-covey"
    helper.write_text(f'#!/bin/sh\necho "$1" >>{tmp_path}/asked\ncat >>{tmp_path}/asked\necho >>{tmp_path}/asked\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert login(cluster, monkeypatch, "-u", "ann", "reg.example").status == 0
    cluster("logout", "reg.example")
    assert (tmp_path / "asked").read_text().split("\n")[:4] == [
        "store", '{"ServerURL": "reg.example", "Username": "ann", "Secret": "secret"}', "erase", "reg.example",
    ]  # fmt: skip
    assert json.loads(config.read_text()) == {"credsStore": "test-covey"}


def test_search(daemon, cluster):
    found = [
        {"name": "small", "description": "x" * 60, "star_count": 1, "is_official": False},
        {"name": "large", "description": "d", "star_count": 9, "is_official": True},
    ]
    daemon.handlers["image_search"] = lambda call: found
    lines = cluster("image", "search", "--limit", "5", "reg.example/x").out.splitlines()
    assert lines[0].split() == ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"]
    assert lines[1].split() == ["large", "d", "9", "[OK]"]
    assert "…" in lines[2]
    assert daemon.calls[-1][2] == {"term": "reg.example/x", "limit": "5"}
    daemon.handlers["image_search"] = _nothing_to_search
    assert cluster("image", "search", "reg.example/x").err == "cluster: registry reg.example offers no search\n"


def _nothing_to_search(call):
    raise NotFound("registry reg.example offers no search")


DIGEST = "sha256:" + "d" * 64


@pytest.mark.parametrize(
    ("image", "flags", "expected"),
    [
        ("reg.example/app", [], f"reg.example/app:latest@{DIGEST}"),
        ("reg.example:5000/app:1", [], f"reg.example:5000/app:1@{DIGEST}"),
        ("reg.example/app:1", ["--no-resolve-image"], "reg.example/app:1"),
        (f"app@{DIGEST}", [], f"app@{DIGEST}"),
        ("gone", [], "gone"),
    ],
)
def test_a_service_is_held_to_what_its_image_is_now(daemon, config, cluster, image, flags, expected):
    specs = []

    def describe(call):
        if call.params["name"].startswith("gone"):
            raise NotFound("manifest unknown")
        return {"Descriptor": {"digest": DIGEST}, "Platforms": [{"architecture": "arm64", "os": "linux"}]}

    def create(call, body):
        specs.append(body)
        return {"ID": "s1"}

    daemon.handlers.update(
        distribution_inspect=describe,
        service_create=create,
        system_info=lambda call: {"Swarm": {"NodeID": "n1", "ControlAvailable": True, "LocalNodeState": "active"}},
        node_list=lambda call: [],
    )
    done = cluster("service", "create", "-d", *flags, image)
    assert done.status == 0, done.err
    template = specs[0]["TaskTemplate"]
    assert template["ContainerSpec"]["Image"] == expected
    if expected != image:
        assert template["Placement"]["Platforms"] == [{"Architecture": "arm64", "OS": "linux"}]
    assert ("could not be accessed on a registry" in done.err) == (image == "gone")


def test_a_terminal_sees_bars_and_their_sum():
    at = iter(range(100))
    transfer = Transfer(Display(live=True), now=lambda: float(next(at)), live=True)
    for message in (
        step("aaa", "Pulling fs layer"),
        step("bbb", "Already exists"),
        step("ccc", "Waiting"),
        step("aaa", "Downloading", 5_000_000, 10_000_000),
    ):
        transfer.take(message)
    lines = transfer.picture()
    assert lines[0] == f"  aaa  Downloading  {'█' * 12}{'░' * 12}  5MB / 10MB"
    assert lines[1] == "  ccc  Waiting"
    assert lines[2].startswith("1 of 3 layers, 5MB of 10MB, ")
    assert lines[2].endswith(" s left")
    transfer.take(step("aaa", "Pull complete"))
    assert transfer.picture()[-1].startswith("2 of 3 layers, 10MB of 10MB")
    with pytest.raises(Internal, match="broken"):
        transfer.take({"error": "broken"})


def test_more_layers_than_lines_are_counted(monkeypatch):
    monkeypatch.setenv("LINES", "10")
    transfer = Transfer(Display(quiet=True), now=lambda: 0.0, live=False)
    for number in range(30):
        transfer.take(step(f"layer{number}", "Waiting"))
    lines = transfer.picture()
    assert len(lines) == 8
    assert lines[-2] == "  and 24 more"
