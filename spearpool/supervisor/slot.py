"""One slot of the roster: its workers, its two seats, and what its failures cost. Pure: time is an argument.

A slot wants one worker as long as the pool is meant to run. Each slot has two **seats** (2 × slot and 2 × slot + 1 in
the segment). An *heir* takes the seat that its predecessor does not hold, and a seat is free only once the *exit* of
its occupant was seen: two writers on one seat would ruin its counters. So a worker that was killed but has not been
reaped yet does not delay its heir, and if both seats are held the slot waits.

A worker's **end** counts as a failure when it was not ready yet or had been for less than `settled_s`. Failures in a
row delay the heir (capped back-off with full jitter) and open the slot's breaker; any other end brings the heir at
once.

    worker  STARTING ─► READY ─► DRAINING ─► DRAINED ─► LEAVING;  from each of them to KILLED;  its exit removes it
                          └────► EMPTYING ────────────────┘

The way below is that of a **planned leave**: the heir is spawned while the worker still serves (`renewing`), and the
worker empties itself as soon as its heir is ready. A planned end is no failure and no restart. A slot that is to be
**removed** (`retiring`) is no longer steered to, yet serves what reaches it until its accept queue has been empty for
`quiet_s`, because a handshake that began before may end after; then its worker empties itself without an heir.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from spearpool.backoff import Backoff, Breaker

__all__ = ["JITTER", "Slot", "SlotView", "Worker", "WorkerPolicy", "WorkerState"]


class WorkerState(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DRAINED = "drained"
    EMPTYING = "emptying"
    LEAVING = "leaving"
    KILLED = "killed"


_SERVING = frozenset({WorkerState.STARTING, WorkerState.READY})
_PARTING = frozenset({WorkerState.EMPTYING, WorkerState.LEAVING})

JITTER = 0.2
"""Limits on the life of a worker are met somewhere in their last fifth, so that workers of one age do not follow each
other without a pause."""


@dataclass(frozen=True, slots=True)
class WorkerPolicy:
    """How long a worker may take and live (0: for ever), and how failures are answered.

    The back-off is short because a slot without a worker keeps accepted connections waiting, and a fork is cheap.
    """

    ready_timeout_s: float = 30.0
    settled_s: float = 1.0
    memory_settled_s: float = 10.0
    drain_grace_s: float = 1.0
    empty_s: float = 30.0
    leave_s: float = 5.0
    quiet_s: float = 0.5
    max_age_s: float = 0.0
    max_connections: int = 0
    max_memory_bytes: int = 0
    backoff: Backoff = Backoff(base_s=0.02, cap_s=1.0)
    breaker_limit: int = 10
    breaker_window_s: float = 30.0
    breaker_open_s: float = 5.0


@dataclass(frozen=True, slots=True)
class SlotView:
    """A slot as `status` shows it. Without a worker, `state` is `waiting` (for its heir) or `empty`."""

    slot: int
    state: str
    seat: int | None
    incarnation: int | None
    pid: int | None
    restarts: int
    last_end: str


@dataclass(slots=True)
class Worker:
    """`deadline` is when it is late with what its state asks of it; `complaint` what it said of its failing start.

    `slack` is the part of each limit on its life that it may use.
    """

    slot: int
    seat: int
    incarnation: int
    deadline: float
    state: WorkerState = WorkerState.STARTING
    pid: int | None = None
    ready_at: float | None = None
    complaint: str = ""
    slack: float = 1.0
    connections: int = 0
    memory_bytes: int = 0

    @property
    def parting(self) -> bool:
        """Whether it is on its way out as planned."""
        return self.state in _PARTING

    def ripe_at(self, policy: WorkerPolicy) -> float:
        """When it will have lived as long as it may; infinity when it may live for ever, or does not serve."""
        if self.state is not WorkerState.READY or self.ready_at is None or not policy.max_age_s:
            return math.inf
        return self.ready_at + policy.max_age_s * self.slack

    def surfeit(self, policy: WorkerPolicy, now: float) -> str:
        """Which limit on its life it has met, in words; `""` when none. Memory counts once it has settled: one that
        starts above the limit would be replaced without end."""
        if self.state is not WorkerState.READY or self.ready_at is None:
            return ""
        if now >= self.ripe_at(policy):
            return f"has served for {now - self.ready_at:.0f} s (max_worker_age_s)"
        if policy.max_connections and self.connections >= policy.max_connections * self.slack:
            return f"has had {self.connections} connections (max_worker_connections)"
        settled = now - self.ready_at >= policy.memory_settled_s
        if settled and policy.max_memory_bytes and self.memory_bytes >= policy.max_memory_bytes * self.slack:
            return f"holds {self.memory_bytes} bytes (max_worker_memory_bytes)"
        return ""

    def become(self, state: WorkerState, deadline: float = math.inf) -> None:
        self.state = state
        self.deadline = deadline


class Slot:
    """`workers` are those whose exit was not seen yet, oldest first; `spawn_at` is when the next one may come.

    `renewing` is the incarnation that is to have an heir although it serves. A `retiring` slot is `quiet` once nobody
    will come to it any more, and `quiet_at` is when it will be.
    """

    def __init__(self, number: int, policy: WorkerPolicy, now: float) -> None:
        self.number = number
        self.workers: list[Worker] = []
        self.spawn_at = now
        self.failures = 0
        self.renewing: int | None = None
        self.retiring = False
        self.quiet = False
        self.quiet_at = math.inf
        self.policy = policy
        self._breaker = Breaker(policy.breaker_limit, policy.breaker_window_s, policy.breaker_open_s)
        self._last_parity = 1
        self._restarts = 0
        self._last_end = ""

    @property
    def serves(self) -> bool:
        """Whether it takes connections: its worker is ready, and has not been asked to leave."""
        return self.attendant is not None

    @property
    def attendant(self) -> int | None:
        """The incarnation of the worker that takes its connections."""
        return next((worker.incarnation for worker in self.workers if worker.state is WorkerState.READY), None)

    @property
    def lacks_worker(self) -> bool:
        """Whether nobody serves who shall go on, or is about to, and there is a seat for somebody who would."""
        if self.quiet:
            return False
        staying = (worker for worker in self.workers if worker.incarnation != self.renewing)
        return not any(worker.state in _SERVING for worker in staying) and self._free_seat() is not None

    def has_heir(self, worker: Worker) -> bool:
        """Whether somebody else serves."""
        return any(other.state is WorkerState.READY for other in self.workers if other is not worker)

    @property
    def steered_to(self) -> bool:
        return self.serves and not self.retiring

    def find(self, incarnation: int) -> Worker | None:
        return next((worker for worker in self.workers if worker.incarnation == incarnation), None)

    def retire(self, now: float) -> None:
        """It is to be removed."""
        self.retiring = True
        self.quiet_at = now + self.policy.quiet_s

    def watch(self, waiting: int, now: float) -> None:
        """So many connections wait at it."""
        if self.retiring and waiting:
            self.quiet = False
            self.quiet_at = now + self.policy.quiet_s

    def listen(self, now: float) -> None:
        """Has nobody come to it for so long that nobody will?"""
        if now >= self.quiet_at:
            self.quiet = True
            self.quiet_at = math.inf

    def seat_worker(self, incarnation: int, now: float, slack: float = 1.0) -> Worker:
        """A new worker, in the free seat that there must be."""
        seat = self._free_seat()
        assert seat is not None
        self._last_parity = seat % 2
        worker = Worker(self.number, seat, incarnation, now + self.policy.ready_timeout_s, slack=slack)
        self.workers.append(worker)
        return worker

    def ended(self, worker: Worker, end: str, now: float, random: float, *, heir: bool) -> bool:
        """Book how a worker ended; True when its failure opened the breaker.

        With an `heir` wanted it also counts as a restart, and `spawn_at` says when that one comes.
        """
        self._last_end = end
        if not heir or worker.parting:
            return False
        self._restarts += 1
        if worker.ready_at is not None and now - worker.ready_at >= self.policy.settled_s:
            self.failures = 0
            self._breaker.succeeded()
            self.spawn_at = now
            return False
        self._breaker.failed(now)
        self.spawn_at = max(now + self.policy.backoff.delay_s(self.failures, random), self._breaker.retry_at())
        self.failures += 1
        return self._breaker.is_open(now)

    def view(self, *, heir: bool) -> SlotView:
        """The newest worker that serves stands for the slot, or the newest: an heir starts while the killed one is
        still to be reaped."""
        if not self.workers:
            state = "waiting" if heir else "empty"
            return SlotView(self.number, state, None, None, None, self._restarts, self._last_end)
        newest = max(self.workers, key=lambda worker: (worker.state is WorkerState.READY, worker.incarnation))
        return SlotView(
            self.number,
            newest.state.value,
            newest.seat,
            newest.incarnation,
            newest.pid,
            self._restarts,
            self._last_end,
        )

    def _free_seat(self) -> int | None:
        """The seat that the last worker did not have, if it is free, else its own, else None."""
        held = {worker.seat for worker in self.workers}
        for parity in (1 - self._last_parity, self._last_parity):
            if 2 * self.number + parity not in held:
                return 2 * self.number + parity
        return None
