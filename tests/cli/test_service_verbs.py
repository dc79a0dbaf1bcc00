"""Restart, stop, start, history and ``rollback --to``: what they ask the daemon for and print."""

import pytest

from cli.service_verbs import changed


def spec(image, replicas=1):
    return {
        "Name": "web",
        "Mode": {"Replicated": {"Replicas": replicas}},
        "TaskTemplate": {"ContainerSpec": {"Image": image, "Env": ["A=b"]}},
    }


@pytest.fixture
def web(daemon):
    found = {"ID": "s1", "Version": {"Index": 7}, "Spec": spec("two")}
    daemon.handlers = {
        "service_inspect": lambda call: found,
        "service_update": lambda call, body: {"Warnings": None},
        "covey_service_stop": lambda call: {},
        "covey_service_start": lambda call: {},
        "covey_service_restart": lambda call: {},
        "covey_service_history": lambda call: [
            {"Version": 1, "CreatedAt": "2026-01-01T00:00:00Z", "Spec": spec("one"), "Current": False},
            {"Version": 4, "CreatedAt": "2026-01-02T00:00:00Z", "Spec": spec("two", 3), "Current": True},
        ],
    }
    return daemon


@pytest.mark.parametrize("verb", ["restart", "stop", "start"])
def test_a_verb_asks_for_each_service(web, cluster, verb):
    assert cluster("service", verb, "--detach", "web", "other").out == "web\nother\n"
    assert [name for name, *_ in web.calls if name.startswith("covey")] == [f"covey_service_{verb}"] * 2


def test_rollback_to_a_version_says_which(web, cluster):
    assert cluster("service", "rollback", "--detach", "--to", "1", "web").status == 0
    (query,) = [query for name, _, query, _ in web.calls if name == "service_update"]
    assert query == {"version": "7", "rollback": "previous", "to": "1"}
    refused = cluster("service", "rollback", "--detach", "web")
    assert refused.status == 1
    assert "no previous spec" in refused.err


def test_the_history_is_told_newest_first_with_what_changed(web, cluster):
    told = cluster("service", "history", "--format", "{{.Version}}|{{.Image}}|{{.Replicas}}|{{.Changed}}", "web").out
    assert told.splitlines() == ["4 (current)|two|3|Replicated.Replicas, ContainerSpec.Image", "1|one|1|"]


def test_changed_names_what_differs():
    assert changed({"A": {"B": {"C": 1}}, "D": 2}, {"A": {"B": {"C": 2}}, "E": 1}) == ["B.C", "D", "E"]
