"""Instances that reach the pool by its Unix socket: nobody else can, and nothing else is different for them."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, LivePool, agent_program, live_pool

pytestmark = pytest.mark.process

PATIENCE_S = 20 * TIME_SCALE
CONNECTED = "03"
"""A connected socket in the column `St` of /proc/net/unix; those that were accepted have their listener's path."""


def _connected(path: Path) -> int:
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(f" {path}") and line.split()[5] == CONNECTED for line in lines)


def _config(directory: Path) -> str:
    targets = {"python": f"{HANDLERS}:upper", "run": "exec:tr a-z A-Z", "plain": agent_program("plain_agent.py")}
    path = directory / "pool.toml"
    path.write_text(
        "".join(f'[tasks.{name}]\ntarget = "{target}"\ntransport = "unix"\n' for name, target in targets.items())
        + f'[tasks.tcp]\ntarget = "{HANDLERS}:upper"\n'
    )
    return str(path)


def _answers(pool: LivePool) -> list[bytes]:
    with pool.client() as client:
        return [client.execute(task, input=b"abc", timeout=PATIENCE_S) for task in ("python", "run", "plain", "tcp")]


def test_all_kinds_of_tasks_through_the_deaths_and_reloads_of_workers(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    with live_pool(runtime_env, "--workers", "3", "--config", _config(tmp_path)) as pool:
        path = Path(pool.ready["runtime_dir"]) / "agents.sock"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert _answers(pool) == [b"ABC"] * 4
        assert _connected(path) == 3, "and the fourth by TCP"
        before = {row["instance_id"] for row in pool.status()["instances"] if row["task"] == "run"}
        for worker in pool.status()["workers"]:
            os.kill(worker["pid"], signal.SIGKILL)
        assert _answers(pool) == [b"ABC"] * 4
        assert pool.cli("reload").returncode == 0
        assert _answers(pool) == [b"ABC"] * 4
        assert eventually(lambda: _connected(path) == 3, PATIENCE_S)
        after = {row["instance_id"] for row in pool.status()["instances"] if row["task"] == "run"}
        assert after == before, "nothing about it has changed"
    assert not path.exists()


def test_a_task_may_change_its_transport(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text('[tasks.run]\ntarget = "exec:cat"\n')
    with live_pool(runtime_env, "--config", str(config)) as pool, pool.client() as client:
        path = Path(pool.ready["runtime_dir"]) / "agents.sock"
        assert client.execute("run", input=b"a", timeout=PATIENCE_S) == b"a"
        assert _connected(path) == 0
        config.write_text('[tasks.run]\ntarget = "exec:cat"\ntransport = "unix"\n')
        assert pool.cli("reload").returncode == 0
        assert client.execute("run", input=b"b", timeout=PATIENCE_S) == b"b"
        assert eventually(lambda: _connected(path) == 1, PATIENCE_S)
