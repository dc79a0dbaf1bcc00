"""Asks the manager, at the moment of a pull, who to be at an image's registry. Nothing of the answers is kept.

It decides how long to wait for an answer; without one a pull goes on with the node's own logins. Which logins a node may know
is the manager's to say (manager.logins), where they are sent worker.images.registry's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from covey.credentials import Credentials
from covey.model.login import RegistryLogin
from covey.wire.messages import AnyMessage, LoginsGiven, LoginsWanted
from worker.images.reference import Reference

log = logging.getLogger(__name__)

Send = Callable[[AnyMessage], Awaitable[None]]

ANSWER_SECONDS = 10.0


class RegistryLogins:
    """``of_image`` asks over the session that is open, if one is."""

    def __init__(self) -> None:
        self._send: Send | None = None
        self._requests = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[LoginsGiven]] = {}

    @asynccontextmanager
    async def session(self, send: Send) -> AsyncIterator[None]:
        """A session is open inside; whoever still waits when it ends is told that there is no answer."""
        self._send = send
        try:
            yield
        finally:
            if self._send is send:
                self._send = None
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionError("the session ended"))

    def heard(self, message: LoginsGiven) -> None:
        """The manager has answered; an answer that nobody waits for any more is dropped."""
        future = self._waiting.get(message.request)
        if future is not None and not future.done():
            future.set_result(message)

    async def of_image(self, wanted: Reference) -> tuple[Credentials, ...]:
        """What the cluster has for the image's registry, in the order to try it; none when nobody says."""
        send = self._send
        if send is None:
            return ()
        request = next(self._requests)
        future: asyncio.Future[LoginsGiven] = asyncio.get_running_loop().create_future()
        self._waiting[request] = future
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await send(LoginsWanted(request=request, image=str(wanted)))
                answer = await future
        except (OSError, TimeoutError) as fault:
            log.warning("image %s: no manager says who to be at its registry: %s", wanted.familiar, fault or "no answer")
            return ()
        finally:
            del self._waiting[request]
        if answer.error:
            log.warning("image %s: %s", wanted.familiar, answer.error)
        # A login is for its own host, whatever anybody says.
        return tuple(_credentials(one) for one in answer.logins if one.host == wanted.domain.lower())


def _credentials(one: RegistryLogin) -> Credentials:
    return Credentials(one.username, one.password, one.identity_token, one.registry_token, one.host)
