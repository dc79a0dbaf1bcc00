"""What can go wrong between us and a registry, as errors that name the registry and say what it said.

Decides which failures are worth another attempt. How Docker words them for a pull or a push is worker.images.pull's and
push's.
"""

from __future__ import annotations

import errno
import json
import os
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp

from covey.errors import Internal
from worker.images.registry.challenge import Challenge

BODY_LIMIT = 64 * 1024
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_CODES = {401: "UNAUTHORIZED", 403: "DENIED", 404: "NOT_FOUND", 429: "TOOMANYREQUESTS"}


class RegistryError(Internal):
    """``again``: another attempt may do better; ``wait``: seconds the registry asked to wait for."""

    again = False
    wait: float | None = None


class Refused(RegistryError):
    """The registry answered with an error. ``code`` as in the distribution spec (``MANIFEST_UNKNOWN``)."""

    def __init__(self, status: int, code: str, text: str, wait: float | None = None) -> None:
        super().__init__(f"{code.lower().replace('_', ' ')}: {text}")
        self.http_status, self.code, self.text = status, code, text
        self.again, self.wait = status in _AGAIN, wait


class NoCredentials(RegistryError):
    """The registry wants a login, and there is none that may be sent there."""


class Unreachable(RegistryError):
    """No answer: nobody there, a broken line, silence. ``https_failed``: whoever is there does not speak TLS as we want it."""

    again = True
    https_failed = False


class Unsound(RegistryError):
    """The answer breaks the rules: a wrong length, a digest that is not the content's, a redirect that leads nowhere."""


def refusal(status: int, body: bytes, wait: float | None, what: str, challenges: Iterable[Challenge] = ()) -> Refused:
    """The error of an answer; its body is the spec's ``errors`` document or anything at all.

    Registries with tokens tell in the challenge that a token is good and allows too little (RFC 6750, 3.1).
    """
    for one in challenges:
        if one.scheme == "bearer" and one.parameters.get("error") == "insufficient_scope":
            text = one.parameters.get("error_description") or "requested access to the resource is denied"
            return Refused(status, "DENIED", text[:300], wait)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    first = _first_error(document)
    code = str(first.get("code") or _CODES.get(status, "UNKNOWN"))[:60].upper()
    text = str(first.get("message") or "")[:300]
    if first.get("detail") and not text:
        text = str(first["detail"])[:300]
    return Refused(status, code, text or f"{what} answered with status {status}", wait)


def _first_error(document: Any) -> Mapping[str, Any]:
    if not isinstance(document, dict):
        return {}
    errors = document.get("errors")
    if isinstance(errors, list) and errors and isinstance(errors[0], dict):
        return errors[0]
    # What token servers say.
    text = document.get("details") or document.get("error_description") or document.get("message") or document.get("error")
    return {"message": text} if isinstance(text, str) else {}


def unreachable(method: str, url: str, fault: Exception) -> Unreachable:
    """The error for a fault of the network, in the words Go programs use, because people search for them."""
    error = Unreachable(f'{method.capitalize()} "{url}": {_words(fault)}')
    error.https_failed = isinstance(fault, (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError, ssl.SSLError)) or (
        url.startswith("https:")
        and isinstance(fault, (aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError, TimeoutError))
    )
    return error


def _words(fault: Exception) -> str:
    match fault:
        case aiohttp.ClientConnectorCertificateError():
            return f"tls: failed to verify certificate: {fault.certificate_error}"
        case aiohttp.ClientConnectorDNSError():
            return f"dial tcp: lookup {fault.host}: no such host"
        case aiohttp.ClientSSLError():
            return f"tls: {fault.os_error}"
        case aiohttp.ClientConnectorError():
            return f"dial tcp {fault.host}:{fault.port}: connect: {_errno_words(fault.os_error)}"
        case aiohttp.ServerDisconnectedError() | ConnectionResetError():
            return "EOF: the registry closed the connection"
        case aiohttp.ClientPayloadError():
            return "unexpected EOF: the registry closed the connection in the middle of its answer"
        case TimeoutError():
            return "net/http: request canceled (Client.Timeout exceeded while awaiting an answer)"
    return str(fault) or type(fault).__name__


def _errno_words(error: OSError) -> str:
    if error.errno is None or error.errno not in errno.errorcode:
        return str(error)
    return os.strerror(error.errno).lower()
