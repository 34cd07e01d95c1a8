"""Which worker sits where: the pure part of the supervisor that spawns, replaces and dismisses workers.

`handle(event, now, random)` takes what happened and returns what to do; nothing here forks, waits or reads a clock. The
caller performs the actions in order, and calls again with `Tick` at `next_deadline()`. The events and actions are those
of `roster_moves`, and can be had from here.

A **slot** wants one worker as long as the pool is meant to run. Each slot has two **seats** (2 × slot and 2 × slot + 1
in the segment). An *heir* takes the seat that its predecessor does not hold, and a seat is free only once the *exit* of
its occupant was seen: two writers on one seat would ruin its counters. So a worker that was killed but has not been
reaped yet does not delay its heir, and if both seats are held the slot waits. **Incarnations** number all workers of
the pool, from 1 and strictly upwards; every event names one, and an event of a worker that is gone already (its last
words may be read after its exit) is ignored.

A worker's **end** counts as a failure when it was not ready yet or had been for less than `settled_s`. Failures in a
row delay the heir (capped back-off with full jitter) and open the slot's breaker; any other end brings the heir at
once. While the pool is *starting*, a worker that cannot start makes the whole start fail instead.

    pool    STARTING ─ all ready ─► RUNNING ─ StopRequested ─► DRAINING ─ all drained ─► DRAINED
            ─ LeaveRequested ─► LEAVING ─ all exits ─► GONE
            a start that fails: STARTING ─ GiveUp, all killed ─► FAILED ─ all exits ─► GONE
    worker  STARTING ─► READY ─► DRAINING ─► DRAINED ─► LEAVING;  from each of them to KILLED;  its exit removes it
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import assert_never

from spearpool.backoff import Backoff, Breaker
from spearpool.instances.lifecycle import describe_exit
from spearpool.worker.control import EXIT_CANNOT_START

from .roster_moves import (
    Action,
    AllDrained,
    AllGone,
    AllReady,
    Drain,
    Drained,
    Event,
    GiveUp,
    Kill,
    Leave,
    LeaveRequested,
    Spawn,
    SpawnFailed,
    Started,
    StartFailed,
    StopRequested,
    Tick,
    WorkerExited,
    WorkerReady,
)

__all__ = [
    "Action",
    "AllDrained",
    "AllGone",
    "AllReady",
    "Drain",
    "Drained",
    "Event",
    "GiveUp",
    "Kill",
    "Leave",
    "LeaveRequested",
    "PoolState",
    "Roster",
    "RosterPolicy",
    "RosterView",
    "SlotView",
    "Spawn",
    "SpawnFailed",
    "StartFailed",
    "Started",
    "StopRequested",
    "Tick",
    "WorkerExited",
    "WorkerReady",
    "WorkerState",
]


class PoolState(Enum):
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    DRAINED = "drained"
    LEAVING = "leaving"
    FAILED = "failed"
    GONE = "gone"


class WorkerState(Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DRAINED = "drained"
    LEAVING = "leaving"
    KILLED = "killed"


_MEANT_TO_RUN = frozenset({PoolState.STARTING, PoolState.RUNNING})
_SERVING = frozenset({WorkerState.STARTING, WorkerState.READY})


@dataclass(frozen=True, slots=True)
class RosterPolicy:
    """How long a worker may take, and how failures are answered.

    The back-off is short because a slot without a worker keeps accepted connections waiting, and a fork is cheap.
    """

    ready_timeout_s: float = 30.0
    settled_s: float = 10.0
    drain_grace_s: float = 1.0
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


@dataclass(frozen=True, slots=True)
class RosterView:
    state: PoolState
    slots: tuple[SlotView, ...]


@dataclass(slots=True)
class _Worker:
    slot: int
    seat: int
    incarnation: int
    deadline: float
    state: WorkerState = WorkerState.STARTING
    pid: int | None = None
    ready_at: float | None = None
    complaint: str = ""


@dataclass(slots=True)
class _Slot:
    number: int
    breaker: Breaker
    spawn_at: float
    last_parity: int = 1
    failures: int = 0
    restarts: int = 0
    last_end: str = ""
    workers: list[_Worker] = field(default_factory=list)

    def find(self, incarnation: int) -> _Worker | None:
        return next((worker for worker in self.workers if worker.incarnation == incarnation), None)

    def free_seat(self) -> int | None:
        """The seat that the last worker did not have, if it is free, else its own, else None."""
        held = {worker.seat for worker in self.workers}
        for parity in (1 - self.last_parity, self.last_parity):
            if 2 * self.number + parity not in held:
                return 2 * self.number + parity
        return None


class Roster:
    """Starts empty; the first event (a `Tick`) spawns a worker for every slot."""

    def __init__(self, slots: int, policy: RosterPolicy, now: float) -> None:
        self._policy = policy
        self._state = PoolState.STARTING
        self._next_incarnation = 1
        self._slots = [
            _Slot(number, Breaker(policy.breaker_limit, policy.breaker_window_s, policy.breaker_open_s), spawn_at=now)
            for number in range(slots)
        ]
        self._actions: list[Action] = []

    def handle(self, event: Event, now: float, random: float) -> list[Action]:
        """What to do now. `random` is uniform in [0, 1)."""
        match event:
            case StopRequested():
                self._stop(event.deadline, now)
            case LeaveRequested():
                self._leave(event.deadline)
            case Tick():
                pass
            case _:
                slot = self._slots[event.slot]
                worker = slot.find(event.incarnation)
                if worker is not None:
                    self._heard(event, slot, worker, now, random)
        self._expire(now, random)
        self._settle(now)
        actions, self._actions = self._actions, []
        return actions

    def next_deadline(self) -> float:
        """Monotonic time at which `handle(Tick(), …)` has something to do; infinity when nothing is awaited."""
        times = [worker.deadline for slot in self._slots for worker in slot.workers]
        times += [slot.spawn_at for slot in self._slots if self._wants_worker(slot)]
        return min(times, default=math.inf)

    def snapshot(self) -> RosterView:
        return RosterView(self._state, tuple(self._view(slot) for slot in self._slots))

    # What was heard of one worker

    def _heard(
        self,
        event: Started | SpawnFailed | WorkerReady | StartFailed | WorkerExited | Drained,
        slot: _Slot,
        worker: _Worker,
        now: float,
        random: float,
    ) -> None:
        match event:
            case Started():
                worker.pid = event.pid
            case WorkerReady():
                if worker.state is WorkerState.STARTING:
                    worker.state = WorkerState.READY
                    worker.ready_at = now
                    worker.deadline = math.inf
            case StartFailed():
                worker.complaint = event.reason
                self._cannot_start(f"worker {slot.number} cannot serve: {event.reason}")
            case Drained():
                if worker.state is WorkerState.DRAINING:
                    worker.state = WorkerState.DRAINED
                    worker.deadline = math.inf
            case SpawnFailed() | WorkerExited():
                slot.workers.remove(worker)
                if worker.state is not WorkerState.KILLED:  # else its end was booked with the order
                    self._ended(slot, worker, _end_of(event, worker), now, random)
                if isinstance(event, WorkerExited) and event.code == EXIT_CANNOT_START and worker.ready_at is None:
                    self._cannot_start(f"worker {slot.number} cannot serve; its log says why")
            case _:
                assert_never(event)

    def _ended(self, slot: _Slot, worker: _Worker, end: str, now: float, random: float) -> None:
        """Book the end of a worker and decide when its heir comes."""
        slot.last_end = end
        if self._state not in _MEANT_TO_RUN:
            return
        slot.restarts += 1
        if worker.ready_at is not None and now - worker.ready_at >= self._policy.settled_s:
            slot.failures = 0
            slot.breaker.succeeded()
            slot.spawn_at = now
            return
        slot.breaker.failed(now)
        slot.spawn_at = max(now + self._policy.backoff.delay_s(slot.failures, random), slot.breaker.retry_at())
        slot.failures += 1
        if slot.breaker.is_open(now):
            self._cannot_start(f"worker {slot.number} failed {slot.failures} times in a row; the last one {end}")

    def _cannot_start(self, reason: str) -> None:
        """Fail the start, if the pool is still starting; a running pool tries again."""
        if self._state is PoolState.STARTING:
            self._state = PoolState.FAILED
            self._actions.append(GiveUp(reason))
            for worker in self._workers():
                self._kill(worker)

    # What was asked of all

    def _stop(self, deadline: float, now: float) -> None:
        if self._state in {PoolState.STARTING, PoolState.RUNNING, PoolState.DRAINING}:
            self._state = PoolState.DRAINING
            limit = deadline + self._policy.drain_grace_s
            for worker in self._workers():
                match worker.state:
                    case WorkerState.STARTING:
                        self._kill(worker)  # it has nothing in flight
                    case WorkerState.READY | WorkerState.DRAINING if limit < worker.deadline:
                        worker.state = WorkerState.DRAINING
                        worker.deadline = limit
                        self._actions.append(Drain(worker.slot, worker.incarnation, max(0.0, deadline - now)))
                    case _:
                        pass

    def _leave(self, deadline: float) -> None:
        if self._state not in {PoolState.FAILED, PoolState.GONE}:
            self._state = PoolState.LEAVING
            for worker in self._workers():
                if worker.state is WorkerState.LEAVING:
                    worker.deadline = min(worker.deadline, deadline)
                elif worker.state is not WorkerState.KILLED:
                    worker.state = WorkerState.LEAVING
                    worker.deadline = deadline
                    self._actions.append(Leave(worker.slot, worker.incarnation))

    # What time brings

    def _expire(self, now: float, random: float) -> None:
        """Kill who is late: not ready, not drained, or not gone in time."""
        for slot in self._slots:
            for worker in slot.workers:
                if worker.deadline > now:
                    continue
                if worker.state is WorkerState.STARTING:
                    end = f"was not ready within {self._policy.ready_timeout_s:g} s"
                    self._ended(slot, worker, end, now, random)
                    self._cannot_start(f"worker {slot.number} {end}")
                self._kill(worker)

    def _settle(self, now: float) -> None:
        """Spawn heirs that are due, and say what has become true of all."""
        for slot in self._slots:
            if self._wants_worker(slot) and slot.spawn_at <= now:
                self._spawn(slot, now)
        states = {worker.state for worker in self._workers()}
        match self._state:
            case PoolState.STARTING if all(self._serves(slot) for slot in self._slots):
                self._reach(PoolState.RUNNING, AllReady())
            case PoolState.DRAINING if not states & {WorkerState.READY, WorkerState.DRAINING}:
                self._reach(PoolState.DRAINED, AllDrained())
            case PoolState.LEAVING | PoolState.FAILED if not states:
                self._reach(PoolState.GONE, AllGone())
            case _:
                pass

    def _reach(self, state: PoolState, action: Action) -> None:
        self._state = state
        self._actions.append(action)

    def _spawn(self, slot: _Slot, now: float) -> None:
        seat = slot.free_seat()
        assert seat is not None
        slot.last_parity = seat % 2
        slot.workers.append(_Worker(slot.number, seat, self._next_incarnation, now + self._policy.ready_timeout_s))
        self._actions.append(Spawn(slot.number, seat, self._next_incarnation))
        self._next_incarnation += 1

    def _kill(self, worker: _Worker) -> None:
        if worker.state is not WorkerState.KILLED:
            worker.state = WorkerState.KILLED
            worker.deadline = math.inf
            self._actions.append(Kill(worker.slot, worker.incarnation))

    def _workers(self) -> list[_Worker]:
        return [worker for slot in self._slots for worker in slot.workers]

    def _wants_worker(self, slot: _Slot) -> bool:
        """Whether a worker is to be spawned as soon as `spawn_at` has come."""
        return (
            self._state in _MEANT_TO_RUN
            and not any(worker.state in _SERVING for worker in slot.workers)
            and slot.free_seat() is not None
        )

    @staticmethod
    def _serves(slot: _Slot) -> bool:
        return any(worker.state is WorkerState.READY for worker in slot.workers)

    def _view(self, slot: _Slot) -> SlotView:
        """The newest worker stands for the slot: an heir starts while the killed one is still to be reaped."""
        if not slot.workers:
            state = "waiting" if self._state in _MEANT_TO_RUN else "empty"
            return SlotView(slot.number, state, None, None, None, slot.restarts, slot.last_end)
        newest = slot.workers[-1]
        return SlotView(
            slot.number,
            newest.state.value,
            newest.seat,
            newest.incarnation,
            newest.pid,
            slot.restarts,
            slot.last_end,
        )


def _end_of(event: SpawnFailed | WorkerExited, worker: _Worker) -> str:
    """How a worker ended, in words that follow its name."""
    if isinstance(event, SpawnFailed):
        return f"could not be forked: {event.reason}"
    end = describe_exit(event.code, event.signal)
    return f"{end} ({worker.complaint})" if worker.complaint else end
