"""Workers that hang in a real pool: stopped, lost in a validator, and all of them at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from dataclasses import replace

import pytest

from spearpool.processes import ProcessIdentity
from spearpool.protocol.codec import JSON_V1
from spearpool.protocol.framing import frame
from spearpool.protocol.messages import AuthRequest
from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, LivePool, live_pool
from tests.programs.validators import SPIN

pytestmark = pytest.mark.process

LIMIT_S = 1.0 * TIME_SCALE
TASKS = {"upper": f"{HANDLERS}:upper"}


def _impatient(env: RuntimeEnv) -> RuntimeEnv:
    chosen = {
        "SPEARPOOL_POOL_WORKER_HANG_TIMEOUT_S": str(LIMIT_S),
        "SPEARPOOL_SECURITY_VALIDATOR": "tests.programs.validators:refuse_or_spin",
    }
    return replace(env, environ=env.environ | chosen)


def _pids(pool: LivePool) -> list[int]:
    return [worker["pid"] for worker in pool.status()["workers"]]


def _replaced(pool: LivePool, slot: int, pid: int) -> bool:
    worker = pool.status()["workers"][slot]
    return bool(worker["state"] == "ready" and worker["pid"] != pid)


def test_a_stopped_worker_is_killed_and_replaced(runtime_env: RuntimeEnv) -> None:
    with live_pool(_impatient(runtime_env), "--workers", "2", tasks=TASKS) as pool:
        first, second = _pids(pool)
        victim = ProcessIdentity.of(first)
        os.kill(first, signal.SIGSTOP)
        eventually(lambda: _replaced(pool, 0, first), 20 + LIMIT_S)
        assert not victim.alive()
        worker, other = pool.status()["workers"]
        assert worker["last_end"] == f"did not answer for {LIMIT_S:g} s and was killed"
        assert (other["pid"], other["restarts"]) == (second, 0)
        with pool.client() as client:
            assert client.execute("upper", input=b"x") == b"X"


def test_a_worker_that_turns_for_ever_says_where(runtime_env: RuntimeEnv) -> None:
    with live_pool(_impatient(runtime_env), "--workers", "1", tasks=TASKS) as pool:
        (first,) = _pids(pool)
        with socket.create_connection((pool.ready["host"], pool.ready["port"]), timeout=60) as peer:
            request = AuthRequest("nobody", SPIN, "1", "agent", {})
            peer.sendall(frame(JSON_V1.encode(request, 1, time.time_ns()), 65536))
            eventually(lambda: _replaced(pool, 0, first), 20 + LIMIT_S)
            with contextlib.suppress(ConnectionResetError):
                assert peer.recv(1) == b"", "the connection went with the worker"
        log = pool.log.read_text()
        assert "a worker does not answer: its stacks follow" in log
        assert "in refuse_or_spin\n" in log, log
        totals = pool.status()["totals"]
        assert totals["connections_opened"] - totals["connections_closed"] == totals["connections_open"]


def test_a_pool_that_was_stopped_as_a_whole_loses_nobody(runtime_env: RuntimeEnv) -> None:
    """For longer than the limit: the supervisor's own lag is not held against its workers."""
    with live_pool(_impatient(runtime_env), "--workers", "2", tasks=TASKS) as pool:
        pids = _pids(pool)
        with pool.client() as client:
            everybody = pool.processes()
            for pid in everybody:
                os.kill(pid, signal.SIGSTOP)
            until = time.monotonic() + 1.5 * LIMIT_S
            eventually(lambda: time.monotonic() > until, 2 * LIMIT_S)
            for pid in everybody:  # the supervisor first: it finds all of them overdue
                os.kill(pid, signal.SIGCONT)
            until = time.monotonic() + 1.0
            eventually(lambda: time.monotonic() > until)
            assert client.execute("upper", input=b"x") == b"X"
        assert _pids(pool) == pids
        assert [worker["restarts"] for worker in pool.status()["workers"]] == [0, 0]
