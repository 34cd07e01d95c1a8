"""Watches a pool while it is hit: its lifecycle events on the bus, and its sums in shared memory at 100 Hz.

Both readers are threads; what they found is read after `close`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Self

import numpy as np

from spearpool.metrics import Segment
from spearpool.metrics.bus import Event, InstanceEvent, Subscriber
from spearpool.metrics.layout import COUNTER, COUNTERS, TASK_COUNTERS, ExecutionStage
from spearpool.metrics.rollup import Rollup

__all__ = ["SumsWatch", "WorkerEvent", "WorkersWatch", "recoveries", "unbidden"]

LOOK_EVERY_S = 0.01
MAX_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """`worker_spawned`, `worker_ready`, `worker_exited`, `worker_killed` …; `time` is wall clock seconds."""

    time: float
    slot: int
    type: str
    code: int


def recoveries(
    kills: Sequence[tuple[float, int]], events: Sequence[WorkerEvent], removals: Sequence[tuple[float, float, int]] = ()
) -> list[float | None]:
    """For each kill (wall clock seconds, slot): the seconds until a worker of that slot was ready; None for never.

    A removal (its begin, its end, the number of slots that it leaves) that took the slot away before there was an heir
    leaves nothing to measure: that kill is left out.
    """
    found: list[float | None] = []
    for at, slot in kills:
        later = (event.time for event in events if event.type == "worker_ready" and event.slot == slot)
        ready = min((time for time in later if time > at), default=inf)
        if not any(slot >= left and begin < ready and at < end for begin, end, left in removals):
            found.append(ready - at if ready < inf else None)
    return found


def unbidden(
    kills: Sequence[tuple[float, int]], events: Sequence[WorkerEvent], *, excuse_starting: bool = False
) -> list[WorkerEvent]:
    """Deaths of workers that we did not bring. With `excuse_starting`, the pool may give up one that was never ready
    (because its slot is being removed)."""
    ours: Counter[int] = Counter()
    starting: Counter[int] = Counter()
    found = []
    hits = [WorkerEvent(at, slot, "hit", 0) for at, slot in kills]
    for event in sorted([*hits, *events], key=lambda event: event.time):
        slot = event.slot
        match event.type:
            case "hit":
                ours[slot] += 1
            case "worker_spawned":
                starting[slot] += 1
            case "worker_ready":
                starting[slot] -= 1
            case "worker_killed" if ours[slot]:
                ours[slot] -= 1
            case "worker_killed" if starting[slot] and excuse_starting:
                starting[slot] -= 1
            case "worker_killed":
                found.append(event)
            case "worker_exited" if event.code:
                found.append(event)
    return found


@dataclass
class WorkersWatch:
    """Reads the events of workers, and how instances ended, from the bus, from `with` to the end of the block."""

    endpoint: str
    events: list[WorkerEvent] = field(default_factory=list)
    ended_instances: list[str] = field(default_factory=list)
    account: str = ""
    lost: int = 0
    _joined: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._subscriber = Subscriber(self.endpoint, {"event", "instance", "heartbeat"})
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def wait(self, timeout_s: float = 10.0) -> None:
        """Until it misses nothing more. Raises `TimeoutError`."""
        if not self._joined.wait(timeout_s):
            raise TimeoutError("the bus sent no heartbeat")

    def __exit__(self, *exc: object) -> None:
        self._subscriber.stop()
        self._thread.join()
        account = self._subscriber.account
        self.lost = account.lost_ring + account.lost_bus
        self.account = f"{account.received} received, {account.lost_ring} lost in rings, {account.lost_bus} on the bus"
        self._subscriber.close()

    def _read(self) -> None:
        for item in self._subscriber.items():
            self._joined.set()
            if isinstance(item, Event) and item.type.startswith("worker_"):
                self.events.append(WorkerEvent(item.time, item.worker or 0, item.type, item.code or 0))
            elif isinstance(item, InstanceEvent) and item.stage in {"stopping", "exited", "failed"}:
                self.ended_instances.append(f"{item.instance_id} {item.stage}: {item.reason}, code {item.code}")


@dataclass
class SumsWatch:
    """Looks at every slot's sums; they never go back, and never is more closed than was opened."""

    segment: Path
    looks: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    longest_gap_s: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._segment = Segment.open(self.segment)
        self._rollup = Rollup(self._segment)
        self._last: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
        self._last.clear()
        del self._rollup
        self._segment.close()

    def unsettled_executions(self) -> int:
        """Received and without a final stage, after the pool's books."""
        tasks = self._rollup.task_totals().values()
        final = [stage.name.lower() for stage in ExecutionStage if stage >= ExecutionStage.COMPLETED]
        return sum(task["received"] - sum(task[name] for name in final) for task in tasks)

    def closed_by_crash(self) -> int:
        """Connections that the pool has booked as gone with a dead worker; those of agents are among them."""
        slots = self._rollup.slots_in_use()
        return sum(int(self._rollup.slot_counters(slot)[COUNTER["connections_closed_crash"]]) for slot in slots)

    def _watch(self) -> None:
        looked_at = time.monotonic()
        while not self._over.wait(LOOK_EVERY_S):
            for slot in self._rollup.slots_in_use():
                self._look(slot)
            self.looks += 1
            now = time.monotonic()
            self.longest_gap_s = max(self.longest_gap_s, now - looked_at)
            looked_at = now

    def _look(self, slot: int) -> None:
        words = np.concatenate((self._rollup.slot_counters(slot), self._rollup.slot_tasks(slot).ravel()))
        if slot in self._last and (back := np.flatnonzero(words < self._last[slot])).size:
            place = int(back[0])
            names = [*COUNTERS, *TASK_COUNTERS * (len(words) // len(TASK_COUNTERS))]
            self._note("went back", f"slot {slot} {names[place]}: {self._last[slot][place]} → {words[place]}")
        self._last[slot] = words
        if (open_now := self._rollup.open_connections(slot)) < 0:
            self._note("fewer than no open connections", f"slot {slot}: {open_now}")

    def _note(self, kind: str, example: str) -> None:
        self.wrong[kind] += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(f"{kind}: {example}")
