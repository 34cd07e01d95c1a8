"""How many instances of each task to start, and when: the pure part of staffing.

`handle(event, now, random)` takes what happened to an instance and returns what to do; the caller performs it, and
calls again with `Tick` at `next_deadline()`. Per task, the missing instances are started at once, over all tasks at
most `max_starting` at a time, the task with the fewest starting ones first.

A **failure** is an instance that ended before it was ready or soon after it. Failures in a row delay the next start of
that task (capped back-off with full jitter). When they open the task's breaker, nothing is started for a while, then
one trial at a time. From then on the task is *unavailable* (clients get 503 with the reason at once, instead of
waiting in a queue that nothing empties) as long as no instance is ready. A task *recovers*, and its failures are
forgotten, when it has had a ready instance and no failure for `settled_s`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from spearpool.backoff import Backoff, Breaker

__all__ = [
    "Action",
    "Availability",
    "Event",
    "InstanceEnded",
    "InstanceReady",
    "Scaling",
    "ScalingPolicy",
    "StartInstance",
    "Stop",
    "TaskStaff",
    "Tick",
]


@dataclass(frozen=True, slots=True)
class InstanceReady:
    """An instance that `StartInstance` asked for is ready."""

    task: str


@dataclass(frozen=True, slots=True)
class InstanceEnded:
    """An instance that `StartInstance` asked for is gone, or could not even be launched.

    `was_ready`: an `InstanceReady` was told of it. `failed`: its end counts as a failure; `reason` says what happened.
    """

    task: str
    was_ready: bool
    failed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Start no more instances."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = InstanceReady | InstanceEnded | Stop | Tick


@dataclass(frozen=True, slots=True)
class StartInstance:
    """Start one instance; answered by `InstanceReady` and `InstanceEnded`, or by `InstanceEnded` alone."""

    task: str


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether the task can be served has changed; `reason` is for clients and `status`."""

    task: str
    available: bool
    reason: str


Action = StartInstance | Availability


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    max_starting: int = 8
    settled_s: float = 10.0
    backoff: Backoff = Backoff(base_s=0.1, cap_s=10.0)
    breaker_limit: int = 5
    breaker_window_s: float = 30.0
    breaker_open_s: float = 10.0


@dataclass(frozen=True, slots=True)
class TaskStaff:
    """One task as `status` shows it. `failures` counts those in a row; `reason` tells the last one, if any."""

    task: str
    wanted: int
    starting: int
    ready: int
    failures: int
    available: bool
    reason: str


@dataclass(slots=True)
class _Task:
    name: str
    wanted: int
    breaker: Breaker
    start_at: float
    starting: int = 0
    ready: int = 0
    failures: int = 0
    failed_at: float = -math.inf
    serving_since: float = math.inf
    tripped: bool = False
    available: bool = True
    reason: str = ""

    @property
    def lacks_one(self) -> bool:
        """Whether one more may be started as soon as `start_at` has come."""
        missing = self.wanted - self.starting - self.ready
        return missing > 0 and not (self.tripped and self.starting)


class Scaling:
    """`wanted` maps each task to the number of instances it should have. The first event starts them."""

    def __init__(self, wanted: Mapping[str, int], policy: ScalingPolicy, now: float) -> None:
        self._policy = policy
        self._stopped = False
        self._tasks = {
            name: _Task(
                name,
                count,
                Breaker(policy.breaker_limit, policy.breaker_window_s, policy.breaker_open_s),
                start_at=now,
            )
            for name, count in wanted.items()
        }

    def handle(self, event: Event, now: float, random: float) -> list[Action]:
        """What to do now. `random` is uniform in [0, 1)."""
        match event:
            case InstanceReady():
                task = self._tasks[event.task]
                task.starting -= 1
                task.ready += 1
                task.serving_since = min(task.serving_since, now)
            case InstanceEnded():
                self._ended(self._tasks[event.task], event, now, random)
            case Stop():
                self._stopped = True
            case Tick():
                pass
            case _:
                assert_never(event)
        for task in self._tasks.values():
            if self._recovers_at(task) <= now:
                task.breaker.succeeded()
                task.failures = 0
                task.tripped = False
                task.reason = ""
        return [*self._availability(), *self._starts(now)]

    def next_deadline(self) -> float:
        """Monotonic time at which `handle(Tick(), …)` has something to do; infinity when nothing is awaited."""
        times = [self._recovers_at(task) for task in self._tasks.values()]
        if not self._stopped and self._starting < self._policy.max_starting:
            times += [task.start_at for task in self._tasks.values() if task.lacks_one]
        return min(times, default=math.inf)

    def snapshot(self) -> tuple[TaskStaff, ...]:
        return tuple(
            TaskStaff(task.name, task.wanted, task.starting, task.ready, task.failures, task.available, task.reason)
            for task in self._tasks.values()
        )

    @property
    def _starting(self) -> int:
        return sum(task.starting for task in self._tasks.values())

    def _ended(self, task: _Task, event: InstanceEnded, now: float, random: float) -> None:
        if event.was_ready:
            task.ready -= 1
            if not task.ready:
                task.serving_since = math.inf
        else:
            task.starting -= 1
        if not event.failed:
            return
        task.breaker.failed(now)
        task.tripped = task.tripped or task.breaker.is_open(now)
        task.start_at = max(now + self._policy.backoff.delay_s(task.failures, random), task.breaker.retry_at())
        task.failures += 1
        task.failed_at = now
        task.reason = event.reason

    def _recovers_at(self, task: _Task) -> float:
        return max(task.failed_at, task.serving_since) + self._policy.settled_s if task.failures else math.inf

    def _availability(self) -> list[Action]:
        changes: list[Action] = []
        for task in self._tasks.values():
            available = task.ready > 0 or not task.tripped
            if available != task.available:
                task.available = available
                reason = "" if available else f"instances of task {task.name!r} fail again and again: {task.reason}"
                changes.append(Availability(task.name, available, reason))
        return changes

    def _starts(self, now: float) -> list[Action]:
        starts: list[Action] = []
        while not self._stopped and self._starting < self._policy.max_starting:
            due = [task for task in self._tasks.values() if task.lacks_one and task.start_at <= now]
            if not due:
                break
            task = min(due, key=lambda task: task.starting)
            task.starting += 1
            starts.append(StartInstance(task.name))
        return starts
