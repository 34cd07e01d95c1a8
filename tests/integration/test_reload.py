"""Planned changes of a real pool under load: reloads, scalings, workers told to leave, workers that are worn out.

Clients come without pause, execute once and go; others stay. None may notice anything: the clients that stay keep the
very connection that they have.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spearpool.errors import RequestRefused
from spearpool.metrics.bus import ask
from tests.chaos.line import Line, LineEnded, Tally, dial
from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, LivePool, live_pool, spearpool

pytestmark = pytest.mark.process

CHANGES = 10
RESIDENTS = 16
PASSERS = 4
"""How many clients that come and go there are at any moment."""

TASKS = {"upper": f"{HANDLERS}:upper"}
Document = dict[str, Any]


class Load:
    """Clients of one pool, in this loop."""

    def __init__(self, pool: LivePool) -> None:
        self.tally = Tally()
        self.wrong: list[str] = []
        self.over = asyncio.Event()
        self._address = (str(pool.ready["host"]), int(pool.ready["port"]))
        self._token = (Path(pool.ready["runtime_dir"]) / "client.token").read_text().strip()

    async def client(self, label: str) -> Line:
        return await dial(self.tally, self._address, self._token, label, timeout_s=20 * TIME_SCALE)

    async def pass_by(self, number: int) -> None:
        count = 0
        while not self.over.is_set():
            count += 1
            text = f"passer {number} {count}".encode()
            try:
                line = await self.client(f"passer-{number}")
                await line.execute("upper", text, text.upper())
                line.leave()
            except (OSError, TimeoutError, LineEnded) as error:
                self.wrong.append(f"passer {number}: {error!r}")
            self.tally.counts["passed by"] += 1

    async def reside(self, line: Line, number: int) -> None:
        count = 0
        while not self.over.is_set() and line.ended is None:
            count += 1
            text = f"resident {number} {count}".encode()
            await line.execute("upper", text, text.upper())
            with contextlib.suppress(TimeoutError):  # asks now and then: mostly it is at rest
                await asyncio.wait_for(self.over.wait(), 0.02)


@contextlib.asynccontextmanager
async def under_load(pool: LivePool) -> AsyncIterator[Load]:
    """Nobody is refused, cut off, sent away or given a wrong answer; everybody has the same connection at the end."""
    load = Load(pool)
    residents = [await load.client(f"resident-{number}") for number in range(RESIDENTS)]
    before = [line.local_port for line in residents]
    async with asyncio.TaskGroup() as group:
        for number, line in enumerate(residents):
            group.create_task(load.reside(line, number))
        for number in range(PASSERS):
            group.create_task(load.pass_by(number))
        try:
            yield load
        finally:
            load.over.set()
    ended = [line.ended for line in residents if line.ended is not None]
    after = [line.local_port for line in residents]
    for line in residents:
        line.leave()
    counts = load.tally.counts
    assert (load.wrong, ended, load.tally.examples) == ([], [], [])
    assert after == before
    assert counts["passed by"] > 2 * CHANGES
    right = {kind: count for kind, count in counts.items() if kind not in {"executions", "passed by"}}
    assert sum(right.values()) >= counts["executions"], counts


def _change(pool: LivePool, *words: str) -> Document:
    done = pool.cli(*words, "--json")
    assert done.returncode == 0, done.stderr.decode() + pool.log.read_text()
    document: Document = json.loads(done.stdout)
    return document


async def _aside(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments))


@pytest.mark.asyncio
async def test_reloads_lose_nothing(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, "--workers", "2", tasks=TASKS) as pool:
        pids = [worker["pid"] for worker in pool.status()["workers"]]
        async with under_load(pool):
            for _ in range(CHANGES):
                told = await _aside(_change, pool, "reload")
                assert [row["pid"] for row in told["slots"]] == pids
                pids = [row["heir_pid"] for row in told["slots"]]
                assert {row["stage"] for row in told["slots"]} == {"done"}
                assert sum(row["closed"] for row in told["slots"]) == 0
        status = pool.status()
        assert [worker["pid"] for worker in status["workers"]] == pids
        assert [worker["restarts"] for worker in status["workers"]] == [0, 0]
        assert "died with work in hand" not in pool.log.read_text()


@pytest.mark.asyncio
async def test_scalings_lose_nothing(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, "--workers", "2", tasks=TASKS) as pool:
        async with under_load(pool):
            for workers in (4, 2) * (CHANGES // 2):
                told = await _aside(_change, pool, "scale", f"workers={workers}")
                assert [row["slot"] for row in told["slots"]] == [2, 3]
                status = await _aside(pool.status)
                assert [worker["state"] for worker in status["workers"]] == ["ready"] * workers
        assert "died with work in hand" not in pool.log.read_text()


@pytest.mark.asyncio
async def test_a_worker_that_is_told_to_end_has_an_heir_first(runtime_env: RuntimeEnv) -> None:
    chance = random.Random(3)
    with live_pool(runtime_env, "--workers", "2", tasks=TASKS) as pool:
        async with under_load(pool):
            for _ in range(CHANGES // 2):
                victim = chance.choice((await _aside(pool.status))["workers"])
                os.kill(victim["pid"], signal.SIGTERM)
                await _aside(eventually, partial(_replaced, pool, victim), 20)
        assert [worker["restarts"] for worker in pool.status()["workers"]] == [0, 0]


@pytest.mark.asyncio
async def test_a_long_execution_is_awaited_and_holds_up_nobody_else(runtime_env: RuntimeEnv) -> None:
    tasks = TASKS | {"sleep": f"{HANDLERS}:sleep"}
    with live_pool(runtime_env, "--workers", "2", tasks=tasks) as pool:
        async with under_load(pool) as load:
            with pool.client() as client:
                running = client.submit("sleep", "4", timeout=60)
                await _aside(eventually, lambda: [i for i in pool.status()["instances"] if i["state"] == "busy"], 10)
                reload = asyncio.create_task(_aside(_change, pool, "reload"))
                await _aside(eventually, lambda: "emptying" in _stages(pool), 20)
                for _ in range(5):
                    await _goes_on(load)
                assert not running.done()
                assert (await _aside(running.result, 60)).output == b"slept"
            told = await reload
        assert sum(row["awaited"] for row in told["slots"]) >= 1
        assert sum(row["closed"] for row in told["slots"]) == 0


def _stages(pool: LivePool) -> set[str]:
    """Where the slots stand in the first change; nowhere before it has begun."""
    try:
        change = ask(pool.ready["endpoints"]["ask"], "change", {"change": 1}, 10)
    except RequestRefused:
        return set()
    return {row["stage"] for row in change["slots"]}


async def _goes_on(load: Load) -> None:
    """Clients that come and go still do. Those that had come to a worker which reaches nobody would not come back."""
    enough = load.tally.counts["passed by"] + 4 * PASSERS
    await _aside(eventually, lambda: load.tally.counts["passed by"] >= enough, 2)


def _replaced(pool: LivePool, victim: Document) -> bool:
    worker = pool.status()["workers"][victim["slot"]]
    return bool(worker["pid"] != victim["pid"] and worker["last_end"] == "exited with code 0")


@pytest.mark.asyncio
async def test_worn_out_workers_are_replaced(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text("[pool]\nmax_worker_connections = 50\n")
    with live_pool(runtime_env, "--config", str(config), "--workers", "2", tasks=TASKS) as pool:
        first = {worker["incarnation"] for worker in pool.status()["workers"]}
        async with under_load(pool):
            await _aside(eventually, lambda: not first & {w["incarnation"] for w in pool.status()["workers"]}, 60)
        assert "max_worker_connections" in pool.log.read_text()


def test_a_wrong_configuration_changes_nothing(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text("[connections]\nauth_timeout = 5.0\n")
    with live_pool(runtime_env, "--config", str(config), "--workers", "2", tasks=TASKS) as pool:
        before = [worker["pid"] for worker in pool.status()["workers"]]
        for text, why in (
            ("[connections]\nauth_timeout = 0\n", "connections.auth_timeout"),
            ("[connections\n", "valid TOML"),
            ("[pool]\nport = 9876\n", "pool.port"),
            ('[tasks.other]\ntarget = "exec:cat"\n', "tasks.other"),
        ):
            config.write_text(text)
            done = pool.cli("reload")
            assert (done.returncode, why in done.stderr.decode()) == (2, True), done.stderr.decode()
        pool.process.send_signal(signal.SIGHUP)
        eventually(lambda: "not reloaded" in pool.log.read_text(), 10)
        assert [worker["pid"] for worker in pool.status()["workers"]] == before
        config.write_text("[connections]\nauth_timeout = 4.0\n")
        pool.process.send_signal(signal.SIGHUP)
        eventually(lambda: not {w["pid"] for w in pool.status()["workers"]} & set(before), 20)


def test_an_heir_that_cannot_serve_changes_nothing(runtime_env: RuntimeEnv, tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text("")
    with live_pool(runtime_env, "--config", str(config), "--workers", "2", tasks=TASKS) as pool:
        before = [worker["pid"] for worker in pool.status()["workers"]]
        config.write_text('[security]\nvalidator = "no_such_module:function"\n')
        done = pool.cli("reload")
        assert done.returncode == 1
        assert "no_such_module" in pool.log.read_text()
        assert "heir" in done.stderr.decode()
        assert [(w["pid"], w["state"]) for w in pool.status()["workers"]] == [(pid, "ready") for pid in before]
        config.write_text("")
        assert pool.cli("reload").returncode == 0


def test_a_reload_during_a_reload_is_refused(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, "--workers", "2", tasks=TASKS | {"sleep": f"{HANDLERS}:sleep"}) as pool:
        with pool.client() as client:
            running = client.submit("sleep", "2")
            eventually(lambda: [i for i in pool.status()["instances"] if i["state"] == "busy"], 10)
            pool.process.send_signal(signal.SIGHUP)
            eventually(lambda: "a worker is to be replaced" in pool.log.read_text(), 10)
            done = pool.cli("reload")
            assert (done.returncode, "a reload is under way" in done.stderr.decode()) == (1, True)
            assert running.result(20).output == b"slept"
        eventually(lambda: pool.cli("reload").returncode == 0, 20)
    assert spearpool(runtime_env, "reload").returncode == 3
