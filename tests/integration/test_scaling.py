"""A real pool has as many instances as there is work for: from none and back, within bounds, budget and lifetimes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, LivePool, live_pool

pytestmark = pytest.mark.process

CONFIG = f"""
[pool]
workers = 2
[budget]
memory_bytes = 1073741824
[tasks.rare]
target = "exec:cat"
min_instances = 0
max_instances = 3
idle_timeout_s = 1.0
[tasks.slow]
target = "{HANDLERS}:sleep"
min_instances = 0
max_instances = 3
idle_timeout_s = 600.0
[tasks.worn]
target = "{HANDLERS}:pid"
max_executions = 10
[tasks.large]
target = "{HANDLERS}:pid"
min_instances = 0
max_instances = 4
[tasks.large.limits]
memory_bytes = 536870912
"""
Document = dict[str, Any]
PATIENCE_S = 20 * TIME_SCALE


@pytest.fixture
def pool(runtime_env: RuntimeEnv, tmp_path: Path) -> Iterator[LivePool]:
    config = tmp_path / "pool.toml"
    config.write_text(CONFIG)
    with live_pool(runtime_env, "--config", str(config)) as pool:
        yield pool


def _task(pool: LivePool, name: str) -> Document:
    (task,) = [task for task in pool.status()["tasks"] if task["name"] == name]
    return dict(task)


def _living(pool: LivePool, name: str) -> int:
    instances = _task(pool, name)["instances"]
    return int(instances["ready"] + instances["busy"] + instances["starting"])


def test_from_none_to_an_answer_and_back(pool: LivePool) -> None:
    for _ in range(2):
        assert eventually(lambda: _living(pool, "rare") == 0, PATIENCE_S)
        with pool.client() as client:
            assert client.execute("rare", input=b"awake", timeout=PATIENCE_S) == b"awake"
        assert _living(pool, "rare") <= 1
    problem = _task(pool, "rare")["problem"]
    assert (problem, _task(pool, "rare")["instances"]["failed"]) == ("", 0), "a retirement is no failure"


def test_a_crowd_has_as_many_as_allowed_and_every_answer(pool: LivePool) -> None:
    with pool.client() as client:
        futures = [client.submit("slow", "0.3", timeout=PATIENCE_S) for _ in range(9)]
        assert eventually(lambda: _living(pool, "slow") == 3, PATIENCE_S)
        assert all(future.result().output for future in futures)
    assert _living(pool, "slow") == 3


def test_an_instance_goes_after_its_share_of_executions_and_nobody_notices(pool: LivePool) -> None:
    with pool.client() as client, ThreadPoolExecutor(4) as threads:
        seen = set(threads.map(lambda _: client.execute("worn", timeout=PATIENCE_S), range(60)))

        def three_were_seen() -> bool:
            seen.add(client.execute("worn", timeout=PATIENCE_S))
            return len(seen) >= 3

        assert eventually(three_were_seen, PATIENCE_S)
    assert _task(pool, "worn")["instances"]["failed"] == 0


def test_what_does_not_fit_is_told_and_comes_when_there_is_room(pool: LivePool) -> None:
    said = pool.cli("scale", "large=3")
    assert said.returncode == 1
    assert b"not enough memory: 536870912 bytes are wanted, and 1073741824 of 1073741824 are reserved" in said.stderr
    assert any("'large' has 2 of 3" in warning for warning in pool.status()["warnings"])
    with pool.client() as client:
        assert client.execute("large", timeout=PATIENCE_S), "those that fit serve"
    assert pool.cli("scale", "large=0..2", "--json").returncode == 0
    assert eventually(lambda: not pool.status()["warnings"], PATIENCE_S)


def test_bounds_are_moved_live(pool: LivePool) -> None:
    assert _living(pool, "slow") == 0
    said = pool.cli("scale", "slow=2..2", "--json")
    document = json.loads(said.stdout)
    assert (said.returncode, document["ready"], document["minimum"], document["maximum"]) == (0, 2, 2, 2)
    said = pool.cli("scale", "slow=1")
    assert said.stdout.decode().splitlines()[-1].startswith("task slow has 1 instances, 1..1 wanted")
    assert _living(pool, "slow") == 1


def test_a_task_that_never_fits_is_a_mistake(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text(CONFIG.replace("memory_bytes = 1073741824", "memory_bytes = 1000"))
    with pytest.raises(AssertionError, match="within the budget"), live_pool(runtime_env, "--config", str(config)):
        pass


def test_work_that_waits_behind_a_paused_instance_gets_another_one(pool: LivePool) -> None:
    with pool.client() as client:
        assert client.execute("rare", input=b"a", timeout=PATIENCE_S) == b"a"
        (first,) = [row["instance_id"] for row in pool.status()["instances"] if row["task"] == "rare"]
        assert pool.cli("signal", first, "pause").returncode == 0
        assert client.execute("rare", input=b"b", timeout=PATIENCE_S) == b"b"

        def left() -> list[tuple[str, str]]:
            return [(row["instance_id"], row["state"]) for row in pool.status()["instances"] if row["task"] == "rare"]

        assert eventually(lambda: left() == [(first, "paused")], PATIENCE_S), "the other one goes when it is idle"
        assert pool.cli("signal", first, "resume").returncode == 0
        assert eventually(lambda: _living(pool, "rare") == 0, PATIENCE_S)
