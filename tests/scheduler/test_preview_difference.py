"""What two specs differ in: fields by path, nothing that means the same, never a credential."""

from __future__ import annotations

from typing import Any

import pytest

from covey.model.meaning import meaning, same
from covey.model.spec import read_service_spec
from scheduler.preview.difference import HIDDEN, Edit, differences


def spec(container: dict[str, Any] | None = None, template: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    inner = {"Image": "busybox", **(container or {})}
    return {"Name": "web", "TaskTemplate": {"ContainerSpec": inner, **(template or {})}, **more}


def edits(old: dict[str, Any] | None, new: dict[str, Any] | None) -> list[tuple[str, str, Any, Any]]:
    return [(edit.path, edit.kind, edit.old, edit.new) for edit in differences(old, new)]


#: The same said in many words: what Docker's clients fill in.
WORDY = spec(
    {
        "Command": None,
        "Env": [],
        "TTY": False,
        "StopGracePeriod": 10_000_000_000,
        "Isolation": "default",
        "DNSConfig": {},
        "Labels": {},
        "Secrets": None,
        "Healthcheck": {"Test": [], "Interval": 0},
        "User": "",
    },
    {
        "Resources": {"Limits": {"MemoryBytes": 0}, "Reservations": {}},
        "RestartPolicy": {"Condition": "any", "MaxAttempts": 0},
        "Placement": {"Constraints": []},
        "ForceUpdate": 0,
        "Runtime": "container",
        "Networks": None,
    },
    Mode={"Replicated": {"Replicas": 1}},
    UpdateConfig={"Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000, "Order": "stop-first", "Delay": 0},
    RollbackConfig=None,
    EndpointSpec={"Mode": "vip", "Ports": None},
    Labels={},
)


def test_defaults_spelled_out_and_nothings_are_no_difference() -> None:
    assert differences(spec(), WORDY) == differences(WORDY, spec()) == ()
    assert same(spec(), WORDY)
    assert read_service_spec(spec()) == read_service_spec(WORDY)


def test_networks_in_their_old_place_are_those_of_the_template() -> None:
    assert not differences(spec(Networks=[{"Target": "n"}]), spec(template={"Networks": [{"Target": "n"}]}))


@pytest.mark.parametrize(
    ("new", "path"),
    [
        (spec(Mode={"Replicated": {"Replicas": 0}}), "Mode.Replicated.Replicas"),
        (spec({"StopGracePeriod": 0}), "TaskTemplate.ContainerSpec.StopGracePeriod"),
        (spec({"Init": False}), "TaskTemplate.ContainerSpec.Init"),
        (spec(template={"RestartPolicy": {"Delay": 0}}), "TaskTemplate.RestartPolicy.Delay"),
        (spec(template={"RestartPolicy": {"Delay": 5_000_000_000}}), "TaskTemplate.RestartPolicy.Delay"),
        (spec(UpdateConfig={}), "UpdateConfig.Parallelism"),
        (spec({"Secrets": [{"SecretName": "s", "File": {"Name": "s", "Mode": 0}}]}), "TaskTemplate.ContainerSpec.Secrets[s]"),
        (spec(Labels={"empty": ""}), "Labels[empty]"),
        (spec(Future=0), "Future"),
    ],
)
def test_a_nothing_that_says_something_is_a_difference(new: dict[str, Any], path: str) -> None:
    found = differences(spec(), new)
    assert found
    assert all(edit.path.startswith(path) for edit in found), found


def test_fields_are_named_by_path_with_old_and_new() -> None:
    old = spec({"Env": ["A=1", "B=2"], "Args": ["a"]}, Labels={"com.example.x": "1"}, Mode={"Replicated": {"Replicas": 2}})
    new = spec({"Env": ["B=3", "C=4"], "Args": ["a", "b"], "Image": "busybox:2"}, Mode={"Replicated": {"Replicas": 5}})
    where = "TaskTemplate.ContainerSpec"
    assert edits(old, new) == [
        ("Labels[com.example.x]", "removed", "1", None),
        ("Mode.Replicated.Replicas", "changed", 2, 5),
        (f"{where}.Args", "changed", ["a"], ["a", "b"]),
        (f"{where}.Env[A]", "removed", "A=1", None),
        (f"{where}.Env[B]", "changed", "B=2", "B=3"),
        (f"{where}.Env[C]", "added", None, "C=4"),
        (f"{where}.Image", "changed", "busybox", "busybox:2"),
    ]


def test_another_mode_is_one_field_removed_and_one_added() -> None:
    assert edits(spec(Mode={"Replicated": {"Replicas": 2}}), spec(Mode={"Global": {}})) == [
        ("Mode.Global", "added", None, {}),
        ("Mode.Replicated.Replicas", "removed", 2, None),
    ]


def test_entries_of_lists_are_told_apart_by_name_and_else_by_place() -> None:
    old = spec({"Mounts": [{"Target": "/a", "Source": "v"}, {"Target": "/b", "Source": "w"}]})
    new = spec({"Mounts": [{"Target": "/b", "Source": "x"}, {"Target": "/a", "Source": "v"}]})
    assert edits(old, new) == [("TaskTemplate.ContainerSpec.Mounts[/b].Source", "changed", "w", "x")]
    port = {"TargetPort": 80, "PublishedPort": 8080}
    assert edits(spec(), spec(EndpointSpec={"Ports": [port]})) == [
        ("EndpointSpec.Ports[80/8080].PublishedPort", "added", None, 8080),
        ("EndpointSpec.Ports[80/8080].TargetPort", "added", None, 80),
    ]
    twice = [{"Target": "/a"}, {"Target": "/a"}]
    assert edits(old, spec({"Mounts": twice}))[0][1] == "changed"


def test_another_order_of_a_list_is_shown_as_the_tasks_see_it() -> None:
    assert edits(spec({"Env": ["A=1", "B=2"]}), spec({"Env": ["B=2", "A=1"]})) == [
        ("TaskTemplate.ContainerSpec.Env", "changed", ["A=1", "B=2"], ["B=2", "A=1"])
    ]


def test_credentials_are_never_shown() -> None:
    old = spec(PullOptions={"RegistryAuth": "b2xk"})
    new = spec(
        {"Mounts": [{"Target": "/a", "VolumeOptions": {"DriverConfig": {"Options": {"password": "hunter2", "user": "me"}}}}]},
        PullOptions={"RegistryAuth": "bmV3"},
        Extra=[[{"Data": "c2VjcmV0"}]],
    )
    found = differences(old, new)
    said = repr(found)
    assert not any(word in said for word in ("b2xk", "bmV3", "hunter2", "c2VjcmV0"))
    assert Edit("PullOptions.RegistryAuth", "changed", HIDDEN, HIDDEN) in found
    assert "me" in said


def test_which_secret_is_mounted_is_no_secret() -> None:
    found = edits(spec(), spec({"Secrets": [{"SecretID": "id1", "SecretName": "key", "File": {"Name": "key"}}]}))
    assert ("TaskTemplate.ContainerSpec.Secrets[key].SecretName", "added", None, "key") in found
    assert ("TaskTemplate.ContainerSpec.Secrets[key].SecretID", "added", None, "id1") in found


def test_the_meaning_of_a_meaning_is_itself() -> None:
    assert meaning(meaning(WORDY)) == meaning(WORDY)
    assert differences(None, None) == ()
    assert {edit.kind for edit in differences(None, WORDY)} == {"added"}
    assert {edit.kind for edit in differences(WORDY, None)} == {"removed"}
