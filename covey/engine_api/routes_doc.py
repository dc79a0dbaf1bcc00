"""Prints docs/routes.md from the route table: ``python -m covey.engine_api.routes_doc > docs/routes.md``."""

from __future__ import annotations

import sys

from covey.engine_api.routes import ROUTES, Route
from covey.engine_api.versions import API_VERSION, MINIMUM_API_VERSION

INTRODUCTION = f"""# Routes

Generated from `covey/engine_api/routes.py` by `python -m covey.engine_api.routes_doc > docs/routes.md`; do not edit.

Covey speaks the Docker Engine API {API_VERSION}, at the least {MINIMUM_API_VERSION}. A path may begin with `/v1.NN`.
*Place* says who answers: **node** the daemon that was asked; **cluster** a manager, to which the daemon streams the
request; **merged** the daemon if the object is its own, else the cluster; **private** is
spoken between a daemon and its own manager only. *Since* is the first API version that has
the call. A route of the table that a release does not answer yet says 501 and its name. `/_node/<name>/…` is the
whole Engine API of that node.
"""

SECTIONS = {"exec": "container", "distribution": "image", "build": "image", "session": "system", "node": "node"}
ORDER = ("system", "container", "image", "volume", "network", "plugin", "swarm", "node", "service", "task", "secret")


def _row(route: Route) -> str:
    method = "any" if route.method == "*" else route.method
    return (
        f"| `{route.name}` | {method} | `{route.path.replace(':.*', '')}` | {route.place} | {route.minimum} "
        f"| {route.body} | {route.answer} |"
    )


def render() -> str:
    """The whole document, with a final line end."""
    sections: dict[str, list[Route]] = {name: [] for name in ORDER}
    for route in ROUTES:
        noun = route.name.partition("_")[0]
        sections.setdefault(SECTIONS.get(noun, noun), []).append(route)
    parts = [INTRODUCTION]
    for noun, routes in sections.items():
        rows = "\n".join(_row(route) for route in routes)
        head = "| name | method | path | place | since | body | answer |\n|---|---|---|---|---|---|---|"
        parts.append(f"## {noun}\n\n{head}\n{rows}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(render())
