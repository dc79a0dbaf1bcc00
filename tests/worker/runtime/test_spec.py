"""What a config may not say, and that the error names the field."""

from __future__ import annotations

import copy
import json

import pytest

from worker.runtime import spec
from worker.runtime.errors import SpecFault

GOOD = {
    "ociVersion": "1.0.2",
    "root": {"path": "rootfs"},
    "process": {"args": ["true"], "cwd": "/"},
    "linux": {
        "namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "network"}, {"type": "ipc"}],
        "cgroupsPath": "/covey/x",
    },
}


def changed(path: str, value: object) -> dict:
    config = copy.deepcopy(GOOD)
    target = config
    *parents, last = path.split(".")
    for key in parents:
        target = target.setdefault(key, {})
    target[last] = value
    return config


def test_the_smallest_config_is_good():
    spec.check(GOOD)


@pytest.mark.parametrize("version", ["1.0.0", "1.2.10-rc.1", "1.0.2-a-b+build-1.x", "1.3.0+x"])
def test_versions_that_are_ours(version):
    spec.check({**GOOD, "ociVersion": version})


def test_unknown_fields_are_let_through():
    spec.check({**GOOD, "vendor": {"x": 1}, "annotations": {"a": "b"}})


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("ociVersion", "2.0.0", "ociVersion"),
        ("ociVersion", "latest", "ociVersion"),
        ("ociVersion", "1.0", "ociVersion"),
        ("ociVersion", "1.00.0", "ociVersion"),
        ("ociVersion", "1.0.0-", "ociVersion"),
        ("ociVersion", "1.0.0-a..b", "ociVersion"),
        ("ociVersion", "1.0.0+ä", "ociVersion"),
        ("ociVersion", "1.²3.0", "ociVersion"),
        ("root", None, "root.path"),
        ("root.readonly", "yes", "root.readonly"),
        ("process", None, "process"),
        ("process.args", [], "process.args"),
        ("process.args", ["a\0b"], "process.args"),
        ("process.cwd", "relative", "process.cwd"),
        ("process.env", ["NOVALUE"], "process.env[0]"),
        ("process.rlimits", [{"type": "RLIMIT_WHAT", "soft": 1, "hard": 1}], "process.rlimits[0].type"),
        ("process.rlimits", [{"type": "RLIMIT_CPU", "soft": 3, "hard": 1}], "process.rlimits[0].soft"),
        ("process.user", {"uid": -1}, "process.user.uid"),
        ("process.user", {"uid": 0, "additionalGids": ["wheel"]}, "process.user.additionalGids"),
        ("process.apparmorProfile", 5, "process.apparmorProfile"),
        ("hooks", {"prestart": [{"path": "bin/true"}]}, "hooks.prestart[0].path"),
        ("mounts", [{"type": "tmpfs"}], "mounts[0].destination"),
        ("mounts", [{"destination": "/./", "type": "tmpfs"}], "mounts[0].destination"),
        ("mounts", [{"destination": "/x", "type": "bind"}], "mounts[0].source"),
        ("mounts", [{"destination": "/x"}], "mounts[0].type"),
        ("linux.namespaces", [{"type": "uts"}], "linux.namespaces"),
        ("linux.namespaces", [{"type": "mount"}, {"type": "mount"}], "linux.namespaces[1].type"),
        ("linux.namespaces", [{"type": "mount"}, {"type": "tim"}], "linux.namespaces[1].type"),
        ("linux.cgroupsPath", "covey/../x", "linux.cgroupsPath"),
        ("linux.cgroupsPath", "system.slice:covey:x", "linux.cgroupsPath"),
        ("linux.cgroupsPath", "/covey/../../x", "linux.cgroupsPath"),
        ("linux.cgroupsPath", "//./", "linux.cgroupsPath"),
        ("linux.sysctl", {"vm.swappiness": "1"}, "linux.sysctl.vm.swappiness"),
        ("linux.sysctl", {"net.../../kernel/panic": "1"}, "linux.sysctl.net.../../kernel/panic"),
        ("linux.sysctl", {"kernel.shmmax": 1}, "linux.sysctl.kernel.shmmax"),
        ("linux.devices", [{"path": "/dev/x", "type": "z"}], "linux.devices[0].type"),
        ("linux.seccomp", {"syscalls": []}, "linux.seccomp.defaultAction"),
    ],
)
def test_a_bad_field_is_named(path, value, field):
    with pytest.raises(SpecFault) as caught:
        spec.check(changed(path, value))
    assert caught.value.field == field
    assert caught.value.code == "invalid"


def test_a_sysctl_needs_its_namespace():
    config = changed("linux.namespaces", [{"type": "mount"}])
    config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    with pytest.raises(SpecFault, match="needs a network namespace"):
        spec.check(config)


def test_a_hostname_needs_its_namespace():
    config = changed("linux.namespaces", [{"type": "mount"}])
    with pytest.raises(SpecFault, match="hostname"):
        spec.check({**config, "hostname": "x"})


def test_load_makes_the_root_absolute(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    assert spec.load(str(tmp_path))["root"]["path"] == str(tmp_path / "rootfs")


@pytest.mark.parametrize(("given", "wanted"), [("x", "/p/x"), ("a/b", "/p/a/b"), (None, "/p/me"), ("/abs", "/abs")])
def test_a_cgroups_path_is_completed(tmp_path, given, wanted):
    (tmp_path / "config.json").write_text(json.dumps(changed("linux.cgroupsPath", given)))
    assert spec.load(str(tmp_path), "me", "/p")["linux"]["cgroupsPath"] == wanted


def test_load_of_what_is_not_there(tmp_path):
    with pytest.raises(SpecFault, match="there is none at"):
        spec.load(str(tmp_path))
