"""What update sends, and how a row of stats is counted."""

from __future__ import annotations

from typing import Any

import pytest

from cli.container_live import UPDATE, stats_row, update_body
from covey.errors import InvalidArgument


def flags(**given: Any) -> dict[str, Any]:
    return {**{flag.key: None for flag in UPDATE}, **given}


def test_update_sends_only_what_was_given() -> None:
    assert update_body(flags(memory="64m", memory_swap="-1", cpus="0.5", pids_limit=9, restart="on-failure:2")) == {
        "Memory": 64 << 20, "MemorySwap": -1, "NanoCpus": 500_000_000, "PidsLimit": 9,
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2},
    }  # fmt: skip
    for wrong, words in (
        (flags(), "nothing to change"),
        (flags(memory="x"), "--memory"),
        (flags(restart="often"), "--restart"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            update_body(wrong)


def sample(total: int, system: int) -> dict[str, Any]:
    return {
        "id": "a" * 64,
        "name": "/web",
        "cpu_stats": {"cpu_usage": {"total_usage": total}, "system_cpu_usage": system, "online_cpus": 2},
        "memory_stats": {"usage": 40 << 20, "limit": 64 << 20, "stats": {"total_inactive_file": 8 << 20}},
        "networks": {"eth0": {"rx_bytes": 1500, "tx_bytes": 500}, "eth1": {"rx_bytes": 500, "tx_bytes": 0}},
        "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 4096}, {"op": "Write", "value": 1000}]},
        "pids_stats": {"current": 3},
    }


def test_a_row_of_stats() -> None:
    row = stats_row(sample(1_000, 10_000), sample(1_500, 12_000))
    assert row == {
        "ID": "a" * 12, "Container": "a" * 12, "Name": "web", "CPUPerc": "50.00%", "MemUsage": "32MiB / 64MiB",
        "MemPerc": "50.00%", "NetIO": "2kB / 500B", "BlockIO": "4.1kB / 1kB", "PIDs": "3",
    }  # fmt: skip


def test_a_row_of_what_does_not_run() -> None:
    row = stats_row(None, {"id": "b" * 64, "name": "/x", "cpu_stats": {}, "memory_stats": {}, "blkio_stats": {}})
    assert (row["CPUPerc"], row["MemPerc"], row["PIDs"]) == ("0.00%", "0.00%", "0")
