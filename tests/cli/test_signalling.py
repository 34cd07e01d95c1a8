"""`signal`: a real instance that rests, goes on, hears, ends."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import Said, invoke
from tests.conftest import RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, LivePool, live_pool

pytestmark = pytest.mark.process

CONFIG = f"""
[pool]
workers = 2
worker_hang_timeout_s = 30
[connections]
heartbeat_interval = 0.2
heartbeat_timeout = 0.6
[tasks.thumb]
target = "{HANDLERS}:told"
start_timeout_s = 2.0
"""


@pytest.fixture
def pool(runtime_env: RuntimeEnv, tmp_path: Path) -> Iterator[LivePool]:
    config = tmp_path / "pool.toml"
    config.write_text(CONFIG)
    with live_pool(runtime_env, "--config", str(config)) as pool:
        yield pool


def only(pool: LivePool) -> dict[str, Any]:
    (row,) = pool.status()["instances"]
    found: dict[str, Any] = row
    return found


def settled(pool: LivePool) -> dict[str, Any]:
    """The one instance, once it is there and ready."""
    eventually(lambda: [row["state"] for row in pool.status()["instances"]] == ["ready"], 20)
    return only(pool)


def send(pool: LivePool, what: str, *options: str) -> Said:
    return invoke(pool.env, "signal", only(pool)["instance_id"], what, *options)


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_paused_one_gets_nothing_until_it_is_resumed(pool: LivePool) -> None:
    before = settled(pool)
    said = send(pool, "pause")
    assert (said.code, said.out.decode(), said.err) == (0, f"{before['instance_id']}: paused\n", "")
    assert only(pool)["state"] == "paused"
    assert pool.status()["tasks"][0]["instances"]["paused"] == 1
    with pool.client() as client:
        waiting = client.submit("thumb")
        eventually(lambda: pool.status()["tasks"][0]["queued"] == 1, 10)
        assert not waiting.done()
        said = send(pool, "resume", "--json")
        assert json.loads(said.out)["done"] == "resumed"
        assert waiting.result(10).output == b""
    assert settled(pool)["pid"] == before["pid"]


def test_a_pause_outlives_workers_that_die_and_workers_that_leave(pool: LivePool) -> None:
    before = settled(pool)
    assert send(pool, "pause").code == 0
    slot = only(pool)["worker"]
    os.kill(pool.status()["workers"][slot]["pid"], signal.SIGKILL)
    eventually(lambda: [worker["state"] for worker in pool.status()["workers"]] == ["ready"] * 2, 20)
    eventually(lambda: only(pool)["state"] == "paused", 10)
    slot = only(pool)["worker"]
    before_leave = pool.status()["workers"][slot]["pid"]
    os.kill(before_leave, signal.SIGTERM)
    eventually(lambda: pool.status()["workers"][slot]["pid"] not in {before_leave, None}, 20)
    eventually(lambda: only(pool)["state"] == "paused", 10)
    with pool.client() as client:
        waiting = client.submit("thumb")
        eventually(lambda: pool.status()["tasks"][0]["queued"] == 1, 10)
        assert not waiting.done()
        assert send(pool, "resume").code == 0
        waiting.result(10)
    assert settled(pool)["pid"] == before["pid"]


def test_one_whose_processes_are_stopped_is_not_taken_for_silent(pool: LivePool) -> None:
    before = settled(pool)
    said = send(pool, "pause", "--stop-process")
    assert said.out.decode().endswith("paused, and its processes are stopped\n")
    eventually(lambda: process_state(before["pid"]) == "T", 5)
    timeouts = pool.status()["totals"]["heartbeat_timeouts"]
    time.sleep(2.0)  # several heartbeat timeouts
    assert only(pool)["state"] == "paused"
    assert only(pool)["worker"] == before["worker"], "its connection is still there"
    assert send(pool, "resume").code == 0
    with pool.client() as client:
        assert client.execute("thumb", timeout=10) == b""
    assert pool.status()["totals"]["heartbeat_timeouts"] == timeouts
    assert settled(pool)["pid"] == before["pid"]


def test_a_stopped_one_ends_when_it_is_told_to(pool: LivePool) -> None:
    before = settled(pool)
    assert send(pool, "pause", "--stop-process").code == 0
    assert send(pool, "terminate").code == 0
    eventually(lambda: not Path(f"/proc/{before['pid']}").exists(), 10)
    after = settled(pool)
    assert after["pid"] != before["pid"]
    assert pool.status()["tasks"][0]["instances"]["failed"] == 0


def test_a_name_reaches_the_program(pool: LivePool) -> None:
    settled(pool)
    for name in ("reload-model", "dump.1", "trouble"):
        said = send(pool, name)
        assert (said.code, said.out.decode().partition(": ")[2]) == (0, "told\n")
    with pool.client() as client:
        eventually(lambda: client.execute("thumb") == b"reload-model dump.1 trouble", 10)


def test_restart(pool: LivePool) -> None:
    before = settled(pool)
    assert send(pool, "restart").code == 0
    eventually(lambda: before["pid"] not in [row["pid"] for row in pool.status()["instances"]], 10)
    assert settled(pool)["restarts"] == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nobody", "pause"], 1, "no instance is named 'nobody'; there are: thumb-"),
        (["thumb-9-9", "pause"], 1, "no instance is named 'thumb-9-9'; did you mean thumb-"),
        (["nobody", "@nudge"], 2, "letters, digits, dashes and dots"),
        (["nobody", "two words"], 2, "letters, digits, dashes and dots"),
        (["nobody", "resume", "--stop-process"], 2, "--stop-process goes with pause"),
        (["nobody"], 2, "Missing argument"),
        (["nobody", "pause", "--name", "none-such"], 3, "no pool 'none-such' is running"),
    ],
)
def test_refused(pool: LivePool, words: list[str], code: int, message: str) -> None:
    settled(pool)
    said = invoke(pool.env, "signal", *words)
    assert (said.code, said.out) == (code, b""), said
    assert message in said.err
