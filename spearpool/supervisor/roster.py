"""Which worker sits where: the pure part of the supervisor that spawns, replaces and dismisses workers.

`handle(event, now, random)` takes what happened and returns what to do; nothing here forks, waits or reads a clock. The
caller performs the actions in order, and calls again with `Tick` at `next_deadline()`. The events and actions are those
of `roster_moves`; what holds for each slot alone (seats, failures, back-off) is in `slot`.

**Incarnations** number all workers of the pool, from 1 and strictly upwards; every event names one, and an event of a
worker that is gone already (its last words may be read after its exit) is ignored. While the pool is *starting*, a
worker that cannot start makes the whole start fail; later it is replaced.

    pool    STARTING ─ all ready ─► RUNNING ─ StopRequested ─► DRAINING ─ all drained ─► DRAINED
            ─ LeaveRequested ─► LEAVING ─ all exits ─► GONE
            a start that fails: STARTING ─ GiveUp, all killed ─► FAILED ─ all exits ─► GONE

While it is *running*, workers are also replaced as planned (**renewals**: a reload, one that was asked to leave, one
that has met a limit on its life), one at a time: `Renewing`, then the heir is spawned beside it, is ready, the old one
empties itself, leaves, `Renewed`. If the heir cannot take over, the old one stays and the renewals that wait are off.
Slots are added at the top, and removed from there; when a stop is requested, it goes on with whoever is there then.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, assert_never

from spearpool.instances.lifecycle import describe_exit
from spearpool.worker.control import EXIT_CANNOT_START

from .roster_moves import (
    Action,
    AllDrained,
    AllGone,
    AllReady,
    Drain,
    Drained,
    Emptied,
    Empty,
    Event,
    GiveUp,
    Hung,
    Kill,
    Leave,
    LeaveRequested,
    Measured,
    OfWorker,
    QueuesSeen,
    ReloadRequested,
    RenewalFailed,
    Renewed,
    Renewing,
    RenewRequested,
    ScaleRequested,
    SlotRemoved,
    Spawn,
    SpawnFailed,
    Started,
    StartFailed,
    StopRequested,
    Tick,
    WorkerExited,
    WorkerReady,
)
from .slot import JITTER, Slot, SlotView, Worker, WorkerPolicy, WorkerState

__all__ = ["PoolState", "Roster", "RosterView"]


class PoolState(Enum):
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    DRAINED = "drained"
    LEAVING = "leaving"
    FAILED = "failed"
    GONE = "gone"


_MEANT_TO_RUN = frozenset({PoolState.STARTING, PoolState.RUNNING})


_UNDRAINED = frozenset({WorkerState.READY, WorkerState.EMPTYING, WorkerState.DRAINING})

_GOLDEN = 0.6180339887
"""Multiples of it spread over [0, 1) evenly, however many there are."""


class _Renewal(NamedTuple):
    """`cause` follows the worker's name in a log."""

    slot: int
    incarnation: int
    cause: str


@dataclass(frozen=True, slots=True)
class RosterView:
    state: PoolState
    slots: tuple[SlotView, ...]


