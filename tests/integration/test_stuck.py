"""An instance that lives and does not let go: killed with its tree, said in words, and followed by the next one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from spearpool.errors import ExecutionTimeout
from spearpool.processes import ProcessIdentity
from tests.conftest import RuntimeEnv, eventually

from .live_pool import HANDLERS, live_pool

pytestmark = pytest.mark.process

LIMITED = """
[tasks.stubborn]
target = "{handlers}:stubborn"
concurrency = 2
[tasks.stubborn.limits]
execution_timeout_s = 0.5

[tasks.neighbour]
target = "{handlers}:echo"
"""


def test_a_handler_that_does_not_let_go_is_killed_and_replaced(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text(LIMITED.format(handlers=HANDLERS))
    with live_pool(runtime_env, "--workers", "2", "--config", str(config)) as pool, pool.client() as client:
        before = next(row for row in pool.status()["instances"] if row["task"] == "stubborn")
        (limit,) = before["limits"]
        assert (limit["name"], limit["value"], limit["level"]) == ("execution_timeout_s", 0.5, "watched")
        grandchild = ProcessIdentity.of(int(client.execute("stubborn", "child")))
        beside = client.submit("stubborn", "600")
        with pytest.raises(ExecutionTimeout, match=r"the limit of its task, execution_timeout_s = 0\.5"):
            beside.result(20)
        assert client.execute("neighbour", input=b"well") == b"well"

        def replaced() -> bool:
            rows = [row for row in pool.status()["instances"] if row["task"] == "stubborn"]
            return [row["state"] for row in rows] == ["ready"] and rows[0]["pid"] != before["pid"]

        eventually(replaced, 20)
        eventually(lambda: not grandchild.alive(), 5)
        with pytest.raises(ProcessLookupError):
            os.kill(before["pid"], 0)
        status = pool.status()
        (task,) = [task for task in status["tasks"] if task["name"] == "stubborn"]
        assert task["instances"]["failed"] == 1
        assert "it did not let go of an execution 1 s after its limit execution_timeout_s = 0.5" in task["problem"]
        (after,) = [row for row in status["instances"] if row["task"] == "stubborn"]
        assert after["restarts"] == 1
        assert client.execute("stubborn", "0", timeout=5) == b"let go"


def test_a_handler_that_listens_is_cut_short_and_stays(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text(
        LIMITED.format(handlers=HANDLERS) + '[tasks.cat]\ntarget = "exec:sleep"\n'
        "[tasks.cat.limits]\nexecution_timeout_s = 0.3\n"
    )
    with live_pool(runtime_env, "--workers", "2", "--config", str(config)) as pool, pool.client() as client:
        pids = {row["task"]: row["pid"] for row in pool.status()["instances"]}
        for task, word in (("stubborn", "listen"), ("cat", "600")):
            began = time.monotonic()
            with pytest.raises(ExecutionTimeout):
                client.execute(task, word)
            assert time.monotonic() - began < 60
        rows = pool.status()["instances"]
        assert {row["task"]: row["pid"] for row in rows} == pids
        eventually(lambda: not sum(row["in_flight"] for row in pool.status()["instances"]), 10)
        breaches = {row["task"]: [limit["breaches"] for limit in row["limits"]] for row in pool.status()["instances"]}
        assert breaches == {"stubborn": [1], "cat": [1], "neighbour": []}
