"""Services that wait for others, on a real cluster: for a start, a health check, a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from covey.testing.lab import Lab

from .conftest import IMAGE, command

pytestmark = pytest.mark.e2e

STACK = f"""
services:
  web:
    image: {IMAGE}
    command: ["sleep", "1000"]
    init: true
    stop_grace_period: 500ms
    depends_on:
      db: {{condition: service_healthy}}
      migrate: {{condition: service_completed_successfully}}
    deploy: {{replicas: 2}}
  migrate:
    image: {IMAGE}
    command: ["sh", "-c", "sleep 0.3; echo migrated"]
    depends_on: {{db: {{condition: service_healthy}}}}
  db:
    image: {IMAGE}
    init: true
    stop_grace_period: 500ms
    command: ["sh", "-c", "sleep 1; touch /ready; sleep 1000"]
    healthcheck: {{test: ["CMD", "test", "-e", "/ready"], interval: 200ms, retries: 50, start_period: 10s}}
"""


def messages(lab: Lab, service: str) -> set[str]:
    return {task["Status"].get("Err", "") for task in lab.tasks(service)}


def test_a_stack_starts_in_the_order_of_its_dependencies(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "shop.yml").write_text(STACK)
    done = command(lab.manager, "cluster", "stack", "deploy", "-c", str(tmp_path / "shop.yml"), "shop")
    assert "waiting for service shop_db to be healthy" in done.stdout

    def at(service: str) -> list[str]:
        return [task["Status"]["Timestamp"] for task in lab.tasks(service)]

    (db,), (migrate,), web = at("shop_db"), at("shop_migrate"), at("shop_web")
    assert db < migrate < min(web), lab.report()
    assert len(lab.running("shop_web")) == 2
    assert [task["Status"]["State"] for task in lab.tasks("shop_migrate")] == ["complete"]
    again = command(lab.manager, "cluster", "stack", "deploy", "-c", str(tmp_path / "shop.yml"), "shop")
    assert again.stdout.count("is up to date") == 3, "a job that has run is not run again by the same file"
    command(lab.manager, "cluster", "stack", "rm", "shop")


def test_everyone_is_told_what_a_task_waits_for(lab: Lab) -> None:
    options: tuple[Any, ...] = ("--name", "late", "--depends-on", "early=started", "--stop-grace-period", "1s", "--detach")
    command(lab.manager, "cluster", "service", "create", *options, IMAGE, "sleep", "1000")
    words = "waiting for service early, which does not exist"
    lab.wait_until(lambda: any(words in said for said in messages(lab, "late")), 10, "the task says what it waits for")
    for program in ("cluster", "docker"):
        shown = command(lab.manager, program, "service", "ps", "--no-trunc", "late").stdout
        assert words in shown, f"{program}: {shown}"
    assert not lab.running("late")
    command(
        lab.manager,
        "docker",
        "service",
        "create",
        "--name",
        "early",
        "--init",
        "--stop-grace-period",
        "1s",
        IMAGE,
        "sleep",
        "1000",
    )
    lab.wait_until(lambda: len(lab.running("late")) == 1, 10, "it goes on once the other runs")
