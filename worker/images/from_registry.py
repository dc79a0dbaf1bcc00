"""The registry as a place that images of tasks and builds come from.

It decides how a pull's progress becomes two numbers, which of a build's logins is sent, and in which order a task's are tried:
those the cluster has now, the newest first, then whoever the daemon's own configuration logs in, both asked for at each pull.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from covey.credentials import Credentials, of_server
from covey.errors import CoveyError, NotFound, Unauthorized
from worker.images import reference
from worker.images.image import Image
from worker.images.progress import Listener
from worker.images.reference import Reference
from worker.images.registry.errors import NoCredentials, Refused

if TYPE_CHECKING:
    from worker.images.pull import Pulled

Said = Callable[[int, int], None]
"""(bytes that came, bytes to come in all or 0 while nobody knows)."""

Logins = Callable[[Reference], Awaitable[Sequence[Credentials]]]
"""The logins that the cluster has for an image's registry, in the order to try them."""


async def _nobodys(wanted: Reference) -> Sequence[Credentials]:
    return ()


_DENIALS = frozenset({"UNAUTHORIZED", "DENIED", "INSUFFICIENT_SCOPE"})


class Pulls(Protocol):
    """What pulls: a Puller, or what makes one when it is asked."""

    async def pull(self, named: Reference, *, auth: Credentials | None, platform: str = "", listener: Listener) -> Pulled:
        """See worker.images.pull."""


class FromRegistry:
    """``fetch`` has the image in the store under ``wanted``. NotFound: the registry does not have it, or not for us."""

    def __init__(self, puller: Pulls, logins: Logins = _nobodys) -> None:
        self._puller = puller
        self._logins = logins

    async def fetch(self, wanted: Reference, said: Said) -> Image:
        """A login that is refused costs a question, not the image: the next is tried. The first refusal is what is said."""
        logins = await self._logins(wanted)
        first: CoveyError | None = None
        for auth in (*logins, None):
            try:
                return (await self._puller.pull(wanted, auth=auth, listener=_Sum(said))).image
            except (NotFound, NoCredentials, Refused) as error:
                if not _not_for_us(error):
                    raise
                first = first or error
        assert first is not None
        if not _is_denial(first):
            raise first
        raise Unauthorized(f"{first.message}: {_next_step(wanted, len(logins))}") from first

    async def pull(self, name: str, *, platform: str, credentials: Mapping[str, Any], listener: Listener) -> Image:
        """The image of a build's FROM. ``credentials``: by server, as the header ``X-Registry-Config`` has them."""
        named = reference.parse_tagged(name)
        auth = of_server(credentials, named.domain, "X-Registry-Config header")
        pulled = await self._puller.pull(named, auth=auth, platform=platform, listener=listener)
        return pulled.image


class _Sum:
    """A listener that adds up what layers tell."""

    def __init__(self, said: Said) -> None:
        self._said = said
        self._layers: dict[str, tuple[int, int]] = {}

    def __call__(self, message: Mapping[str, Any]) -> None:
        detail = message.get("progressDetail")
        if message.get("status") != "Downloading" or not detail:
            return
        self._layers[str(message["id"])] = (int(detail["current"]), int(detail["total"]))
        self._said(sum(current for current, _ in self._layers.values()), sum(total for _, total in self._layers.values()))


def _not_for_us(error: CoveyError) -> bool:
    """Whether somebody else may be given what we were not; registries hide what is private behind a 404."""
    return not isinstance(error, Refused) or error.code in _DENIALS


def _is_denial(error: CoveyError) -> bool:
    """Whether it is about who we are, which a new login mends, and not about what is there."""
    said = error.__cause__ if isinstance(error, NotFound) else error
    return isinstance(said, NoCredentials) or (isinstance(said, Refused) and said.code in _DENIALS)


def _next_step(wanted: Reference, tried: int) -> str:
    host = wanted.domain
    if tried:
        return f"none of {tried} logins of the cluster to {host} will do, renew with `cluster registry login {host}`"
    return f"the cluster has no login to {host}, see `cluster registry login {host}` and --with-registry-auth of services"
