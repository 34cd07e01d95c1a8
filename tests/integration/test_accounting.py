"""The books while workers are killed: a reader at high rate finds that no sum goes back and every snapshot adds up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from spearpool.errors import ConnectionLost, Draining, OutcomeUnknown
from spearpool.metrics import Segment
from spearpool.metrics.rollup import Rollup
from tests.conftest import TIME_SCALE, RuntimeEnv, eventually
from tests.integration.live_pool import HANDLERS, LivePool, live_pool

pytestmark = pytest.mark.process

WORKERS = 3
KILLS = 6


class Reader:
    """Reads sums and totals as fast as it can, and notes what cannot be."""

    def __init__(self, pool: LivePool) -> None:
        self.path = Path(pool.ready["segment"])
        self.looks = 0
        self.wrong: list[str] = []

    def read(self, over: threading.Event) -> None:
        with Segment.open(self.path) as segment:
            rollup = Rollup(segment)
            before = [rollup.slot_counters(slot) for slot in range(WORKERS)]
            while not over.is_set():
                self.looks += 1
                for slot in range(WORKERS):
                    now = rollup.slot_counters(slot)
                    if (back := np.flatnonzero(now < before[slot])).size:
                        self.wrong.append(f"counters {back.tolist()} of slot {slot} went back")
                    before[slot] = now
                totals = rollup.totals()
                opened, closed = totals["connections_opened"], totals["connections_closed"]
                if not opened - closed == totals["connections_open"] >= 0:
                    self.wrong.append(f"{opened} opened, {closed} closed, {totals['connections_open']} open")


def _execute(pool: LivePool, over: threading.Event) -> None:
    """A new connection for each execution."""
    while not over.is_set():
        with suppress(ConnectionLost, OutcomeUnknown, Draining), pool.client() as client:
            client.execute("upper", input=b"x", timeout=20)


def test_the_books_are_right_at_every_moment(runtime_env: RuntimeEnv) -> None:
    with live_pool(runtime_env, "--workers", str(WORKERS), tasks={"upper": f"{HANDLERS}:upper"}) as pool:
        reader, over = Reader(pool), threading.Event()
        parts: list[Callable[[], None]] = [lambda: reader.read(over), *[lambda: _execute(pool, over)] * 4]
        threads = [threading.Thread(target=part) for part in parts]
        for thread in threads:
            thread.start()
        try:
            for kill in range(KILLS):
                victim = pool.status()["workers"][kill % WORKERS]["pid"]
                os.kill(victim, signal.SIGKILL)
                eventually(partial(_replaced, pool, kill % WORKERS, victim), 20)
        finally:
            over.set()
            for thread in threads:
                thread.join(60 * TIME_SCALE)
        assert reader.wrong == []
        assert reader.looks > 10 * KILLS
        eventually(lambda: _at_rest(pool), 20)


def _replaced(pool: LivePool, slot: int, pid: int) -> bool:
    worker = pool.status()["workers"][slot]
    return bool(worker["state"] == "ready" and worker["pid"] != pid)


def _at_rest(pool: LivePool) -> bool:
    """Whether nothing but the one agent's connection is open, by any of the books."""
    status = pool.status()
    by_worker = sum(worker["connections"] for worker in status["workers"])
    return bool(status["totals"]["connections_open"] == by_worker == 1)
