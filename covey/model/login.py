"""A login to a registry as the store and the wire hold it, and which of several a pull tries first.

Decides nothing of where a login may be sent beyond its host: that is worker.images.registry's. Its repr tells no secret,
so that no log, error or plan can.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class RegistryLogin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who to be at ``host`` (a reference's domain). ``given_at``: the manager's time when it was said last."""

    host: str
    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    given_at: float = 0.0

    def __repr__(self) -> str:
        return f"RegistryLogin(host={self.host!r}, username={self.username!r}, given_at={self.given_at!r})"

    @property
    def account(self) -> tuple[str, ...]:
        """What it is without when it was given."""
        return self.host, self.username, self.password, self.identity_token, self.registry_token


def newest_first(logins: Iterable[RegistryLogin]) -> tuple[RegistryLogin, ...]:
    """The order in which they are tried: whoever said something last knows best. What is the same is tried once."""
    tried: dict[tuple[str, ...], RegistryLogin] = {}
    for one in sorted(logins, key=lambda one: -one.given_at):
        tried.setdefault(one.account, one)
    return tuple(tried.values())
