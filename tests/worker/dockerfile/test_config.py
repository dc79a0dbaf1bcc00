"""Dockerfile instructions on a container configuration."""

from __future__ import annotations

from typing import Any

import pytest

from covey.errors import InvalidArgument
from worker.dockerfile import config


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['CMD ["a", "b"]'], {"Cmd": ["a", "b"]}),
        (["CMD a b"], {"Cmd": ["/bin/sh", "-c", "a b"]}),
        (["entrypoint [\"/e\"]"], {"Entrypoint": ["/e"]}),
        (["ENV A=1 B='two words'", "ENV A=3"], {"Env": ["A=3", "B=two words"]}),
        (["ENV A all of it"], {"Env": ["A=all of it"]}),
        (["WORKDIR /a", "WORKDIR b/../c"], {"WorkingDir": "/a/c"}),
        (["EXPOSE 80 53/udp 8000-8002"], {"ExposedPorts": {f"{p}": {} for p in
            ("80/tcp", "53/udp", "8000/tcp", "8001/tcp", "8002/tcp")}}),
        (["USER www:www"], {"User": "www:www"}),
        (['VOLUME ["/a b"]', "VOLUME /c /d"], {"Volumes": {"/a b": {}, "/c": {}, "/d": {}}}),
        (['LABEL a=b "c d"="e f"'], {"Labels": {"a": "b", "c d": "e f"}}),
        (["STOPSIGNAL SIGQUIT\nONBUILD RUN x\n# remark\n"], {"StopSignal": "SIGQUIT", "OnBuild": ["RUN x"]}),
        (["HEALTHCHECK --interval=1m30s --retries=2 CMD true"],
            {"Healthcheck": {"Interval": 90 * 10**9, "Retries": 2, "Test": ["CMD-SHELL", "true"]}}),
        (["HEALTHCHECK NONE"], {"Healthcheck": {"Test": ["NONE"]}}),
        (['SHELL ["/bin/ash", "-c"]'], {"Shell": ["/bin/ash", "-c"]}),
    ],
)  # fmt: skip
def test_instructions(lines: list[str], expected: dict[str, Any]) -> None:
    assert config.changed({}, lines) == expected


@pytest.mark.parametrize(
    "line",
    [
        "RUN ls", "CMD", "ENV A", "ENV A=1 B", "LABEL x", "EXPOSE 0", "EXPOSE 70000", "EXPOSE 9-8", "EXPOSE web",
        "EXPOSE 80/icmp", "ENV A='open", "STOPSIGNAL now!", "HEALTHCHECK MAYBE", "HEALTHCHECK --interval=x CMD y",
        "VOLUME [\"\"]", "SHELL sh",
    ],
)  # fmt: skip
def test_refusals_name_the_instruction(line: str) -> None:
    with pytest.raises(InvalidArgument):
        config.changed({}, [line])


def test_the_given_config_is_not_changed() -> None:
    before = {"Labels": {"a": "b"}}
    config.changed(before, ["LABEL c=d"])
    assert before == {"Labels": {"a": "b"}}
