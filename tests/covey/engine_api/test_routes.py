"""The route table against Docker's description, and look-up in it."""

from pathlib import Path

import pytest
import yaml

from covey.engine_api import routes_doc
from covey.engine_api.routes import BY_NAME, ROUTES, allowed, find, path_of

REPOSITORY = Path(__file__).parents[3]
DESCRIPTION = Path("/work/shared/reference/engine-api-v1.52.yaml")


def table() -> set[tuple[str, str]]:
    return {(route.method, route.path.replace(":.*", "")) for route in ROUTES}


@pytest.mark.skipif(not DESCRIPTION.exists(), reason=f"{DESCRIPTION} is not on this machine")
def test_table_holds_every_call_of_the_description_and_ours_only_besides():
    paths = yaml.load(DESCRIPTION.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["paths"]
    described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert described - table() == set()
    assert all(path.startswith(("/covey/", "/_node/")) for _, path in table() - described)


def test_names_are_unique_and_words_are_known():
    assert len(BY_NAME) == len(ROUTES)
    assert {route.place for route in ROUTES} <= {"node", "cluster", "merged", "private"}
    assert {route.body for route in ROUTES} <= {"none", "json", "stream"}
    assert {route.answer for route in ROUTES} <= {"none", "json", "stream", "hijack"}


@pytest.mark.parametrize(
    ("method", "path", "name", "params", "version"),
    [
        ("GET", "/v1.41/images/a/b%3A1/c/json", "image_inspect", {"name": "a/b:1/c"}, "1.41"),
        ("GET", "/images/get", "image_get_all", {}, None),
        ("GET", "/images/localhost:5000/x/get", "image_get", {"name": "localhost:5000/x"}, None),
        ("DELETE", "/containers/x", "container_delete", {"id": "x"}, None),
        ("GET", "/containers/json", "container_list", {}, None),
        ("GET", "/containers/x/attach/ws", "container_attach_websocket", {"id": "x"}, None),
        ("GET", "/_node/w1/v1.41/info", "node_forward", {"name": "w1", "tail": "/v1.41/info"}, None),
        ("PATCH", "/_node/w1", "node_forward", {"name": "w1", "tail": "/"}, None),
        ("HEAD", "/_ping", "system_ping_head", {}, None),
        ("POST", "/v1.24/services/create", "service_create", {}, "1.24"),
    ],
)
def test_find(method, path, name, params, version):
    match = find(method, path)
    assert match is not None
    assert (match.route.name, dict(match.params), match.version) == (name, params, version)


@pytest.mark.parametrize("path", ["/", "/v1.41", "/vx/info", "/containers//json", "/containers/a/b/json", "/info/", "/_node/"])
def test_unknown_paths(path):
    assert find("GET", path) is None


def test_allowed_methods_of_a_path():
    assert allowed("/v1.41/nodes/x") == ["DELETE", "GET"]
    assert allowed("/nope") == []


def test_path_of_is_the_inverse_of_find():
    for route in ROUTES:
        if route.method == "*":
            continue
        params = dict.fromkeys(("id", "name"), "a/b:1" if "{name:.*}" in route.path else "a b")
        match = find(route.method, path_of(route.name, params))
        assert match is not None
        assert match.route is route
        assert all(params[key] == value for key, value in match.params.items())


def test_document_is_current():
    assert (REPOSITORY / "docs/routes.md").read_text() == routes_doc.render(), (
        "run: python -m covey.engine_api.routes_doc > docs/routes.md"
    )
