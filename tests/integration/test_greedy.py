"""Programs that take more than their limits allow, in a real pool: each ends, or fails, by the limit that was meant for
it and in its words; the next execution of the task finds an instance, and a neighbour's work goes on meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from spearpool.client.outcome import ExecutionResult
from spearpool.processes import descendants
from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, LivePool, live_pool

pytestmark = pytest.mark.process

PATIENCE_S = 30 * TIME_SCALE
MIB = 1 << 20
Document = dict[str, Any]


def _config(handler: str, limits: str) -> str:
    return f"""
[pool]
workers = 2
[tasks.greedy]
target = "python:tests.programs.greedy:{handler}"
[tasks.greedy.limits]
{limits}
[tasks.neighbour]
target = "{HANDLERS}:upper"
"""


@pytest.fixture
def make(runtime_env: RuntimeEnv, tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def start(handler: str, limits: str) -> LivePool:
            config = tmp_path / "pool.toml"
            config.write_text(_config(handler, limits))
            return stack.enter_context(live_pool(runtime_env, "--config", str(config)))

        yield start


def _instance(pool: LivePool) -> Document:
    """The greedy task's, as soon as it is ready."""

    def ready() -> Document:
        states = (one for one in pool.status()["instances"] if one["task"] == "greedy" and one["state"] == "ready")
        return dict(next(states, {}))

    return eventually(ready, PATIENCE_S)


def _limit(pool: LivePool, name: str) -> Document:
    return next(dict(limit) for limit in _instance(pool)["limits"] if limit["name"] == name)


def _problem(pool: LivePool) -> str:
    return next(str(task["problem"]) for task in pool.status()["tasks"] if task["name"] == "greedy")


def _end(future: Future[ExecutionResult]) -> str:
    """How an execution ended that did not do what it wanted."""
    error = future.exception(PATIENCE_S)
    assert error is not None
    return str(error)


@pytest.mark.parametrize(
    ("handler", "amount", "limits", "published", "words"),
    [
        ("burn", "60", "cpu_cores = 0.2", ("cpu_cores", 0.2), "it exceeded its limit cpu_cores = 0.2 (with "),
        ("burn", "60", "cpu_seconds = 1", ("cpu_seconds", 1), "its limit cpu_seconds = 1 was used up"),
        ("bomb", "128", "processes = 16", ("processes", 16), "it exceeded its limit processes = 16 (with "),
        ("fill", str(8 * MIB), f"disk_bytes = {MIB}", ("disk_bytes", MIB), f"limit disk_bytes = {MIB} (with "),
    ],
)
def test_who_exceeds_a_limit_is_ended_with_all_that_is_his(
    make: Any, handler: str, amount: str, limits: str, published: tuple[str, float], words: str
) -> None:
    pool = make(handler, limits)
    name, value = published
    found = _limit(pool, name)
    assert (found["value"], found["breaches"]) == (value, 0)
    assert found["level"] == ("enforced" if name == "cpu_seconds" else "watched")
    before = len(descendants(pool.process.pid))
    with pool.client() as client:
        future = client.submit("greedy", amount, timeout=PATIENCE_S)
        while not future.done():
            assert client.execute("neighbour", input=b"calm", timeout=PATIENCE_S) == b"CALM"
        assert "may or may not have taken effect" in _end(future)
        told = pool.log.read_text  # `status` tells it until the next instance is ready
        assert eventually(lambda: words in told(), PATIENCE_S), told()
        assert eventually(lambda: len(descendants(pool.process.pid)) <= before, PATIENCE_S), (
            "nobody of the tree is left"
        )
        assert eventually(lambda: _limit(pool, name), PATIENCE_S), "there is another instance"


@pytest.mark.parametrize(
    ("handler", "amount", "limits", "words"),
    [
        ("hog", str(1024 * MIB), f"memory_bytes = {256 * MIB}", "MemoryError"),
        ("leak", "500", "open_files = 64", "Too many open files"),
        ("write", str(8 * MIB), f"file_size_bytes = {MIB}", "File too large"),
    ],
)
def test_what_the_kernel_refuses_fails_inside_the_program_which_goes_on(
    make: Any, handler: str, amount: str, limits: str, words: str
) -> None:
    pool = make(handler, limits)
    name = limits.partition(" ")[0]
    assert _limit(pool, name)["level"] == "enforced"
    with pool.client() as client:
        assert words in _end(client.submit("greedy", amount, timeout=PATIENCE_S))
        assert client.execute("neighbour", input=b"calm", timeout=PATIENCE_S) == b"CALM"
        assert client.run("greedy", "0", timeout=PATIENCE_S).output, "the same instance serves on"


def test_who_sends_much_is_read_slowly_and_not_taken_for_silent(make: Any) -> None:
    """The agent's connection gets no more than its rate; one of our reads may be worth longer than the time-out."""
    rate, size = 256 * 1024, MIB
    pool = make(
        "flood", f"network_bytes_per_s = {rate}\n[connections]\nheartbeat_interval = 0.2\nheartbeat_timeout = 0.6"
    )
    before = _instance(pool)
    assert (_limit(pool, "network_bytes_per_s")["level"], _limit(pool, "network_bytes_per_s")["value"]) == (
        "enforced",
        rate,
    )
    with pool.client() as client:
        began = time.monotonic()
        future = client.submit("greedy", str(size), timeout=PATIENCE_S)
        assert client.execute("neighbour", input=b"calm", timeout=PATIENCE_S) == b"CALM"
        assert future.result(PATIENCE_S).output == bytes(size)
        # the first second's worth passes at once, and the last read is never waited for
        assert time.monotonic() - began >= size / rate - 1 - 262_144 / rate
    assert eventually(lambda: _limit(pool, "network_bytes_per_s")["breaches"] >= 1, PATIENCE_S)
    after = _instance(pool)
    assert (after["instance_id"], after["pid"]) == (before["instance_id"], before["pid"])
    assert pool.status()["totals"]["heartbeat_timeouts"] == 0


@pytest.mark.parametrize("action", ["warn", "recycle"])
def test_a_breach_may_have_milder_consequences(make: Any, action: str) -> None:
    """Warned, it goes on; recycled, it ends what it runs first."""
    pool = make("burn", f'cpu_cores = 0.2\non_breach = "{action}"')
    with pool.client() as client:
        future = client.submit("greedy", "6", timeout=PATIENCE_S)
        assert future.result(PATIENCE_S).output == b"burnt"
    assert _problem(pool) == ""
    assert "a limit was exceeded" in pool.log.read_text()
    if action == "recycle":
        assert eventually(lambda: _instance(pool)["instance_id"] != "greedy-0-1", PATIENCE_S)
    else:
        assert _limit(pool, "cpu_cores")["breaches"] == 1