class Roster:
    """Starts empty; the first event (a `Tick`) spawns a worker for every slot."""

    def __init__(self, slots: int, policy: WorkerPolicy, now: float) -> None:
        self._policy = policy
        self._state = PoolState.STARTING
        self._next_incarnation = 1
        self._slots = [Slot(number, policy, now) for number in range(slots)]
        self._renewal: _Renewal | None = None
        self._waiting: deque[_Renewal] = deque()
        self._actions: list[Action] = []

    def adopt(self, policy: WorkerPolicy) -> None:
        """From now on other times and limits hold."""
        self._policy = policy
        for slot in self._slots:
            slot.policy = policy

    def handle(self, event: Event, now: float, random: float) -> list[Action]:
        """What to do now. `random` is uniform in [0, 1)."""
        match event:
            case StopRequested():
                self._stop(event.deadline, now)
            case LeaveRequested():
                self._leave(event.deadline)
            case ReloadRequested():
                self._waiting += [
                    _Renewal(worker.slot, worker.incarnation, "the pool is reloaded")
                    for worker in self._workers()
                    if not worker.parting
                ]
            case ScaleRequested():
                self._scale(event.slots, now)
            case QueuesSeen():
                self._watch(event.waiting, now)
            case Tick():
                pass
            case _:
                self._heard(event, now, random)
        self._expire(now, random)
        self._settle(now, random)
        actions, self._actions = self._actions, []
        return actions

    def next_deadline(self) -> float:
        """Monotonic time at which `handle(Tick(), …)` has something to do; infinity when nothing is awaited."""
        times = [worker.deadline for worker in self._workers()]
        times += [slot.spawn_at for slot in self._slots if self._wants_worker(slot)]
        if self._state is PoolState.RUNNING:
            times += [slot.quiet_at for slot in self._slots]
            if self._may_recycle:
                times += [worker.ripe_at(self._policy) for worker in self._workers()]
        return min(times, default=math.inf)

    def serving(self) -> tuple[int, ...]:
        """The slots that new connections are to go to, in order."""
        return tuple(slot.number for slot in self._slots if slot.steered_to)

    def attendants(self) -> dict[int, int | None]:
        """Each slot, and its worker that takes connections, if there is one."""
        return {slot.number: slot.attendant for slot in self._slots if not slot.quiet}

    def retiring(self) -> tuple[int, ...]:
        """The slots that are to be removed; `QueuesSeen` is awaited of all of them."""
        return tuple(slot.number for slot in self._slots if slot.retiring)

    def snapshot(self) -> RosterView:
        heir = self._state in _MEANT_TO_RUN
        return RosterView(self._state, tuple(slot.view(heir=heir) for slot in self._slots))

    # What was heard of one worker

    def _heard(self, event: OfWorker, now: float, random: float) -> None:
        slot = self._slots[event.slot] if event.slot < len(self._slots) else None  # None: it has been removed
        worker = None if slot is None else slot.find(event.incarnation)
        if slot is None or worker is None:
            return
        match event:
            case Started():
                worker.pid = event.pid
            case WorkerReady():
                if worker.state is WorkerState.STARTING:
                    worker.become(WorkerState.READY)
                    worker.ready_at = now
            case StartFailed():
                worker.complaint = event.reason
                self._cannot_start(f"worker {slot.number} cannot serve: {event.reason}")
            case Drained():
                if worker.state is WorkerState.DRAINING:
                    worker.become(WorkerState.DRAINED)
            case Hung():
                if worker.state is not WorkerState.KILLED:
                    self._ended(slot, worker, event.reason, now, random)
                    self._kill(worker)
            case RenewRequested():
                renewal = _Renewal(worker.slot, worker.incarnation, event.cause)
                if all(other[:2] != renewal[:2] for other in (self._renewal or (), *self._waiting)):
                    self._waiting.append(renewal)
            case Emptied():
                if worker.state is WorkerState.EMPTYING:
                    worker.become(WorkerState.LEAVING, now + self._policy.leave_s)
                    self._actions.append(Leave(worker.slot, worker.incarnation))
            case Measured():
                worker.connections, worker.memory_bytes = event.connections, event.memory_bytes
            case SpawnFailed() | WorkerExited():
                slot.workers.remove(worker)
                if worker.state is not WorkerState.KILLED:  # else its end was booked with the order
                    self._ended(slot, worker, _end_of(event, worker), now, random)
                if isinstance(event, WorkerExited) and event.code == EXIT_CANNOT_START and worker.ready_at is None:
                    self._cannot_start(f"worker {slot.number} cannot serve; its log says why")
            case _:
                assert_never(event)

    def _ended(self, slot: Slot, worker: Worker, end: str, now: float, random: float) -> None:
        """Book the end of a worker; a start with a slot that fails again and again has failed."""
        if worker.ready_at is None and self._renewal is not None and self._renewal.slot == slot.number:
            self._renewal_failed(f"the heir of worker {slot.number} {end}")
        if slot.ended(worker, end, now, random, heir=self._state in _MEANT_TO_RUN):
            self._cannot_start(f"worker {slot.number} failed {slot.failures} times in a row; the last one {end}")

    def _cannot_start(self, reason: str) -> None:
        """Fail the start, if the pool is still starting; a running pool tries again."""
        if self._state is PoolState.STARTING:
            self._state = PoolState.FAILED
            self._actions.append(GiveUp(reason))
            for worker in self._workers():
                self._kill(worker)

    # What is planned, one worker at a time

    def _renew(self, now: float) -> None:
        """Carry the renewals on as far as they go now."""
        while self._renewal is not None or self._waiting or self._recycle(now):
            if self._renewal is None:
                self._renewal = self._waiting.popleft()
                self._begin(self._renewal)
            number, incarnation, _ = self._renewal
            slot = self._slots[number] if number < len(self._slots) else None
            if slot is not None:
                worker = slot.find(incarnation)
                if worker is not None and worker.state is WorkerState.READY and slot.has_heir(worker):
                    self._empty(worker, now)
                if worker is not None or not slot.serves:
                    return
                slot.renewing = None
            self._renewal = None
            self._actions.append(Renewed(number, incarnation))

    def _begin(self, renewal: _Renewal) -> None:
        """An heir is wanted; but for one that has ended meanwhile there is one already, or none is needed."""
        number, incarnation, cause = renewal
        slot = self._slots[number] if number < len(self._slots) else None
        worker = None if slot is None else slot.find(incarnation)
        if slot is not None and worker is not None and not worker.parting:
            slot.renewing = incarnation
            self._actions.append(Renewing(number, incarnation, cause))

    def _renewal_failed(self, reason: str) -> None:
        assert self._renewal is not None
        self._slots[self._renewal.slot].renewing = None
        for number, incarnation, _ in (self._renewal, *self._waiting):
            self._actions.append(RenewalFailed(number, incarnation, reason))
        self._renewal = None
        self._waiting.clear()

    def _recycle(self, now: float) -> bool:
        """Plan the renewal of a worker that has met a limit on its life; True when there is one."""
        for worker in self._workers() if self._may_recycle else ():
            cause = worker.surfeit(self._policy, now)
            if cause:
                self._waiting.append(_Renewal(worker.slot, worker.incarnation, cause))
                return True
        return False

    @property
    def _may_recycle(self) -> bool:
        """Not while anything else is planned."""
        return self._renewal is None and not self._waiting and not self.retiring()

    def _empty(self, worker: Worker, now: float) -> None:
        worker.become(WorkerState.EMPTYING, now + self._policy.empty_s + self._policy.drain_grace_s)
        self._actions.append(Empty(worker.slot, worker.incarnation, self._policy.empty_s))

    def _scale(self, slots: int, now: float) -> None:
        for number in range(len(self._slots), slots):
            self._slots.append(Slot(number, self._policy, now))
        for slot in self._slots[slots:]:
            slot.retire(now)

    def _watch(self, waiting: Mapping[int, int], now: float) -> None:
        """Remove slots from the top where nobody is left, and nothing waits at this very moment."""
        for number, count in waiting.items():
            self._slots[number].watch(count, now)
        while self._slots[-1].quiet and not self._slots[-1].workers and self._state is PoolState.RUNNING:
            self._actions.append(SlotRemoved(self._slots.pop().number))

    def _retire(self, now: float) -> None:
        """Empty slots that nobody comes to any more."""
        for slot in self._slots:
            slot.listen(now)
            for worker in slot.workers if slot.quiet else ():
                if worker.state is WorkerState.READY:
                    self._empty(worker, now)
                elif worker.state is WorkerState.STARTING:
                    self._kill(worker)

    # What was asked of all

    def _stop(self, deadline: float, now: float) -> None:
        if self._state in {PoolState.STARTING, PoolState.RUNNING, PoolState.DRAINING}:
            self._state = PoolState.DRAINING
            self._renewal = None
            self._waiting.clear()
            limit = deadline + self._policy.drain_grace_s
            for worker in self._workers():
                match worker.state:
                    case WorkerState.STARTING:
                        self._kill(worker)  # it has nothing in flight
                    case WorkerState.READY | WorkerState.EMPTYING | WorkerState.DRAINING if limit < worker.deadline:
                        worker.become(WorkerState.DRAINING, limit)
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
                    worker.become(WorkerState.LEAVING, deadline)
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

    def _settle(self, now: float, random: float) -> None:
        """Carry on what is planned, spawn heirs that are due, and say what has become true of all."""
        if self._state is PoolState.RUNNING:
            self._retire(now)
            self._renew(now)
        for slot in self._slots:
            if self._wants_worker(slot) and slot.spawn_at <= now:
                self._spawn(slot, now, random)
        states = {worker.state for worker in self._workers()}
        match self._state:
            case PoolState.STARTING if all(slot.serves for slot in self._slots):
                self._reach(PoolState.RUNNING, AllReady())
            case PoolState.DRAINING if not states & _UNDRAINED:
                self._reach(PoolState.DRAINED, AllDrained())
            case PoolState.LEAVING | PoolState.FAILED if not states:
                self._reach(PoolState.GONE, AllGone())
            case _:
                pass

    def _reach(self, state: PoolState, action: Action) -> None:
        self._state = state
        self._actions.append(action)

    def _spawn(self, slot: Slot, now: float, random: float) -> None:
        chance = (random + self._next_incarnation * _GOLDEN) % 1.0
        worker = slot.seat_worker(self._next_incarnation, now, 1.0 - JITTER * chance)
        self._next_incarnation += 1
        self._actions.append(Spawn(worker.slot, worker.seat, worker.incarnation))

    def _kill(self, worker: Worker) -> None:
        if worker.state is not WorkerState.KILLED:
            worker.become(WorkerState.KILLED)
            self._actions.append(Kill(worker.slot, worker.incarnation))

    def _workers(self) -> list[Worker]:
        return [worker for slot in self._slots for worker in slot.workers]

    def _wants_worker(self, slot: Slot) -> bool:
        """Whether a worker is to be spawned as soon as `spawn_at` has come."""
        return self._state in _MEANT_TO_RUN and slot.lacks_worker


def _end_of(event: SpawnFailed | WorkerExited, worker: Worker) -> str:
    """How a worker ended, in words that follow its name."""
    if isinstance(event, SpawnFailed):
        return f"could not be forked: {event.reason}"
    end = describe_exit(event.code, event.signal)
    return f"{end} ({worker.complaint})" if worker.complaint else end
