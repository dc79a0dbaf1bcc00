"""Which calls the Engine API has, and where each is answered: one table, as data.

Every end reads it: the server chassis finds a request's route here, the front door decides by ``place`` whether a
request goes to the manager, the clients build paths from names, docs/routes.md is printed from it. It must not know
handlers, sockets or aiohttp. Source: reference/engine-api-v1.52.yaml; rows under /covey and /_node are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote

NODE = "node"
CLUSTER = "cluster"
MERGED = "merged"
PRIVATE = "private"
ANY_METHOD = "*"
FIRST = "1.24"


class Route(NamedTuple):
    """One call. ``path`` is a template: ``{id}`` is one segment, ``{name:.*}`` may hold slashes.

    ``place``: node (this daemon answers), cluster (a manager answers), merged (local first, then the cluster),
    private (only on the socket between the daemon and its manager; the front door forwards none of it).
    ``minimum``: the first API version that has the call. ``body``: none | json | stream.
    ``answer``: none | json | stream | hijack.
    """

    name: str
    method: str
    path: str
    place: str
    minimum: str = FIRST
    body: str = "none"
    answer: str = "json"


class Match(NamedTuple):
    """A found route, its path parameters (decoded) and the version the client named (None: no prefix)."""

    route: Route
    params: Mapping[str, str]
    version: str | None


ROUTES: tuple[Route, ...] = (
    Route("system_ping", "GET", "/_ping", NODE, answer="stream"),
    Route("system_ping_head", "HEAD", "/_ping", NODE, answer="none"),
    Route("system_version", "GET", "/version", NODE),
    Route("system_info", "GET", "/info", MERGED),
    Route("system_events", "GET", "/events", MERGED, answer="stream"),
    Route("system_df", "GET", "/system/df", MERGED, "1.25"),
    Route("system_auth", "POST", "/auth", NODE, body="json"),
    Route("session", "POST", "/session", NODE, "1.39", answer="hijack"),
    Route("container_list", "GET", "/containers/json", NODE),
    Route("container_create", "POST", "/containers/create", NODE, body="json"),
    Route("container_prune", "POST", "/containers/prune", NODE, "1.25"),
    Route("container_inspect", "GET", "/containers/{id}/json", MERGED),
    Route("container_top", "GET", "/containers/{id}/top", MERGED),
    Route("container_logs", "GET", "/containers/{id}/logs", MERGED, answer="stream"),
    Route("container_changes", "GET", "/containers/{id}/changes", MERGED),
    Route("container_export", "GET", "/containers/{id}/export", MERGED, answer="stream"),
    Route("container_stats", "GET", "/containers/{id}/stats", MERGED, answer="stream"),
    Route("container_resize", "POST", "/containers/{id}/resize", MERGED, answer="none"),
    Route("container_start", "POST", "/containers/{id}/start", MERGED, answer="none"),
    Route("container_stop", "POST", "/containers/{id}/stop", MERGED, answer="none"),
    Route("container_restart", "POST", "/containers/{id}/restart", MERGED, answer="none"),
    Route("container_kill", "POST", "/containers/{id}/kill", MERGED, answer="none"),
    Route("container_update", "POST", "/containers/{id}/update", MERGED, body="json"),
    Route("container_rename", "POST", "/containers/{id}/rename", MERGED, answer="none"),
    Route("container_pause", "POST", "/containers/{id}/pause", MERGED, answer="none"),
    Route("container_unpause", "POST", "/containers/{id}/unpause", MERGED, answer="none"),
    Route("container_attach", "POST", "/containers/{id}/attach", MERGED, answer="hijack"),
    Route("container_attach_websocket", "GET", "/containers/{id}/attach/ws", MERGED, answer="hijack"),
    Route("container_wait", "POST", "/containers/{id}/wait", MERGED, answer="stream"),
    Route("container_delete", "DELETE", "/containers/{id}", MERGED, answer="none"),
    Route("container_archive_head", "HEAD", "/containers/{id}/archive", MERGED, answer="none"),
    Route("container_archive_get", "GET", "/containers/{id}/archive", MERGED, answer="stream"),
    Route("container_archive_put", "PUT", "/containers/{id}/archive", MERGED, body="stream", answer="none"),
    Route("container_commit", "POST", "/commit", NODE, body="json"),
    Route("exec_create", "POST", "/containers/{id}/exec", MERGED, body="json"),
    Route("exec_start", "POST", "/exec/{id}/start", MERGED, body="json", answer="hijack"),
    Route("exec_resize", "POST", "/exec/{id}/resize", MERGED, answer="none"),
    Route("exec_inspect", "GET", "/exec/{id}/json", MERGED),
    Route("image_list", "GET", "/images/json", NODE),
    Route("image_create", "POST", "/images/create", NODE, body="stream", answer="stream"),
    Route("image_load", "POST", "/images/load", NODE, body="stream", answer="stream"),
    Route("image_get_all", "GET", "/images/get", NODE, answer="stream"),
    Route("image_search", "GET", "/images/search", NODE),
    Route("image_prune", "POST", "/images/prune", NODE, "1.25"),
    Route("image_inspect", "GET", "/images/{name:.*}/json", NODE),
    Route("image_history", "GET", "/images/{name:.*}/history", NODE),
    Route("image_get", "GET", "/images/{name:.*}/get", NODE, answer="stream"),
    Route("image_push", "POST", "/images/{name:.*}/push", NODE, answer="stream"),
    Route("image_tag", "POST", "/images/{name:.*}/tag", NODE, answer="none"),
    Route("image_delete", "DELETE", "/images/{name:.*}", NODE),
    Route("image_build", "POST", "/build", NODE, body="stream", answer="stream"),
    Route("build_prune", "POST", "/build/prune", NODE, "1.39"),
    Route("distribution_inspect", "GET", "/distribution/{name:.*}/json", NODE, "1.30"),
    Route("volume_list", "GET", "/volumes", NODE),
    Route("volume_create", "POST", "/volumes/create", NODE, body="json"),
    Route("volume_prune", "POST", "/volumes/prune", NODE, "1.25"),
    Route("volume_inspect", "GET", "/volumes/{name}", NODE),
    Route("volume_update", "PUT", "/volumes/{name}", CLUSTER, "1.42", body="json", answer="none"),
    Route("volume_delete", "DELETE", "/volumes/{name}", NODE, answer="none"),
    Route("network_list", "GET", "/networks", MERGED),
    Route("network_create", "POST", "/networks/create", MERGED, body="json"),
    Route("network_prune", "POST", "/networks/prune", MERGED, "1.25"),
    Route("network_inspect", "GET", "/networks/{id}", MERGED),
    Route("network_delete", "DELETE", "/networks/{id}", MERGED, answer="none"),
    Route("network_connect", "POST", "/networks/{id}/connect", MERGED, body="json", answer="none"),
    Route("network_disconnect", "POST", "/networks/{id}/disconnect", MERGED, body="json", answer="none"),
    Route("plugin_list", "GET", "/plugins", NODE, "1.25"),
    Route("plugin_privileges", "GET", "/plugins/privileges", NODE, "1.25"),
    Route("plugin_pull", "POST", "/plugins/pull", NODE, "1.25", body="json", answer="stream"),
    Route("plugin_create", "POST", "/plugins/create", NODE, "1.25", body="stream", answer="none"),
    Route("plugin_inspect", "GET", "/plugins/{name:.*}/json", NODE, "1.25"),
    Route("plugin_delete", "DELETE", "/plugins/{name:.*}", NODE, "1.25"),
    Route("plugin_enable", "POST", "/plugins/{name:.*}/enable", NODE, "1.25", answer="none"),
    Route("plugin_disable", "POST", "/plugins/{name:.*}/disable", NODE, "1.25", answer="none"),
    Route("plugin_upgrade", "POST", "/plugins/{name:.*}/upgrade", NODE, "1.26", body="json", answer="stream"),
    Route("plugin_push", "POST", "/plugins/{name:.*}/push", NODE, "1.25", answer="stream"),
    Route("plugin_set", "POST", "/plugins/{name:.*}/set", NODE, "1.25", body="json", answer="none"),
    Route("swarm_init", "POST", "/swarm/init", NODE, body="json"),
    Route("swarm_join", "POST", "/swarm/join", NODE, body="json", answer="none"),
    Route("swarm_leave", "POST", "/swarm/leave", NODE, answer="none"),
    Route("swarm_unlock", "POST", "/swarm/unlock", NODE, body="json", answer="none"),
    Route("swarm_inspect", "GET", "/swarm", CLUSTER),
    Route("swarm_update", "POST", "/swarm/update", CLUSTER, body="json", answer="none"),
    Route("swarm_unlock_key", "GET", "/swarm/unlockkey", CLUSTER),
    Route("node_list", "GET", "/nodes", CLUSTER),
    Route("node_inspect", "GET", "/nodes/{id}", CLUSTER),
    Route("node_update", "POST", "/nodes/{id}/update", CLUSTER, body="json", answer="none"),
    Route("node_delete", "DELETE", "/nodes/{id}", CLUSTER, answer="none"),
    Route("service_list", "GET", "/services", CLUSTER),
    Route("service_create", "POST", "/services/create", CLUSTER, body="json"),
    Route("service_inspect", "GET", "/services/{id}", CLUSTER),
    Route("service_update", "POST", "/services/{id}/update", CLUSTER, body="json"),
    Route("service_delete", "DELETE", "/services/{id}", CLUSTER, answer="none"),
    Route("service_logs", "GET", "/services/{id}/logs", CLUSTER, "1.29", answer="stream"),
    Route("task_list", "GET", "/tasks", CLUSTER),
    Route("task_inspect", "GET", "/tasks/{id}", CLUSTER),
    Route("task_logs", "GET", "/tasks/{id}/logs", CLUSTER, "1.29", answer="stream"),
    Route("secret_list", "GET", "/secrets", CLUSTER, "1.25"),
    Route("secret_create", "POST", "/secrets/create", CLUSTER, "1.25", body="json"),
    Route("secret_inspect", "GET", "/secrets/{id}", CLUSTER, "1.25"),
    Route("secret_update", "POST", "/secrets/{id}/update", CLUSTER, "1.25", body="json", answer="none"),
    Route("secret_delete", "DELETE", "/secrets/{id}", CLUSTER, "1.25", answer="none"),
    Route("config_list", "GET", "/configs", CLUSTER, "1.30"),
    Route("config_create", "POST", "/configs/create", CLUSTER, "1.30", body="json"),
    Route("config_inspect", "GET", "/configs/{id}", CLUSTER, "1.30"),
    Route("config_update", "POST", "/configs/{id}/update", CLUSTER, "1.30", body="json", answer="none"),
    Route("config_delete", "DELETE", "/configs/{id}", CLUSTER, "1.30", answer="none"),
    Route("covey_bootstrap", "POST", "/covey/bootstrap", PRIVATE, body="json"),
    Route("covey_statistics", "GET", "/covey/statistics", CLUSTER),
    Route("covey_plan", "POST", "/covey/plan", CLUSTER, body="json"),
    Route("covey_service_history", "GET", "/covey/services/{id}/history", CLUSTER),
    Route("covey_service_restart", "POST", "/covey/services/{id}/restart", CLUSTER, answer="none"),
    Route("covey_service_stop", "POST", "/covey/services/{id}/stop", CLUSTER, answer="none"),
    Route("covey_service_start", "POST", "/covey/services/{id}/start", CLUSTER, answer="none"),
    Route("covey_image_fsck", "POST", "/covey/images/fsck", NODE, answer="stream"),
    Route("covey_image_pins", "GET", "/covey/images/pins", NODE),
    Route("covey_image_pin", "POST", "/covey/images/{name:.*}/pin", NODE, answer="none"),
    Route("covey_rebalance", "POST", "/covey/rebalance", CLUSTER, body="json"),
    Route("covey_blobs", "GET", "/covey/blobs", NODE),
    Route("covey_blob", "GET", "/covey/blobs/{id}", NODE, answer="stream"),
    Route("covey_image_receive", "POST", "/covey/images/receive", NODE, body="json", answer="stream"),
    Route("covey_image_distribute", "POST", "/covey/images/distribute", CLUSTER, body="json", answer="stream"),
    Route("covey_login_list", "GET", "/covey/logins", CLUSTER),
    Route("covey_login_create", "POST", "/covey/logins", CLUSTER, body="json", answer="none"),
    Route("covey_login_delete", "DELETE", "/covey/logins/{id}", CLUSTER, answer="none"),
    Route("covey_task_story", "GET", "/covey/tasks/{id}/story", CLUSTER),
    Route("covey_task_explain", "GET", "/covey/tasks/{id}/explain", CLUSTER),
    Route("node_forward", ANY_METHOD, "/_node/{name}/{tail:.*}", CLUSTER, body="stream", answer="hijack"),
)

BY_NAME: Mapping[str, Route] = {route.name: route for route in ROUTES}


class _Shape(NamedTuple):
    """A parametric row, cut for look-up: the text before and after its one parameter."""

    route: Route
    parameter: str
    greedy: bool


class _Index:
    """The table by exact path, and by (first segments, last segments) around the parameter: no pattern is run."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.exact: dict[str, dict[str, Route]] = {}
        self.shaped: dict[tuple[str, str], dict[str, _Shape]] = {}
        for route in routes:
            if route.method == ANY_METHOD:
                continue
            head, brace, rest = route.path.partition("{")
            if not brace:
                self.exact.setdefault(route.path, {})[route.method] = route
                continue
            parameter, _, tail = rest.partition("}")
            name, colon, _ = parameter.partition(":")
            self.shaped.setdefault((head, tail), {})[route.method] = _Shape(route, name, bool(colon))
        self.heads = tuple(sorted({head for head, _ in self.shaped}, key=len, reverse=True))
        self.tails = {
            head: tuple(sorted({tail for at, tail in self.shaped if at == head}, key=len, reverse=True)) for head in self.heads
        }

    def methods(self, path: str) -> dict[str, tuple[Route, dict[str, str]]]:
        """Every row that fits ``path``, by method; a fixed path wins over a parameter of the same method."""
        found: dict[str, tuple[Route, dict[str, str]]] = {}
        for method, route in self.exact.get(path, {}).items():
            found[method] = (route, {})
        for head in self.heads:
            if not path.startswith(head):
                continue
            for tail in self.tails[head]:
                value = path[len(head) : len(path) - len(tail)]
                if not value or not path.endswith(tail) or len(head) + len(tail) >= len(path):
                    continue
                for method, shape in self.shaped[(head, tail)].items():
                    if method not in found and (shape.greedy or "/" not in value):
                        found[method] = (shape.route, {shape.parameter: unquote(value)})
            break
        return found


