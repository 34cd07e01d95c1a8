"""`spearpool logs` of a pool that runs, and of one that does not any more."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cli.running import invoke
from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import ROOT, LivePool, live_pool

pytestmark = pytest.mark.process

PATIENCE_S = 20 * TIME_SCALE
TASKS = {"loud": "python:tests.programs.handlers:loud", "sum": "exec:sha256sum"}


@pytest.fixture
def pool(runtime_env: RuntimeEnv) -> Iterator[LivePool]:
    with live_pool(runtime_env, "--workers", "1", tasks=TASKS) as pool:
        with pool.client() as client:
            client.execute("loud", "3", "10", timeout=PATIENCE_S)
        yield pool


def _lines(out: bytes) -> list[str]:
    return out.decode().splitlines()


def test_last_lines_by_instance_and_by_task(pool: LivePool) -> None:
    said = invoke(pool.env, "logs", "loud-0-1")
    assert (said.code, _lines(said.out)) == (0, ["line 0 ..........", "line 1 ..........", "line 2 .........."])
    assert _lines(invoke(pool.env, "logs", "--task", "loud", "-n", "1").out) == ["line 2 .........."]
    assert invoke(pool.env, "logs", "loud-0-1", "-n", "0").out == b""
    said = invoke(pool.env, "logs", "loud-0-1", "--json", "-n", "all")
    assert json.loads(_lines(said.out)[0]) == {"instance": "loud-0-1", "line": "line 0 .........."}
    assert invoke(pool.env, "logs", "loud-zygote").code == 0


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("loud-0-2",), 1, "there is no log of loud-0-2, but of loud-0-1, "),
        (("loud-0-2",), 1, "; did you mean loud-0-1?"),
        (("--task", "nobody"), 1, "there is no log of an instance of task 'nobody', but of "),
        ((), 2, "give either INSTANCE or --task TASK"),
        (("x", "--task", "y"), 2, "give either INSTANCE or --task TASK"),
        (("loud-0-1", "-n", "few"), 2, "neither a number of lines nor `all`"),
        (("loud-0-1", "--name", "nobody"), 3, "pool 'nobody' has no logs in"),
        (("../../etc/passwd",), 1, "there is no log of"),
    ],
)
def test_what_there_is_no_log_of(pool: LivePool, words: tuple[str, ...], code: int, why: str) -> None:
    said = invoke(pool.env, "logs", *words)
    assert (said.code, why in said.err) == (code, True), said.err


def test_following_goes_on_through_a_rotation_and_ends_with_the_instance(pool: LivePool) -> None:
    follower = subprocess.Popen(
        [sys.executable, "-m", "spearpool", "logs", "loud-0-1", "-f", "-n", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=pool.env.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert follower.stdout is not None
    with pool.client() as client:
        client.execute("loud", "1", "5", timeout=PATIENCE_S)  # until it reads, nothing that is written counts
        reader = follower.stdout.fileno()
        os.set_blocking(reader, False)

        def reads() -> bool:
            client.execute("loud", "1", "5", timeout=PATIENCE_S)
            return _readable(follower) and bool(os.read(reader, 65536))

        assert eventually(reads, PATIENCE_S)
        client.execute("loud", "12000", "2000", timeout=PATIENCE_S)  # 24 MB: more than its quota
        older = pool.env.state_dir / "default" / "logs" / "loud-0-1.log.1"
        assert eventually(older.exists, PATIENCE_S)
    (pid,) = [one["pid"] for one in pool.status()["instances"] if one["instance_id"] == "loud-0-1"]
    os.set_blocking(reader, True)
    os.kill(pid, signal.SIGKILL)
    out, err = follower.communicate(timeout=60)
    assert follower.returncode == 0
    assert b"spearpool: loud-0-1 has ended" in err
    assert b"line 11999 " in out.splitlines()[-1]


def _readable(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0)[0])


def test_a_stopped_pools_logs_remain(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, "--workers", "1", tasks=TASKS) as pool, pool.client() as client:
        client.execute("loud", "1", "3", timeout=PATIENCE_S)
    said = invoke(runtime_env, "logs", "loud-0-1", "-f")
    assert (said.code, _lines(said.out)) == (0, ["line 0 ..."])
