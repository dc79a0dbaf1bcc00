"""``cluster login``, ``logout``, and the login a command sends along: kept where the docker command keeps its own.

It decides what is written to Docker's config.json and what is given to a credential helper; reading both is
covey.credentials'. What a registry says of a login, the daemon asks.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.connection import client
from cli.output import clean, warn
from covey import credentials
from covey.credentials import Credentials
from covey.errors import CoveyError, InvalidArgument

app = typer.Typer()

Server = Annotated[str, typer.Argument(metavar="[SERVER]", show_default=False)]


def auth_header(name: str) -> dict[str, str]:
    """What is sent along for ``name``'s registry; nothing where nobody is logged in."""
    found = credentials.lookup(credentials.default_path(), credentials.domain_of(name))
    return {"X-Registry-Auth": found.to_header() if found else "e30="}


def image_login(spec: Mapping[str, Any]) -> dict[str, str]:
    """What is sent along with a service's spec, for nodes to pull its image with."""
    container = (spec.get("TaskTemplate") or {}).get("ContainerSpec") or {}
    return auth_header(str(container.get("Image") or ""))


def _key(server: str) -> str:
    """Under which key ``server``, as a person writes it, is kept."""
    if not server:
        return credentials.HUB_KEY
    host = server.partition("://")[2] or server
    host = host.partition("/")[0]
    if not host or "@" in host or any(letter.isspace() for letter in host):
        raise InvalidArgument(f"{server!r} is no registry: give host[:port]")
    return credentials.server_key(host)


@app.command("login")
def login(
    server: Server = "",
    username: Annotated[str | None, typer.Option("--username", "-u", show_default=False)] = None,
    password: Annotated[
        str | None, typer.Option("--password", "-p", help="Seen by others: rather use --password-stdin")
    ] = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin")] = False,
) -> None:
    """Log in to a registry; Docker Hub unless one is named."""
    key = _key(server)
    path = credentials.default_path()
    if password is not None:
        warn("a password on the command line is seen by other users of this machine: use --password-stdin")
    if username is None and password is None and not password_stdin:
        known = credentials.lookup(path, key.partition("://")[2].partition("/")[0] or key)
        if known and _accepted(known, key, path):
            return
    given = asked(username, password, password_stdin)
    if not _accepted(Credentials(*given, server=key), key, path, final=True):
        raise typer.Exit(1)


def asked(username: str | None, password: str | None, from_stdin: bool) -> tuple[str, str]:
    """User name and password, from a person or from stdin as far as they were not given."""
    if from_stdin:
        if password is not None:
            raise InvalidArgument("--password and --password-stdin are mutually exclusive")
        if not username:
            raise InvalidArgument("--password-stdin needs --username")
        return username, sys.stdin.read().rstrip("\r\n")
    if (username is None or password is None) and not sys.stdin.isatty():
        raise InvalidArgument("cannot ask for a login without a terminal: give --username and --password-stdin")
    import getpass

    username = username or input("Username: ").strip()
    password = password if password is not None else getpass.getpass("Password: ")
    if not username or not password:
        raise InvalidArgument("a user name and a password are required")
    return username, password


def _accepted(given: Credentials, key: str, path: Path, final: bool = False) -> bool:
    """Asks the registry and keeps the login if it is taken. ``final``: a refusal is the end, else there is another way."""
    try:
        with client() as api:
            answer = api.post("/auth", json={**given.to_api(), "serveraddress": key}) or {}
    except CoveyError as error:
        if final or error.status != 401:
            raise
        return False
    token = str(answer.get("IdentityToken") or "")
    if given.username:
        _keep(path, key, given.username, given.password, token)
    print(clean(str(answer.get("Status") or "Login Succeeded")))
    return True


def _keep(path: Path, key: str, username: str, password: str, token: str) -> None:
    document = credentials.read_config(path)
    if helper := credentials.helper_of(document, key):
        user, secret = (credentials.TOKEN_USER, token) if token else (username, password)
        credentials.ask_helper(helper, "store", json.dumps({"ServerURL": key, "Username": user, "Secret": secret}))
        return
    pair = f"{username}:{'' if token else password}"
    entry = {"auth": base64.b64encode(pair.encode()).decode(), **({"identitytoken": token} if token else {})}
    auths = document.get("auths")
    _write(path, {**document, "auths": {**(auths if isinstance(auths, dict) else {}), key: entry}})
    warn(f"the password is kept unencrypted in {path}; a credential helper (credsStore) keeps it better")


def _write(path: Path, document: dict[str, Any]) -> None:
    """Replaces the file atomically; nobody else may read it."""
    import tempfile

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(document, file, indent="\t")
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path.resolve())
    except BaseException:
        os.unlink(name)
        raise


@app.command("logout")
def logout(server: Server = "") -> None:
    """Forget the login to a registry; Docker Hub unless one is named."""
    key = _key(server)
    path = credentials.default_path()
    document = credentials.read_config(path)
    auths = document.get("auths")
    entries = dict(auths) if isinstance(auths, dict) else {}
    names = [name for name in entries if _key(name) == key]
    if helper := credentials.helper_of(document, key):
        credentials.ask_helper(helper, "erase", key)
    elif not names:
        print(f"Not logged in to {key}")
        return
    if names:
        _write(path, {**document, "auths": {name: entry for name, entry in entries.items() if name not in names}})
    print(f"Removing login credentials for {key}")
