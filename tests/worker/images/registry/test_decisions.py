"""The registry client's pure parts: endpoints, challenges, pauses, credentials as they are written down."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey import credentials
from covey.credentials import Credentials
from covey.errors import CoveyError, InvalidArgument
from worker.images import progress
from worker.images.registry import challenge, endpoints, errors, inquiries, retry
from worker.images.registry.endpoints import RegistryOptions, Timing

INSECURE = RegistryOptions(insecure=("lab.example", "reg.example:5000", "10.1.0.0/16"), mirrors=("http://mirror.example/",))


@pytest.mark.parametrize(
    ("domain", "pushing", "expected"),
    [
        ("docker.io", False, ["http://mirror.example", "https://registry-1.docker.io"]),
        ("docker.io", True, ["https://registry-1.docker.io"]),
        ("quay.example", False, ["https://quay.example"]),
        ("localhost", False, ["https://localhost", "http://localhost"]),
        ("localhost:5000", False, ["https://localhost:5000", "http://localhost:5000"]),
        ("127.9.9.9:5000", False, ["https://127.9.9.9:5000", "http://127.9.9.9:5000"]),
        ("[::1]:5000", False, ["https://[::1]:5000", "http://[::1]:5000"]),
        ("localhost.example", False, ["https://localhost.example"]),
        ("127.0.0.1.example", False, ["https://127.0.0.1.example"]),
        ("128.0.0.1", False, ["https://128.0.0.1"]),
        ("lab.example:99", False, ["https://lab.example:99", "http://lab.example:99"]),
        ("reg.example:5000", False, ["https://reg.example:5000", "http://reg.example:5000"]),
        ("reg.example:5001", False, ["https://reg.example:5001"]),
        ("10.1.2.3:5000", False, ["https://10.1.2.3:5000", "http://10.1.2.3:5000"]),
        ("10.2.2.3:5000", False, ["https://10.2.2.3:5000"]),
    ],
)
def test_where_a_registry_is_reached(domain: str, pushing: bool, expected: list[str]) -> None:
    assert [one.base for one in endpoints.candidates(domain, INSECURE, pushing=pushing)] == expected


@pytest.mark.parametrize("domain", ["quay.example", "docker.io", "localhost.example"])
def test_certificates_are_verified_unless_said_otherwise(domain: str) -> None:
    assert all(one.verified for one in endpoints.candidates(domain, INSECURE) if not one.mirror)


@pytest.mark.parametrize(
    "options",
    [
        RegistryOptions(mirrors=("mirror.example",)),
        RegistryOptions(mirrors=("ftp://mirror.example",)),
        RegistryOptions(mirrors=("https://mirror.example/path",)),
        RegistryOptions(mirrors=("https://u:p@mirror.example",)),
        RegistryOptions(insecure=("http://reg.example",)),
        RegistryOptions(downloads=0),
        RegistryOptions(uploads=-1),
    ],
)
def test_options_that_cannot_be_are_refused(options: RegistryOptions) -> None:
    with pytest.raises(InvalidArgument, match="--"):
        endpoints.check(options)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (['Basic realm="a b"'], [("basic", {"realm": "a b"})]),
        (['Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"'],
         [("bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"})]),
        (['BEARER Realm = "x" , Service=y'], [("bearer", {"realm": "x", "service": "y"})]),
        (['Basic realm="a", Bearer realm="b"'], [("basic", {"realm": "a"}), ("bearer", {"realm": "b"})]),
        (['Basic realm="a"', 'Bearer realm="b"'], [("basic", {"realm": "a"}), ("bearer", {"realm": "b"})]),
        (['Basic realm="say \\"hi\\", x=y"'], [("basic", {"realm": 'say "hi", x=y'})]),
        (["Negotiate YWJj==, Basic realm=r"], [("negotiate", {}), ("basic", {"realm": "r"})]),
        (['Bearer realm="first",realm="second"'], [("bearer", {"realm": "first"})]),
        (['Bearer realm="open'], [("bearer", {})]),
        (["Negotiate"], [("negotiate", {})]),
        ([""], []),
        ([], []),
        (['="x"'], []),
    ],
)  # fmt: skip
def test_challenges(fields: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(one.scheme, dict(one.parameters)) for one in challenge.parse(fields)] == expected


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='Bearer basic=",\\ \t/:;', max_size=200))
def test_whatever_stands_there_is_parsed_in_no_time(text: str) -> None:
    challenge.parse([text])


def test_a_challenge_of_a_thousand_commas_costs_nothing() -> None:
    challenge.parse(["," * 100_000, "Bearer " + 'a="b",' * 20_000, 'Bearer a="' + "\\" * 100_000])


def test_pauses_double_and_have_an_end() -> None:
    timing = Timing(backoff=1.0, longest_wait=30.0)
    assert [retry.delay(attempt, timing, 0.5) for attempt in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 8.0]
    assert (retry.delay(1, timing, 0.0), retry.delay(1, timing, 0.99)) == (0.5, 1.49)
    assert retry.delay(1, timing, 0.5, 7.0) == 7.0
    assert retry.delay(1, timing, 0.5, 3600.0) == 30.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [("120", 120.0), ("Fri, 27 Nov 2026 00:01:00 GMT", 60.0), ("Thu, 26 Nov 2026 00:00:00 GMT", 0.0),
     ("soon", None), ("", None), (None, None), ("9" * 400, None), ("-5", None)],
)  # fmt: skip
def test_retry_after(value: str | None, expected: float | None) -> None:
    now = 1795737600.0  # 2026-11-27 00:00:00 UTC
    assert retry.retry_after(value, now) == expected


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        (b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}', 404, "manifest unknown: manifest unknown"),
        (b'{"details":"incorrect username or password"}', 401, "unauthorized: incorrect username or password"),
        (b"<html>", 502, "unknown: place answered with status 502"),
        (b'{"errors":[]}', 403, "denied: place answered with status 403"),
        (b'{"errors":[7]}', 404, "not found: place answered with status 404"),
        (b"", 429, "toomanyrequests: place answered with status 429"),
    ],
)
def test_what_a_registry_said(body: bytes, status: int, expected: str) -> None:
    assert errors.refusal(status, body, None, "place").message == expected


def header(document: object, encode=base64.urlsafe_b64encode) -> str:  # type: ignore[no-untyped-def]
    return encode(json.dumps(document).encode()).decode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", Credentials()),
        (header({}), Credentials()),
        (header(None), Credentials()),
        (header({"username": "u", "password": "p", "serveraddress": "s"}), Credentials("u", "p", server="s")),
        (header({"username": "u", "password": "\u00fc?>" * 9}).rstrip("="), Credentials("u", "\u00fc?>" * 9)),
        (header({"username": "u", "password": "\u00fc?>" * 9}, base64.b64encode), Credentials("u", "\u00fc?>" * 9)),
        (header({"identitytoken": "i"}), Credentials(identity_token="i")),
        (header({"registrytoken": "r"}), Credentials(registry_token="r")),
        (header({"auth": base64.b64encode(b"u:p:q").decode()}), Credentials("u", "p:q")),
        (header({"username": None, "email": "x"}), Credentials()),
    ],
)
def test_the_header_that_carries_a_login(value: str, expected: Credentials) -> None:
    assert credentials.from_header(value) == expected


@pytest.mark.parametrize("value", ["%%%", "YQ==", header([]), header({"username": 7}), header({"password": "a\nb"}), "\u00fc"])
def test_a_header_that_cannot_be_read_is_refused(value: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        credentials.from_header(value)
    assert "a\nb" not in refused.value.message


def test_a_login_survives_its_header() -> None:
    one = Credentials("u", "p", "i", "r", "s")
    assert credentials.from_header(one.to_header()) == one


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    auth = base64.b64encode(b"ann:secret").decode()
    auths = {
        "https://index.docker.io/v1/": {"auth": auth},
        "https://old.example/v2/": {"auth": auth},
        "reg.example:5000": {"auth": auth, "identitytoken": "kept"},
        "empty.example": {},
    }
    path.write_text(json.dumps({"auths": auths, "credHelpers": {"helped.example": "test-covey"}}))
    return path


def test_a_file_of_dockers_is_read(config: Path) -> None:
    assert credentials.lookup(config, "docker.io") == Credentials("ann", "secret", server=credentials.HUB_KEY)
    assert credentials.lookup(config, "old.example") == Credentials("ann", "secret", server="old.example")
    assert credentials.lookup(config, "reg.example:5000") == Credentials("ann", "secret", "kept", server="reg.example:5000")
    assert not credentials.lookup(config, "reg.example")
    assert not credentials.lookup(config, "empty.example")
    assert not credentials.lookup(config, "example")
    assert not credentials.lookup(config.with_name("none"), "docker.io")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            'read s; echo "{\\"ServerURL\\":\\"$s\\",\\"Username\\":\\"u\\",\\"Secret\\":\\"for $s\\"}"',
            ("u", "for helped.example", ""),
        ),
        ('echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"kept\\"}"', ("", "", "kept")),
        ("echo credentials not found in native keychain; exit 1", ("", "", "")),
    ],
)
def test_a_helper_is_asked(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: tuple[str, str, str]
) -> None:
    helper = tmp_path / "docker-credential-test-covey"
    helper.write_text(f'#!/bin/sh\n[ "$1" = get ] || exit 3\n{script}\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = credentials.lookup(config, "helped.example")
    assert (found.username, found.password, found.identity_token) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"credsStore": "../../bin/sh"}', "is no program's name"),
        ('{"credsStore": "none-such-covey"}', "docker-credential-none-such-covey is not on PATH"),
        ('{"auths": {"x.example": {"auth": "%%"}}}', "is not base64 of user:password"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=words):
        credentials.lookup(path, "x.example")


@pytest.mark.parametrize(
    ("server", "expected"),
    [("", "docker.io"), ("https://index.docker.io/v1/", "docker.io"), ("docker.io", "docker.io"),
     ("reg.example:5000", "reg.example:5000"), ("https://reg.example/v2/", "reg.example"), ("[::1]:5000", "[::1]:5000")],
)  # fmt: skip
def test_which_registry_a_login_is_for(server: str, expected: str) -> None:
    assert inquiries.domain_of(server) == expected


@pytest.mark.parametrize("server", ["user@host", "///", "https://u:p@h"])
def test_a_login_for_nowhere_is_refused(server: str) -> None:
    with pytest.raises(CoveyError):
        inquiries.domain_of(server)


def test_bars() -> None:
    assert progress.bar(0, 1_000_000) == f"[{'>'.ljust(50)}]  0B/1MB"
    assert progress.bar(1_234_567, 2_469_134) == f"[{('=' * 25 + '>').ljust(50)}]  1.235MB/2.469MB"
    assert progress.bar(5, 5) == f"[{'=' * 50}]  5B/5B"
    assert progress.bar(0, 0) == f"[{'=' * 50}]  0B/0B"
