"""``POST /covey/plan``: what is proposed. Its specs are validated as those of a create or an update are."""

from __future__ import annotations

from typing import Any

from covey.engine_api.types.base import ListOf, Model


class Proposed(Model, frozen=True, kw_only=True):
    """A service by ``ID``, or by ``Name`` (else the Spec's), as it shall be; one that is not there would be created.

    ``Create``: it must not be there, as when one is made; then it needs no name.
    """

    ID: str | None = None
    Name: str | None = None
    Create: bool | None = None
    Spec: dict[str, Any]


class AssumedFields(Model, frozen=True, kw_only=True):
    """What would be made before the services: bodies of networks' creation, and ids by which specs name secrets, configs."""

    Networks: ListOf[dict[str, Any]]
    Secrets: ListOf[str]
    Configs: ListOf[str]


class PlanRequest(Model, frozen=True, kw_only=True):
    """``Remove``: ids or names of services."""

    Services: ListOf[Proposed]
    Remove: ListOf[str]
    Assume: AssumedFields | None = None