_INDEX = _Index(ROUTES)
_FORWARD = BY_NAME["node_forward"]
_FORWARD_PREFIX = "/_node/"


def split_version(path: str) -> tuple[str | None, str]:
    """``/v1.41/info`` → (``1.41``, ``/info``); a path without a version prefix is returned as it is."""
    if path[:2] == "/v":
        version, slash, rest = path[2:].partition("/")
        if slash and version and not version.strip("0123456789."):
            return version, "/" + rest
    return None, path


def _forwarded(path: str, version: str | None) -> Match | None:
    name, _, tail = path[len(_FORWARD_PREFIX) :].partition("/")
    if not name:
        return None
    return Match(_FORWARD, {"name": unquote(name), "tail": "/" + tail}, version)


def find(method: str, path: str) -> Match | None:
    """The route of a request; ``path`` is as sent (still percent-encoded, no query). None: no such call.

    ``tail`` of the ``/_node`` route keeps its encoding and its own version prefix: it is another request's path.
    """
    version, path = split_version(path)
    if path.startswith(_FORWARD_PREFIX):
        return _forwarded(path, version)
    found = _INDEX.methods(path)
    hit = found.get(method) or (found.get("GET") if method == "HEAD" else None)
    return Match(hit[0], hit[1], version) if hit else None


def allowed(path: str) -> list[str]:
    """The methods that ``path`` knows, sorted; empty when the path is unknown."""
    return sorted(_INDEX.methods(split_version(path)[1]))


def path_of(name: str, params: Mapping[str, str]) -> str:
    """The path of a route by name, parameters encoded. Raises KeyError for an unknown name or a missing parameter."""
    path = BY_NAME[name].path
    while "{" in path:
        head, _, rest = path.partition("{")
        parameter, _, tail = rest.partition("}")
        key, greedy, _ = parameter.partition(":")
        path = head + quote(params[key], safe="/:@" if greedy else ":@") + tail
    return path
