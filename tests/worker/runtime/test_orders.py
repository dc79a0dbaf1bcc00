"""Orders are data: what a process would decide for itself, and what survives the trip to it."""

from __future__ import annotations

import copy

import pytest

from worker.runtime import limits, orders, zygote
from worker.runtime.errors import SpecFault
from worker.runtime.launch import plan_container
from worker.runtime.orders import Orders

from .test_launch import CONFIG, HOST, config

RESOURCES = {
    "memory": {"limit": 1 << 28, "swap": 1 << 29},
    "cpu": {"shares": 512, "quota": 50000, "period": 100000},
    "pids": {"limit": 64},
    "devices": [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
    ],
}
FULL = {
    "resources": RESOURCES,
    "devices": [{"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o600, "uid": 7}],
    "rootfsPropagation": "rshared",
    "timeOffsets": {"monotonic": {"secs": 5}},
    "namespaces": [*CONFIG["linux"]["namespaces"], {"type": "time"}],
}


def travelled(given: Orders) -> Orders:
    body = zygote.packed({"op": "fork_container", "orders": given.to_plain()})[4:]
    return Orders.from_plain(zygote.request_for_container(body)["orders"])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"resources": RESOURCES}, FULL], ids=["plain", "limited", "full"])
def test_what_arrives_is_what_the_process_would_have_decided(version, changes):
    wanted = config(**copy.deepcopy(changes))
    wanted["covey"] = {"seccomp": {"instructions": bytes(range(256)) * 2, "flags": ("log",)}}
    arrived = travelled(orders.of_container(wanted, HOST, version))
    plan = plan_container(wanted, HOST)
    assert list(arrived.plan.create) == list(plan.create)
    assert list(arrived.plan.start) == list(plan.start)
    assert arrived.plan.warnings == plan.warnings
    assert (arrived.cgroup, arrived.pipes_owner) == ("/covey/x", 5)
    resources = wanted["linux"].get("resources") or {}
    assert arrived.group.files == limits.files(limits.writes(resources, version))
    assert arrived.group.devices == (resources.get("devices") or [] if version == 2 else [])


def test_files_are_written_in_their_order_each_rule_by_itself():
    files = limits.files(limits.writes(RESOURCES, 1))
    assert [file for _, file, *_ in files[:2]] == ["devices.deny", "devices.allow"]
    assert files[0][2] == ["a"]
    assert files[1][2][-1] == "c 10:200 rwm"
    assert [value for _, file, values, *_ in files for value in values if not file.startswith("devices")] == [
        entry.value for entry in limits.writes(RESOURCES, 1) if not entry.file.startswith("devices")
    ]
    assert len({file for _, file, *_ in files}) == len(files)


def test_what_this_machine_has_nothing_for_is_refused_before_there_is_a_process():
    with pytest.raises(SpecFault, match=r"linux\.resources\.unified"):
        orders.of_container(config(resources={"unified": {"memory.high": "1"}}), HOST, 1)


def test_an_older_daemons_request_is_json():
    assert zygote.request_for_container(b'{"op": "fork_container", "id": "a"}') == {"op": "fork_container", "id": "a"}
    with pytest.raises(ValueError, match="Expecting"):
        zygote.request_for_container(b"{nothing")


def test_the_form_of_orders_follows_the_code(tmp_path, monkeypatch):
    for room in ("kernel", "runtime", "shim"):
        (tmp_path / room).mkdir()
    (tmp_path / "runtime/init.py").write_text("one")
    monkeypatch.setattr(zygote, "__file__", str(tmp_path / "runtime/zygote.py"))
    first = zygote.form_of_orders()
    assert zygote.form_of_orders() == first
    (tmp_path / "runtime/init.py").write_text("two")
    assert zygote.form_of_orders() != first
