"""The errors an API answers with: each names the noun, the id and what to do next.

It knows the HTTP status Docker gives for each kind and nothing of HTTP servers.
"""

from __future__ import annotations

from typing import ClassVar


class CoveyError(Exception):
    """An error for a person. ``message`` is shown as it is; ``status`` is Docker's HTTP status code for it."""

    status: ClassVar[int] = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotModified(CoveyError):
    """The object is in the wanted state already (start of a running container)."""

    status = 304


class InvalidArgument(CoveyError):
    """The request can never be right; the message names the field."""

    status = 400


class Unauthorized(CoveyError):
    """No or wrong credentials."""

    status = 401


class Forbidden(CoveyError):
    """Known caller, known object, and still no (a network in use, a predefined network)."""

    status = 403


class NotFound(CoveyError):
    """No such object."""

    status = 404


class NotAcceptable(CoveyError):
    """Docker's 406: the swarm state does not fit the request (not part of a swarm, already unlocked)."""

    status = 406


class Conflict(CoveyError):
    """The object's state or name stands in the way."""

    status = 409


class Internal(CoveyError):
    """A fault on our side or the kernel's."""

    status = 500


class NotImplementedYet(CoveyError):
    """A call of the Engine API that this release does not answer."""

    status = 501


class Unavailable(CoveyError):
    """Not now: no manager, no leader, no store."""

    status = 503


BY_STATUS: dict[int, type[CoveyError]] = {
    kind.status: kind
    for kind in (
        NotModified,
        InvalidArgument,
        Unauthorized,
        Forbidden,
        NotFound,
        NotAcceptable,
        Conflict,
        Internal,
        NotImplementedYet,
        Unavailable,
    )
}


def from_status(status: int, message: str) -> CoveyError:
    """The error a client raises for an answer with ``status`` (unknown codes become Internal)."""
    return BY_STATUS.get(status, Internal)(message)
