"""API versions: comparison, refusal in Docker's words, negotiation."""

import pytest

from covey.engine_api import versions
from covey.errors import InvalidArgument


def test_too_new_and_too_old_are_refused_in_dockers_words():
    with pytest.raises(InvalidArgument) as new:
        versions.check("1.60")
    assert new.value.message == "client version 1.60 is too new. Maximum supported API version is 1.52"
    with pytest.raises(InvalidArgument) as old:
        versions.check("1.20")
    assert old.value.message == (
        "client version 1.20 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"
    )


def test_versions_compare_as_numbers():
    assert not versions.at_least("1.9", "1.24")
    assert versions.at_least("1.24", "1.24")
    assert versions.at_least("1.100", "1.52")


@pytest.mark.parametrize(("asked", "used"), [(None, "1.52"), ("1.41", "1.41"), ("1.52", "1.52"), ("1.24", "1.24")])
def test_check_gives_the_version_to_answer_in(asked, used):
    assert versions.check(asked) == used


@pytest.mark.parametrize(("server", "used"), [("1.41", "1.41"), ("1.60", "1.52"), ("1.52", "1.52")])
def test_negotiation_takes_the_lower(server, used):
    assert versions.negotiate(server) == used


@pytest.mark.parametrize("text", ["", "1.", "a", "1.x", "-1.2", "1.²"])
def test_nonsense_is_refused(text):
    with pytest.raises(InvalidArgument, match="invalid API version"):
        versions.parse(text)
