"""No key of a compose file is dropped in silence: every key the specification knows is in one of the tables."""

import json
from pathlib import Path

import pytest

from cli.stack import keys
from covey.errors import InvalidArgument

SCHEMA = json.loads((Path(__file__).parent / "compose-spec.schema.json").read_text())


def properties(name):
    return set(SCHEMA["definitions"][name]["properties"])


def test_every_service_key_of_the_specification_is_in_exactly_one_table():
    tables = [keys.SERVICE, set(keys.SERVICE_IGNORED), set(keys.SERVICE_REFUSED), set(keys.SERVICE_NOT_YET)]
    known = set().union(*tables)
    assert properties("service") - known == set()
    assert sum(map(len, tables)) == len(known)


def test_every_top_level_key_of_the_specification_is_in_a_table():
    known = keys.TOP | set(keys.TOP_IGNORED) | set(keys.TOP_REFUSED)
    assert set(SCHEMA["properties"]) - known == set()


def test_keys_taken_are_the_specifications_own():
    invented = {"strategy", "max_concurrent"}
    assert properties("service") >= keys.SERVICE
    assert properties("deployment") >= keys.DEPLOY - invented
    placement = SCHEMA["definitions"]["deployment"]["properties"]["placement"]["properties"]
    assert keys.INNER["deploy.placement"] - invented == set(placement)


def refusal(document):
    with pytest.raises(InvalidArgument) as caught:
        keys.check(document, pytest.fail)
    return caught.value.message


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"services": {"web": {"imagee": "x"}}}, "unknown key services.web.imagee; did you mean image?"),
        ({"services": {"web": {"devices": []}}}, "unsupported key services.web.devices"),
        ({"services": {"web": {"network_mode": "host"}}}, "unsupported key services.web.network_mode"),
        ({"services": {"web": {"deploy": {"replica": 1}}}}, "unknown key services.web.deploy.replica; did you mean replicas?"),
        ({"services": {"web": {"healthcheck": {"tests": 1}}}}, "unknown key services.web.healthcheck.tests"),
        ({"services": {"web": {"deploy": []}}}, "services.web.deploy must be a mapping, not a list"),
        ({"services": []}, "services must be a mapping, not a list"),
        ({"service": {}}, "unknown key service; did you mean services?"),
        ({"networks": {"a": {"drivr": "x"}}}, "unknown key networks.a.drivr; did you mean driver?"),
        ({"include": []}, "unsupported key include"),
    ],
)
def test_refused_by_name(document, words):
    assert words in refusal(document)


def test_ignored_keys_are_said_by_name_and_extensions_are_the_users_own():
    said = []
    keys.check({"version": "3", "x-mine": 1, "services": {"web": {"image": "i", "container_name": "c", "x-y": 2}}}, said.append)
    assert [text.split(":")[0] for text in said] == ["ignoring services.web.container_name"]
