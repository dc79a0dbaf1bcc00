"""Who somebody is to a registry, and where that is written: the API's header, Docker's config.json, credential helpers.

Decides how each is read and which entry of a file is a registry's. Standard library only and synchronous: the command
line reads the same files as a daemon. Knows no connection; where credentials may be sent is worker.images.registry's.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covey.errors import InvalidArgument

HUB_KEY = "https://index.docker.io/v1/"
"""What Docker Hub is called where credentials are kept."""

HUB_DOMAIN = "docker.io"
TOKEN_USER = "<token>"
HELPER_SECONDS = 30.0
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """One login. ``identity_token`` is exchanged for access tokens, ``registry_token`` is one; both stand for a password."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    server: str = ""

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token or self.registry_token)

    def to_api(self) -> dict[str, str]:
        """As the Engine API's AuthConfig."""
        fields = {
            "username": self.username,
            "password": self.password,
            "identitytoken": self.identity_token,
            "registrytoken": self.registry_token,
            "serveraddress": self.server,
        }
        return {name: value for name, value in fields.items() if value}

    def to_header(self) -> str:
        """The value of ``X-Registry-Auth``."""
        return base64.urlsafe_b64encode(json.dumps(self.to_api()).encode()).decode()


ANONYMOUS = Credentials()


def from_header(value: str) -> Credentials:
    """What ``X-Registry-Auth`` holds; ANONYMOUS for nothing. InvalidArgument for what cannot be read."""
    if not value.strip():
        return ANONYMOUS
    try:
        # Clients differ in alphabet and padding.
        text = value.strip().replace("+", "-").replace("/", "_").rstrip("=")
        document = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, RecursionError):
        raise InvalidArgument("invalid X-Registry-Auth header: not base64url of JSON; log in again") from None
    return from_api(document if document is not None else {}, "X-Registry-Auth header")


def from_api(document: Any, where: str = "auth configuration") -> Credentials:
    """Credentials of an AuthConfig object. InvalidArgument that names no secret when it is malformed."""
    names = ("username", "password", "identitytoken", "registrytoken", "serveraddress")
    if not isinstance(document, dict):
        raise InvalidArgument(f"invalid {where}: not a JSON object")
    values = [document.get(name) or "" for name in names]
    for name, value in zip(names, values):
        if not isinstance(value, str) or any(ord(letter) < 32 for letter in value):
            raise InvalidArgument(f"invalid {where}: {name} is not text")
    username, password, *rest = values
    if document.get("auth") and not username:
        username, password = _decoded(document["auth"], where)
    return Credentials(username, password, *rest)


def server_key(domain: str) -> str:
    """Under which key Docker's files and helpers keep what ``domain``, a reference's domain, wants."""
    return HUB_KEY if domain in _HUB_NAMES else domain


def host_of(server: str) -> str:
    """A reference's domain of a registry as people, files and clients write it (host or URL); "" for none."""
    host = _plain_host(server)
    return HUB_DOMAIN if host in _HUB_NAMES else host


def domain_of(name: str) -> str:
    """The registry an image's name is of, as a person writes the name."""
    first, slash, _ = name.partition("/")
    named = slash and ("." in first or ":" in first or first == "localhost")
    return first if named else HUB_DOMAIN


def default_path(environ: Mapping[str, str] | None = None) -> Path:
    """Docker's config.json of whoever runs this."""
    environ = os.environ if environ is None else environ
    folder = environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path(environ.get("HOME") or Path.home()) / ".docker") / "config.json"


def read_config(path: Path) -> dict[str, Any]:
    """The whole document; empty when there is no file. InvalidArgument names a damaged one."""
    try:
        document = json.loads(path.read_bytes() or b"{}")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InvalidArgument(f"{path} is not JSON: repair it or move it away") from None
    if not isinstance(document, dict):
        raise InvalidArgument(f"{path} is not a JSON object: repair it or move it away")
    return document


def helper_of(document: Mapping[str, Any], key: str) -> str:
    """The helper that keeps ``key``'s credentials, "" for the file itself."""
    helpers = document.get("credHelpers")
    name = helpers.get(key) if isinstance(helpers, dict) else None
    name = name or document.get("credsStore") or ""
    if not isinstance(name, str) or (name and not _HELPER.fullmatch(name)):
        raise InvalidArgument(f"credential helper {name!r:.60} is no program's name: correct credHelpers or credsStore")
    return name


def lookup(path: Path, domain: str) -> Credentials:
    """What the file at ``path``, or the helper it names, has for a registry; ANONYMOUS when nothing."""
    document, key = read_config(path), server_key(domain)
    if helper := helper_of(document, key):
        found = ask_helper(helper, "get", key)
        return _from_helper(found, key) if found else ANONYMOUS
    auths = document.get("auths")
    return of_server(auths if isinstance(auths, dict) else {}, domain, str(path))


def of_server(entries: Mapping[str, Any], domain: str, where: str) -> Credentials:
    """A registry's entry of many, as a file's ``auths`` and the header ``X-Registry-Config`` have them; else ANONYMOUS."""
    key = server_key(domain)
    for name in (key, *entries):
        if name in entries and _plain_host(name) == _plain_host(key) and isinstance(entries[name], dict):
            return from_api({**entries[name], "serveraddress": key}, f"entry {name} of {where}")
    return ANONYMOUS


def ask_helper(name: str, verb: str, text: str) -> dict[str, Any] | None:
    """Runs ``docker-credential-NAME VERB`` with ``text`` on its stdin; what it answers, None when it has nothing."""
    import subprocess

    program = f"docker-credential-{name}"
    try:
        done = subprocess.run([program, verb], input=text.encode(), capture_output=True, timeout=HELPER_SECONDS, check=False)
    except FileNotFoundError:
        raise InvalidArgument(f"credential helper {program} is not on PATH: install it or correct config.json") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidArgument(f"credential helper {program}: {error}") from None
    if done.returncode:
        said = (done.stdout or done.stderr).decode(errors="replace").strip()[:200]
        if "credentials not found" in said:
            return None
        raise InvalidArgument(f"credential helper {program} {verb}: {said or f'ended with {done.returncode}'}")
    if verb != "get":
        return None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise InvalidArgument(f"credential helper {program} did not answer with JSON") from None
    return answer if isinstance(answer, dict) else None


def _from_helper(found: Mapping[str, Any], key: str) -> Credentials:
    username, secret = str(found.get("Username") or ""), str(found.get("Secret") or "")
    if username == TOKEN_USER:
        return Credentials(identity_token=secret, server=key)
    return Credentials(username, secret, server=key)


def _plain_host(key: str) -> str:
    """Files hold hosts, and URLs of hosts from older days."""
    host = key.partition("://")[2] or key
    return host.partition("/")[0].lower()


def _decoded(auth: Any, where: str) -> tuple[str, str]:
    try:
        username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
    except (ValueError, TypeError, binascii.Error):
        raise InvalidArgument(f"invalid {where}: auth is not base64 of user:password") from None
    if not colon:
        raise InvalidArgument(f"invalid {where}: auth is not base64 of user:password")
    return username, password.rstrip("\0")
