"""What a client asks of a build: read, completed, or refused with the name of the parameter. Pure."""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qs

import pytest

from covey.errors import InvalidArgument
from worker.build import options
from worker.build.options import BuildOptions
from worker.images.image import host_architecture


def read(query: str, headers: dict[str, str] | None = None) -> BuildOptions:
    found = parse_qs(query, keep_blank_values=True)
    return options.read(lambda name: found.get(name, [""])[0], lambda name: found.get(name, []), headers or {})


def test_defaults() -> None:
    assert read("") == BuildOptions()


def test_everything() -> None:
    found = read(
        "t=a&t=b:2&t=a:latest&q=1&nocache=1&pull=true&rm=0&forcerm=1&dockerfile=D&networkmode=host&target=x&timeout=9"
        "&memory=67108864&memswap=-1&cpushares=5&cpuperiod=10&cpuquota=20&cpusetcpus=0-1&cpusetmems=0&shmsize=4096&cgroupparent=/p"
        '&buildargs={"a":"b","unset":null}&labels={"k":"v"}&cachefrom=["x"]&extrahosts=h:1.2.3.4&platform=ARM64'
        '&ulimits=[{"Name":"nofile","Soft":1,"Hard":2}]&version=1'
    )
    assert [name.familiar for name in found.names] == ["a:latest", "b:2"]
    assert (found.quiet, found.use_cache, found.pull, found.remove, found.force_remove) == (True, False, True, False, True)
    assert (found.dockerfile, found.network, found.target, found.timeout) == ("D", "host", "x", 9.0)
    assert (found.arguments, found.labels, found.cache_from) == ({"a": "b"}, {"k": "v"}, ("x",))
    assert found.platform == "linux/arm64"
    assert found.limits == {
        "Memory": 64 << 20, "MemorySwap": -1, "CpuShares": 5, "CpuPeriod": 10, "CpuQuota": 20, "CpusetCpus": "0-1",
        "CpusetMems": "0",
        "ShmSize": 4096, "CgroupParent": "/p", "ExtraHosts": ["h:1.2.3.4"],
        "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
    }  # fmt: skip
    assert read("platform=linux").platform == f"linux/{host_architecture()}"


def test_headers() -> None:
    secrets = base64.b64encode(json.dumps({"t": base64.b64encode(b"\0x").decode()}).encode()).decode()
    config = base64.urlsafe_b64encode(json.dumps({"r.example": {"username": "ü?~"}}).encode()).decode().rstrip("=")
    found = read("", {"X-Covey-Build-Secrets": secrets, "X-Registry-Config": config})
    assert found.secrets == {"t": b"\0x"}
    assert found.credentials == {"r.example": {"username": "ü?~"}}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("version=2", "DOCKER_BUILDKIT=0"),
        ("session=x", "DOCKER_BUILDKIT=0"),
        ("outputs=[{}]", "outputs is refused"),
        ("squash=1", "squash is refused"),
        ("t=UPPER", "UPPER"),
        ("t=a@sha256:" + "a" * 64, "digest"),
        ("buildargs=[1]", "buildargs"),
        ("buildargs={", "buildargs"),
        ('labels={"a":1}', "labels"),
        ('cachefrom={"a":1}', "cachefrom"),
        ("ulimits=5", "ulimits"),
        ("memory=1g", "memory"),
        ("platform=plan9/mips", "platform"),
        ("isolation=hyperv", "isolation"),
        ("timeout=soon", "timeout"),
    ],
)
def test_refusals(query: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        read(query)


@pytest.mark.parametrize("text", ["%%%", "bm8gSlNPTg==", "WzFd"])
def test_bad_headers(text: str) -> None:
    for name in ("X-Registry-Config", "X-Covey-Build-Secrets"):
        with pytest.raises(InvalidArgument, match=name):
            read("", {name: text})
