"""Generic resources as a node is told of them: Docker's rules, and what is wrong is named."""

from __future__ import annotations

import pytest

from covey.model.resources import Resources, assigned_generic, parse_generic, read_resources, show_generic, show_resources


def test_names_and_numbers() -> None:
    found = parse_generic(["gpu=UUID1", "NVIDIA-GPU=a", " gpu=UUID2", "ssd=3", "none=0"])
    assert found == Resources(generic={"ssd": 3, "none": 0}, generic_named={"gpu": ("UUID1", "UUID2"), "NVIDIA-GPU": ("a",)})
    assert show_generic(parse_generic(["gpu=b", "gpu=a", "ssd=3"])) == [
        {"DiscreteResourceSpec": {"Kind": "ssd", "Value": 3}},
        {"NamedResourceSpec": {"Kind": "gpu", "Value": "b"}},
        {"NamedResourceSpec": {"Kind": "gpu", "Value": "a"}},
    ]
    assert read_resources(show_resources(found)) == found
    assert "GenericResources" not in show_resources(parse_generic([]))


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        (["gpu"], "'gpu' is not of the form KIND=NAME or KIND=NUMBER"),
        (["=1"], "not of the form"),
        (["gpu="], "not of the form"),
        (["gpu=a=b"], "not of the form"),
        (["gpu=a,b"], "not of the form"),
        (["g pu=a"], "not of the form"),
        (["gpu=-1"], "'gpu=-1': a node has 0 or more"),
        (["gpu=99999999999999999999"], "0 or more"),
        (["gpu=1", "gpu=2"], "'gpu=2': of a kind a node has one number, or names"),
        (["gpu=a", "gpu=2"], "one number, or names"),
        (["gpu=2", "gpu=a"], "one number, or names"),
        (["gpu=a", "gpu=a"], "'gpu=a' is given twice"),
    ],
)
def test_what_a_node_cannot_have(terms: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_generic(terms)


def test_what_a_task_has_of_its_node() -> None:
    asked = Resources(generic={"gpu": 2, "ssd": 3})
    assert assigned_generic(asked, {"gpu": ("a", "b")}) == Resources(generic={"ssd": 3}, generic_named={"gpu": ("a", "b")})
    assert assigned_generic(Resources(), {}) == Resources()
