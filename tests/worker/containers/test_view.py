"""What clients are shown, and which containers a filter means. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from covey.errors import InvalidArgument
from worker.containers import health, list_filters, record, restart_policy, signals, stats, top, view
from worker.containers.record import Container, Health, Mount, Probe, State


def container(**given: Any) -> Container:
    state = given.pop("state", State(status=record.RUNNING, pid=7, started_at=100.0))
    return Container(
        id="a" * 64,
        name="web",
        created=50.0,
        image_id="sha256:1",
        config={"Image": "busybox", "ExposedPorts": {"80/tcp": {}, "81/tcp": {}}, "Labels": {"k": "v"}},
        host_config={"NetworkMode": "default", "LogConfig": {"Type": "json-file"}},
        networks={"bridge": {"NetworkID": "n"}},
        path="sh",
        args=["-c", "echo hi"],
        state=state,
        **given,
    )


LIVE = view.Live(directory="/d", ports={"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}, image_name="busybox")


def test_summary() -> None:
    shown = view.summary(container(), LIVE, 400.0)
    assert (shown["Names"], shown["State"], shown["Status"]) == (["/web"], "running", "Up 5 minutes")
    assert shown["Command"] == "sh -c 'echo hi'"
    assert shown["Ports"] == [
        {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
        {"PrivatePort": 81, "Type": "tcp"},
    ]


def test_inspect_has_what_clients_read() -> None:
    shown = view.inspect(
        container(mounts=[Mount(type="volume", name="v", source="/s", destination="/d", driver="local")]), LIVE
    )
    assert (shown["Name"], shown["LogPath"]) == ("/web", f"/d/{'a' * 64}-json.log")
    assert shown["NetworkSettings"]["Ports"] == {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "81/tcp": None}
    assert shown["Mounts"] == [
        {"Type": "volume", "Name": "v", "Source": "/s", "Destination": "/d", "Driver": "local", "Mode": "", "RW": True,
         "Propagation": ""},
    ]  # fmt: skip
    assert shown["State"]["StartedAt"] == "1970-01-01T00:01:40Z"
    assert shown["State"]["FinishedAt"] == "0001-01-01T00:00:00Z"
    assert "Health" not in shown["State"]


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (State(), "Created"),
        (State(status="exited", exit_code=3, finished_at=100.0), "Exited (3) 10 seconds ago"),
        (State(status="paused", started_at=109.5), "Up Less than a second (Paused)"),
        (State(status="running", started_at=100.0, health=Health(status="healthy")), "Up 10 seconds (healthy)"),
        (State(status="running", started_at=100.0, health=Health()), "Up 10 seconds (health: starting)"),
        (State(status="restarting", exit_code=1, finished_at=100.0), "Restarting (1) 10 seconds ago"),
        (State(status="dead"), "Dead"),
    ],
)
def test_status_words(state: State, text: str) -> None:
    assert view.status_text(container(state=state), 110.0) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (150, "2 minutes"),
        (3600, "About an hour"), (7200, "2 hours"), (172800, "2 days"), (1209600, "2 weeks"), (5184000, "2 months"),
        (80000000, "2 years"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert view.duration(seconds) == text


@pytest.mark.parametrize(
    ("filters", "fits"),
    [
        ({"label": ["k=v"]}, True),
        ({"label": ["k=w"]}, False),
        ({"label": ["k", "other"]}, False),
        ({"name": ["^/web$"]}, True),
        ({"status": ["exited", "running"]}, True),
        ({"publish": ["80"]}, False),
        ({"expose": ["80-90/tcp"]}, True),
        ({"expose": ["80/udp"]}, False),
        ({"network": ["bridge"]}, True),
        ({"health": ["none"]}, True),
        ({"is-task": ["true"]}, False),
        ({"ancestor": ["busybox"]}, True),
        ({"id": ["aaa"], "name": ["x"]}, False),
    ],
)
def test_filters(filters: dict[str, list[str]], fits: bool) -> None:
    one = container()
    shown = view.summary(one, LIVE, 400.0)
    assert list_filters.fits(one, shown, filters, {"busybox": frozenset({"sha256:1"})}) is fits


def test_filter_values_that_cannot_be() -> None:
    with pytest.raises(InvalidArgument, match="invalid filter 'status=sleeping'"):
        list_filters.check({"status": ["sleeping"]})


def test_health_is_judged_by_dockers_rules() -> None:
    state = Health()
    bad, good = (Probe(start=0, end=1, exit_code=code, output="") for code in (1, 0))
    health.judge(state, bad, 2, in_start_period=True)
    assert (state.status, state.failing_streak) == ("starting", 0), "a failure in the start period does not count"
    health.judge(state, bad, 2, in_start_period=False)
    health.judge(state, bad, 2, in_start_period=False)
    assert (state.status, state.failing_streak) == ("unhealthy", 2)
    health.judge(state, good, 2, in_start_period=False)
    assert (state.status, state.failing_streak) == ("healthy", 0)
    health.judge(state, bad, 2, in_start_period=True)
    assert state.failing_streak == 1, "after the first success the start period is over"
    for _ in range(9):
        health.judge(state, good, 2, in_start_period=False)
    assert len(state.log) == 5


def test_health_commands() -> None:
    assert health.test({"Healthcheck": {"Test": ["CMD-SHELL", "x y"]}}) == ["/bin/sh", "-c", "x y"]
    assert health.test({"Healthcheck": {"Test": ["CMD", "x", "y"]}}) == ["x", "y"]
    assert health.test({"Healthcheck": {"Test": ["NONE"]}}) is None
    assert health.schedule({"Healthcheck": {"Interval": 2_000_000_000, "Retries": 0}}) == health.Schedule(interval=2.0)


@pytest.mark.parametrize(
    ("policy", "code", "restarts", "stopped", "again"),
    [
        ({"Name": "no"}, 1, 0, False, False),
        ({"Name": "always"}, 0, 9, False, True),
        ({"Name": "always"}, 0, 0, True, False),
        ({"Name": "unless-stopped"}, 0, 0, False, True),
        ({"Name": "on-failure"}, 0, 0, False, False),
        ({"Name": "on-failure", "MaximumRetryCount": 2}, 1, 1, False, True),
        ({"Name": "on-failure", "MaximumRetryCount": 2}, 1, 2, False, False),
    ],
)
def test_restart_policies(policy: dict[str, Any], code: int, restarts: int, stopped: bool, again: bool) -> None:
    assert restart_policy.wanted(policy, code, restarts, stopped) is again


def test_restart_delays_double_and_start_again_after_a_long_run() -> None:
    delays = [0.0]
    for _ in range(12):
        delays.append(restart_policy.delay(delays[-1], 1.0))
    assert delays[1:4] == [0.1, 0.2, 0.4]
    assert delays[-1] == 60.0
    assert restart_policy.delay(60.0, 10.0) == 0.1


def test_signals() -> None:
    assert [signals.parse(text) for text in ("KILL", "sigterm", "15", "RTMIN+1")] == [9, 15, 15, 35]
    for wrong in ("NOPE", "0", "99", "RTMIN+99"):
        with pytest.raises(InvalidArgument, match="invalid signal"):
            signals.parse(wrong)


def test_stats_without_a_process_are_zeros_and_rates_need_the_sample_before() -> None:
    raw = {"cpu": {"total_ns": 5}, "memory": {"usage": 3, "limit": 1 << 62}, "pids": {"current": 1}, "blkio": []}
    common = {"now": 1.0, "system_ns": 100, "cpus": 2, "machine": 1000}
    empty = stats.sample(container(), None, {}, before=None, **common)
    assert (empty["read"], empty["cpu_stats"]["cpu_usage"]["total_usage"]) == (stats.NO_TIME, 0)
    first = stats.sample(container(), raw, {}, before=None, **common)
    second = stats.sample(container(), raw, {"eth0": {"rx_bytes": 1}}, before=first, **common)
    assert second["precpu_stats"] == first["cpu_stats"]
    assert second["memory_stats"]["limit"] == 1000, "no limit shows the machine's memory"
    assert second["networks"] == {"eth0": {"rx_bytes": 1}}


def test_top_keeps_our_processes() -> None:
    text = "UID PID CMD\nroot 1 init x\nroot 22 sleep 100\n"
    assert top.table(text, {22}) == {"Titles": ["UID", "PID", "CMD"], "Processes": [["root", "22", "sleep 100"]]}
    with pytest.raises(InvalidArgument, match="PID"):
        top.table("UID CMD\n", {1})
