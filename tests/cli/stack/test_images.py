"""Which services of a stack are held to which digest."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cli.service_image import Meaning
from cli.stack.convert import IMAGE
from cli.stack.images import resolving
from covey.errors import InvalidArgument

OLD = Meaning("sha256:" + "0" * 64, (("amd64", "linux"),))
NEW = Meaning("sha256:" + "1" * 64, (("amd64", "linux"), ("arm64", "linux")))


class Registry:
    """What its tags mean, and which were asked for."""

    def __init__(self, **tags: Meaning | None) -> None:
        self.tags = {f"{name}:1": tag for name, tag in tags.items()}
        self.asked: list[str] = []

    def __call__(self, images: Any) -> dict[str, Meaning | None]:
        self.asked += images
        return {image: self.tags.get(image) for image in images}


def spec(image: str) -> dict[str, Any]:
    return {"Labels": {IMAGE: image}, "TaskTemplate": {"ContainerSpec": {"Image": image}}}


def deployed(image: str, found: Meaning | None, label: str | None = None) -> dict[str, Any]:
    """A service as an earlier deployment left it."""
    made = spec(image)
    if found:
        made["TaskTemplate"]["ContainerSpec"]["Image"] = f"{image}@{found.digest}"
        made["TaskTemplate"]["Placement"] = {"Platforms": [{"Architecture": a, "OS": o} for a, o in found.platforms]}
    made["Labels"][IMAGE] = label or image
    return {"Spec": made}


def resolved(mode: str, registry: Registry, image: str, before: dict[str, Any] | None = None) -> tuple[str, Any]:
    made = spec(image)
    former = copy.deepcopy(before)
    resolving(mode, registry)({"web": made}, {"web": before} if before else {})
    assert before == former, "what is there is read only"
    placement = made["TaskTemplate"].get("Placement") or {}
    return made["TaskTemplate"]["ContainerSpec"]["Image"], placement.get("Platforms")


PLATFORMS = [{"Architecture": "amd64", "OS": "linux"}, {"Architecture": "arm64", "OS": "linux"}]


@pytest.mark.parametrize(
    ("mode", "before", "wanted", "asked"),
    [
        ("always", None, NEW, ["app:1"]),
        ("changed", None, NEW, ["app:1"]),
        ("never", None, None, []),
        ("always", deployed("app:1", OLD), NEW, ["app:1"]),
        ("changed", deployed("app:1", OLD), OLD, []),
        ("never", deployed("app:1", OLD), OLD, []),
        ("changed", deployed("app:0", OLD), NEW, ["app:1"]),
        ("never", deployed("app:0", OLD), None, []),
        ("changed", deployed("app:1", None), None, []),
    ],
)
def test_modes(mode: str, before: dict[str, Any] | None, wanted: Meaning | None, asked: list[str]) -> None:
    registry = Registry(app=NEW)
    image, platforms = resolved(mode, registry, "app:1", before)
    assert image == (f"app:1@{wanted.digest}" if wanted else "app:1")
    assert platforms == ({NEW: PLATFORMS, OLD: PLATFORMS[:1]}[wanted] if wanted else None)
    assert registry.asked == asked


def test_a_registry_that_does_not_answer_changes_nothing_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert resolved("always", Registry(), "app:1", deployed("app:1", OLD))[0] == f"app:1@{OLD.digest}"
    assert resolved("always", Registry(), "app:1") == ("app:1", None)
    assert capsys.readouterr().err.count("image app:1 could not be accessed on a registry") == 2


def test_a_tag_is_latest_unless_it_is_said() -> None:
    registry = Registry()
    registry.tags = {"app:latest": NEW, "host:5000/app:latest": OLD}
    assert resolved("always", registry, "app")[0] == f"app:latest@{NEW.digest}"
    assert resolved("always", registry, "host:5000/app")[0] == f"host:5000/app:latest@{OLD.digest}"
    before = spec("app")
    before["TaskTemplate"]["ContainerSpec"]["Image"] = f"app:latest@{NEW.digest}"
    assert resolved("never", registry, "app", {"Spec": before})[0] == f"app:latest@{NEW.digest}"


def test_an_update_by_other_means_is_not_taken_back_to_another_images_digest() -> None:
    """Somebody set another image on the service; the file's name did not change."""
    assert resolved("changed", Registry(), "app:1", deployed("other:2", OLD, label="app:1"))[0] == "app:1"


def test_a_digest_in_the_file_is_not_asked_for() -> None:
    registry = Registry()
    assert resolved("always", registry, f"app@{OLD.digest}")[0] == f"app@{OLD.digest}"
    assert registry.asked == []


def test_services_with_one_image_ask_once() -> None:
    asked: list[list[str]] = []

    def ask(images: Any) -> dict[str, Meaning | None]:
        asked.append(list(images))
        return dict.fromkeys(images, NEW)

    specs = {"one": spec("app:1"), "two": spec("app:1")}
    resolving("always", ask)(specs, {})
    assert {one["TaskTemplate"]["ContainerSpec"]["Image"] for one in specs.values()} == {f"app:1@{NEW.digest}"}


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="'sometimes': one of always, changed, never"):
        resolving("sometimes", Registry())
