"""A client that reads and does not write: what a command would change is noted, and the daemon is asked what would come of it.

A command run against it takes the same way as against the daemon itself, so that its plan cannot differ from what it does.
It must not know what any command is about, nor how a plan is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from covey.engine_api.light import Client, Query
from covey.errors import CoveyError, NotFound, NotImplementedYet

_MADE = {"/networks/create": ("Networks", "Id"), "/secrets/create": ("Secrets", "ID"), "/configs/create": ("Configs", "ID")}


class Rehearsal(Client):
    """Objects that would be made have ids that say so. ``plan`` is what the daemon makes of all that was noted."""

    def __init__(self, host: str | None = None) -> None:
        super().__init__(host)
        self._services: list[dict[str, Any]] = []
        self._removed: list[str] = []
        self._made: dict[str, list[dict[str, Any]]] = {"Networks": [], "Secrets": [], "Configs": []}

    def __enter__(self) -> Rehearsal:
        return self

    def post(
        self,
        path: str,
        query: Query | None = None,
        json: Any = None,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Note what would be made or updated. NotImplementedYet for what no plan is made of."""
        noun, _, rest = path.removeprefix("/").partition("/")
        if path in _MADE:
            kind, key = _MADE[path]
            self._made[kind].append(json)
            return {key: f"planned-{json['Name']}"}
        if path == "/services/create":
            self._services.append({"Spec": json, "Create": True})
            return {"ID": f"planned-{json.get('Name', '')}"}
        if noun == "services" and rest.endswith("/update"):
            self._services.append({"ID": rest.removesuffix("/update"), "Spec": json})
            return {}
        if noun in ("secrets", "configs") and rest.endswith("/update"):
            # Their labels at the most: their data cannot change.
            return {}
        raise NotImplementedYet(f"POST {path}: no plan can be made of this")

    def put(self, path: str, query: Query | None = None, body: bytes | Iterable[bytes] | None = None) -> Any:
        """Nothing that is planned is put."""
        raise NotImplementedYet(f"PUT {path}: no plan can be made of this")

    def delete(self, path: str, query: Query | None = None) -> Any:
        """Note which service would be removed."""
        noun, _, reference = path.removeprefix("/").partition("/")
        if noun != "services":
            raise NotImplementedYet(f"DELETE {path}: no plan can be made of this")
        self._removed.append(reference)

    def plan(self) -> dict[str, Any]:
        """The daemon's plan, and in Networks, Secrets and Configs the names of what would be made before. No values."""
        answer: dict[str, Any] = {"Revision": 0, "Changes": False, "Complete": True, "Services": [], "Displaced": []}
        if self._services or self._removed:
            answer = self._ask()
        names = {kind: [str(body["Name"]) for body in made] for kind, made in self._made.items()}
        return {**answer, **names, "Changes": bool(answer["Changes"] or any(names.values()))}

    def _ask(self) -> dict[str, Any]:
        ids = {kind: [f"planned-{body['Name']}" for body in self._made[kind]] for kind in ("Secrets", "Configs")}
        body = {
            "Services": self._services,
            "Remove": self._removed,
            "Assume": {"Networks": self._made["Networks"], **ids},
        }
        try:
            answer: dict[str, Any] = super().post("/covey/plan", json=body)
        except NotFound as error:
            if "page not found" not in error.message:
                raise
            raise _NoPlans(f"the daemon at {self.host} makes no plans: it is not Covey's, or of an older release") from None
        return answer


class _NoPlans(CoveyError):
    """Another daemon, which does not know the route."""

    status = 501
