"""`status` and `instances`: for programs the contract, for people what they look for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from spearpool import __version__
from spearpool.cli.inspect import _limit
from tests.cli.running import invoke
from tests.conftest import eventually
from tests.integration.live_pool import HANDLERS, LivePool, live_pool, private_env

pytestmark = pytest.mark.process

CONFIG = f"""
[pool]
name = "shop"
workers = 2
[tasks.upper]
target = "{HANDLERS}:upper"
[tasks.upper.limits]
memory_bytes = 1073741824
nice = 5
[tasks.sum]
target = "exec:sha256sum"
min_instances = 2
[tasks.broken]
target = "agent:/bin/false"
"""

# What others build on, and what stands there besides.
STATUS = {"name", "version", "pid", "state", "uptime_s", "host", "port", "workers", "tasks", "instances", "totals"}
MORE_STATUS = {"steering", "cgroup", "warnings"}
WORKER = {"slot", "pid", "state", "incarnation", "restarts", "connections", "authenticated", "accept_queue"}
MORE_WORKER = {"last_end"}
TASK = {"name", "target", "instances", "queued", "in_flight"}
MORE_TASK = {"problem", "min_instances", "max_instances", "wanted"}
COUNTS = {"starting", "ready", "busy", "paused", "stopping", "failed"}
INSTANCE = {"instance_id", "task", "pid", "state", "worker", "started_s", "limits"}
MORE_INSTANCE = {"external", "in_flight", "restarts", "stages_ms"}
LIMIT = {"name", "value", "level", "usage", "breaches"}
TOTALS = {
    *("connections_opened", "connections_closed", "connections_open", "authenticated", "auth_failed"),
    *("messages_in", "messages_out", "bytes_in", "bytes_out", "executions_completed", "executions_failed"),
    *("heartbeat_timeouts", "ring_records", "ring_lost"),
}

Document = dict[str, Any]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePool]:
    root = tmp_path_factory.mktemp("pool")
    config = root / "pool.toml"
    config.write_text(CONFIG)
    with live_pool(private_env(root), "--config", str(config)) as pool:
        yield pool


def _show(pool: LivePool, *words: str) -> str:
    said = invoke(pool.env, words[0], "--name", "shop", *words[1:])
    assert (said.code, said.err) == (0, "")
    return said.out.decode()


def _status(pool: LivePool) -> Document:
    document: Document = json.loads(_show(pool, "status", "--json"))
    return document


def test_status_for_programs(pool: LivePool) -> None:
    status = _status(pool)
    assert set(status) == STATUS | MORE_STATUS
    assert (status["name"], status["version"], status["state"]) == ("shop", __version__, "ready")
    assert (status["pid"], status["host"], status["port"]) == tuple(pool.ready[key] for key in ("pid", "host", "port"))
    assert status["uptime_s"] > 0
    assert [set(worker) for worker in status["workers"]] == [WORKER | MORE_WORKER] * 2
    assert [(worker["slot"], worker["state"]) for worker in status["workers"]] == [(0, "ready"), (1, "ready")]
    for worker in status["workers"]:
        os.kill(worker["pid"], 0)
    assert set(status["totals"]) >= TOTALS
    assert all(isinstance(status["totals"][name], int) for name in TOTALS)


def test_tasks_and_instances_for_programs(pool: LivePool) -> None:
    status = _status(pool)
    tasks = {task["name"]: task for task in status["tasks"]}
    assert list(tasks) == ["upper", "sum", "broken"]
    for task in tasks.values():
        assert set(task) == TASK | MORE_TASK
        assert set(task["instances"]) == COUNTS
    assert tasks["sum"]["instances"]["ready"] == 2
    assert tasks["broken"]["instances"]["failed"] > 0
    assert "exited with code 1" in tasks["broken"]["problem"]
    serving = [row for row in status["instances"] if row["task"] != "broken"]
    assert len(serving) == 3
    for row in serving:
        assert set(row) == INSTANCE | MORE_INSTANCE
        assert (row["state"], row["worker"] in {0, 1}) == ("ready", True)
        os.kill(row["pid"], 0)
    (limited,) = [row for row in serving if row["task"] == "upper"]
    limits = {limit["name"]: limit for limit in limited["limits"]}
    assert {frozenset(limit) for limit in limits.values()} == {frozenset(LIMIT)}
    assert limits["nice"]["value"] == 5
    assert limits["memory_bytes"]["value"] == 1 << 30
    assert limits["memory_bytes"]["level"] in {"enforced", "watched"}


def test_usage_is_sampled(pool: LivePool) -> None:
    def used() -> list[int]:
        rows = json.loads(_show(pool, "instances", "--task", "upper", "--json"))
        return [x["usage"] for row in rows for x in row["limits"] if x["name"] == "memory_bytes" and x["usage"]]

    (usage,) = eventually(used, 10)
    assert 1 << 20 < usage < 1 << 30


def test_totals_count_what_was_executed(pool: LivePool) -> None:
    before = _status(pool)["totals"]
    with pool.client() as client:
        for _ in range(3):
            client.execute("sum", input=b"x")
    after = _status(pool)["totals"]
    assert after["executions_completed"] == before["executions_completed"] + 3
    assert after["connections_opened"] == before["connections_opened"] + 1


def test_status_for_people(pool: LivePool) -> None:
    text = _show(pool, "status")
    first, *rest = text.splitlines()
    assert first.startswith(f"pool shop ready on {pool.address} · pid {pool.process.pid} · up ")
    assert first.endswith(f"spearpool {__version__}")
    assert any(line.startswith("warning: task 'broken' has 0 of 1 instances: ") for line in rest)
    for title in ("workers", "tasks", "instances"):
        assert title in [line.strip() for line in rest]
    assert "memory_bytes 1.0 GiB" in " ".join(text.split())
    assert rest[-1].startswith("executions ")
    assert "\x1b" not in text


def test_instances_of_one_task(pool: LivePool) -> None:
    everything = json.loads(_show(pool, "instances", "--json"))
    assert {row["task"] for row in everything} >= {"upper", "sum"}
    rows = json.loads(_show(pool, "instances", "--task", "sum", "--json"))
    assert [row["task"] for row in rows] == ["sum", "sum"]
    assert json.loads(_show(pool, "instances", "--task", "nothing", "--json")) == []
    text = _show(pool, "instances", "--task", "sum")
    for row in rows:
        assert row["instance_id"] in text
        assert str(row["pid"]) in text
    assert "upper" not in text


@pytest.mark.parametrize("command", ["status", "instances"])
def test_no_such_pool(pool: LivePool, command: str) -> None:
    said = invoke(pool.env, command, "--name", "nobody")
    assert (said.code, said.out) == (3, b"")
    assert "no pool 'nobody' is running" in said.err


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (
            {"name": "memory_bytes", "value": 64 << 20, "level": "enforced", "usage": 1536},
            "64.0 MiB enforced (1.5 KiB)",
        ),
        ({"name": "open_files", "value": 64, "level": "watched", "usage": 0}, "64 watched (0)"),
        ({"name": "nice", "value": 5, "level": "enforced", "usage": None}, "5 enforced (?)"),
        ({"name": "nice", "value": -1, "level": "enforced", "usage": -1}, "-1 enforced (-1)"),
        ({"name": "memory_bytes", "value": -1, "level": "watched", "usage": 1536}, "unlimited watched (1.5 KiB)"),
    ],
)
def test_a_limit_in_short(limit: Document, text: str) -> None:
    assert _limit(limit) == f"{limit['name']} {text}"
