"""Violent ends: of workers under load, of the supervisor, of the warden, of an instance and of its zygote."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from spearpool.errors import AuthenticationError, ConnectionLost, Draining, ExecutionFailed, OutcomeUnknown, PoolError
from spearpool.metrics import Segment
from spearpool.metrics.rollup import Rollup
from spearpool.processes import ProcessIdentity, children_of
from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, LivePool, live_pool

pytestmark = pytest.mark.process

KILLS = 20
SECONDS = 20.0


@dataclass
class Load:
    """Clients that execute without pause; every call has exactly one outcome."""

    pool: LivePool
    clients: int = 8
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[object] = field(default_factory=list)
    bearable: tuple[type[Exception], ...] = (ConnectionLost, OutcomeUnknown, Draining)
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.threads = [threading.Thread(target=self._run, args=(number,)) for number in range(self.clients)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(60 * TIME_SCALE)
        assert not any(thread.is_alive() for thread in self.threads), "an execution never ended"

    def _run(self, number: int) -> None:
        with self.pool.client() as client:
            count = 0
            while not self.over.is_set():
                count += 1
                data = f"{number}:{count}".encode()
                try:
                    answer = client.execute("upper", input=data, timeout=20)
                except self.bearable as error:
                    self.outcomes[type(error).__name__] += 1
                except Exception as error:  # noqa: BLE001 - whatever else it is, it is wrong
                    self.wrong.append(error)
                else:
                    self.outcomes["right"] += 1
                    if answer != data.upper():
                        self.wrong.append((data, answer))


def test_workers_killed_under_load(runtime_env: RuntimeEnv) -> None:
    chance = random.Random(20)
    with live_pool(runtime_env, "--workers", "4", tasks={"upper": f"{HANDLERS}:upper"}) as pool:
        with Load(pool) as load:
            begin = time.monotonic()
            for kill in range(KILLS):
                victim = chance.choice([w for w in pool.status()["workers"] if w["state"] == "ready"])
                os.kill(victim["pid"], signal.SIGKILL)
                killed_at = time.monotonic()
                eventually(partial(_all_back, pool, victim["pid"]), 10)
                assert time.monotonic() - killed_at < 2.0 * TIME_SCALE
                while time.monotonic() < begin + (kill + 1) * SECONDS / KILLS:
                    time.sleep(0.01)
        assert load.wrong == []
        assert load.outcomes["right"] > 100
        status = pool.status()
        assert sum(worker["restarts"] for worker in status["workers"]) == KILLS
        totals = status["totals"]
        assert totals["connections_opened"] - totals["connections_closed"] == totals["connections_open"]


def _all_back(pool: LivePool, dead: int) -> bool:
    """Whether every worker and every agent is there again."""
    status = pool.status()
    workers = all(w["state"] == "ready" and w["pid"] != dead for w in status["workers"])
    return workers and all(i["state"] in {"ready", "busy"} and i["worker"] is not None for i in status["instances"])


def _everybody_dies(pool: LivePool, victim: str) -> set[int]:
    """SIGKILL the supervisor or the warden: within 2 s nobody of the pool is left. Who there was."""
    everybody = [ProcessIdentity.of(pid) for pid in pool.processes()]
    (warden,) = children_of(pool.process.pid)
    os.kill(pool.process.pid if victim == "supervisor" else warden, signal.SIGKILL)
    killed_at = time.monotonic()
    pool.process.wait(10)
    eventually(lambda: not any(process.alive() for process in everybody), 5)
    assert time.monotonic() - killed_at < 2.0 * TIME_SCALE
    return {process.pid for process in everybody}


@pytest.mark.parametrize("victim", ["supervisor", "warden"])
def test_nobody_outlives_supervisor_or_warden(runtime_env: RuntimeEnv, victim: str) -> None:
    tasks = {"daemon": f"{HANDLERS}:daemonise", "sum": "exec:sha256sum"}
    with live_pool(runtime_env, "--workers", "3", tasks=tasks) as pool:
        with pool.client() as client:
            grandchild = int(client.execute("daemon"))
        assert grandchild in _everybody_dies(pool, victim)
        if victim == "warden":
            assert pool.process.returncode == 1
            assert "warden" in pool.log.read_text()
            return
        assert Path(pool.ready["segment"]).exists()  # for a post-mortem; the next start sweeps it
    with live_pool(runtime_env, tasks=tasks) as again, again.client() as client:
        assert client.execute("sum", input=b"x")
        assert not Path(pool.ready["segment"]).exists()


def _has_run(load: Load) -> bool:
    return load.outcomes["right"] > 100


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
@pytest.mark.parametrize("victim", ["supervisor", "warden"])
def test_supervisor_and_warden_killed_under_load(runtime_env: RuntimeEnv, victim: str, rounds: int) -> None:
    """At any moment: who waits is told, no answer is wrong, nobody is left, and the next pool starts."""
    chance = random.Random(rounds)
    tasks = {"upper": f"{HANDLERS}:upper", "daemon": f"{HANDLERS}:daemonise"}
    segment = ""
    words = (
        "--workers",
        "3",
        "--name",
        f"killed-{victim}-{rounds}",
    )  # no other test's pool sweeps what this one leaves
    for _ in range(rounds):
        with live_pool(runtime_env, *words, tasks=tasks) as pool:
            assert not segment or not Path(segment).exists(), "the next start has swept"
            segment = pool.ready["segment"]
            with pool.client() as client:
                client.execute("daemon")
            gone = (ConnectionLost, OutcomeUnknown, PoolError, AuthenticationError)  # the port is another pool's by now
            with Load(pool, bearable=gone) as load:
                eventually(partial(_has_run, load), 20)
                time.sleep(chance.uniform(0.0, 0.2))
                _everybody_dies(pool, victim)
            assert load.wrong == []
            if victim == "supervisor":
                with contextlib.closing(Segment.open(Path(segment))) as left:
                    rollup = Rollup(left)
                    assert all(rollup.open_connections(slot) >= 0 for slot in rollup.slots_in_use())
                    del rollup
    with live_pool(runtime_env, *words, tasks=tasks) as pool, pool.client() as client:
        assert client.execute("upper", input=b"x") == b"X"
    assert not Path(segment).exists()


def test_killed_instance_is_replaced_and_its_execution_is_accounted_for(runtime_env: RuntimeEnv) -> None:
    tasks = {"sleep": f"{HANDLERS}:sleep", "pid": f"{HANDLERS}:pid"}
    with live_pool(runtime_env, tasks=tasks) as pool, pool.client() as client:
        (instance,) = [i for i in pool.status()["instances"] if i["task"] == "sleep"]
        waiting = client.submit("sleep", "30")
        eventually(lambda: [i for i in pool.status()["instances"] if i["state"] == "busy"], 10)
        os.kill(instance["pid"], signal.SIGKILL)
        with pytest.raises(OutcomeUnknown):
            waiting.result(20)
        assert client.execute("sleep", "0") == b"slept"
        assert int(client.execute("pid")) in {i["pid"] for i in pool.status()["instances"]}


LIFE = ["requested", "spawned", "connected", "authenticated", "ready"]


def test_the_life_of_an_instance_is_on_record(runtime_env: RuntimeEnv) -> None:
    """Killed, replaced and stopped, as `metrics tail`, `instances` and `status` tell it."""
    with live_pool(runtime_env, "--workers", "2", tasks={"pid": f"{HANDLERS}:pid"}) as pool:
        (first,) = pool.status()["instances"]
        with _tail(pool, "--kind", "instance") as lines:
            eventually(lambda: lines, 20)  # it has joined
            os.kill(first["pid"], signal.SIGKILL)
            eventually(lambda: [line for line in lines if line.get("stage") == "ready"], 20)
            (second,) = json.loads(pool.cli("instances", "--json").stdout)
            totals = pool.status()["totals"]
            pool.stop()
        account = lines.pop()
        assert {line["kind"] for line in lines} == {"instance"}
        told = [line for line in lines if "stage" in line]
        assert account == {"kind": "account", "received": len(told), "lost_ring": 0, "lost_bus": 0}
        killed = [line for line in told if line["instance_id"] == first["instance_id"]]
        assert [(line["stage"], line["code"]) for line in killed] == [("failed", -signal.SIGKILL)]
        assert killed[0]["reason"] == "was killed by signal SIGKILL"
        life = [line for line in told if line["instance_id"] == second["instance_id"]]
        assert [line["stage"] for line in life] == [LIFE[0], "restarted", *LIFE[1:], "stopping", "exited"]
        times = [line["time"] for line in life]
        assert times == sorted(times)
        ready = life[LIFE.index("ready") + 1]
        assert (ready["worker"], life[0]["worker"]) == (second["worker"], None)
        took = sum(line["duration_s"] for line in life if line["stage"] in LIFE[1:])
        assert took == pytest.approx(second["stages_ms"]["ready"] / 1e3, abs=1e-5)
        assert list(second["stages_ms"]) == LIFE
        assert second["restarts"] == life[1]["restarts"] == 1
        counted = {name: totals[f"instances_{name}"] for name in ("started", "exited", "failed", "restarted")}
        assert counted == {"started": 2, "exited": 0, "failed": 1, "restarted": 1}


@contextlib.contextmanager
def _tail(pool: LivePool, *words: str) -> Iterator[list[dict[str, Any]]]:
    """The lines of `metrics tail --json` as they come; all of them at the end of the block, which ends the pool."""
    lines: list[dict[str, Any]] = []
    command = [sys.executable, "-m", "spearpool", "metrics", "tail", "--name", pool.name, "--json", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=pool.env.environ) as tail:
        assert tail.stdout is not None
        reader = threading.Thread(target=lambda: lines.extend(map(json.loads, tail.stdout or ())))
        reader.start()
        try:
            yield lines
            reader.join(20 * TIME_SCALE)
            assert tail.wait(20) == 0
        finally:
            tail.kill()
            reader.join()


def test_zygote_killed_instances_go_on(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, tasks={"pid": f"{HANDLERS}:pid"}) as pool, pool.client() as client:
        instance = int(client.execute("pid"))
        (warden,) = children_of(pool.process.pid)
        known = {instance, *(worker["pid"] for worker in pool.status()["workers"])}
        (zygote,) = [pid for pid in children_of(warden) if pid not in known]
        os.kill(zygote, signal.SIGKILL)
        assert int(client.execute("pid")) == instance
        os.kill(instance, signal.SIGKILL)

        def replaced() -> bool:
            try:
                return int(client.execute("pid", timeout=20)) != instance
            except (OutcomeUnknown, ExecutionFailed):
                return False

        eventually(replaced, 20)
