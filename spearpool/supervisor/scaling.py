"""How many instances each task has, and when: the pure part of staffing.

`handle(event, now, random)` takes what happened and returns what to do; the caller performs it, and calls again with
`Tick` at `next_deadline()`.

**How many.** Between its plan's minimum and maximum, a task has as many instances as it has work for (`demand`), plus
its warm spare. What is missing is started at once, over all tasks at most `max_starting` at a time, the task with the
fewest starting ones first; whatever is starting counts, so one need is never answered twice. What is too much is
retired, the instance that was idle longest first, and none that works.

**Within the budget.** What an instance may use is reserved before it is started (`budget`). While something is too
scarce the task waits, and says for what; if it has work and no instance at all, an idle one that another task can do
without makes room.

**Replaced.** An instance that has reached one of its plan's limits (each a little earlier, at random, lest all reach it
at once), or that is of an earlier version of its task, is replaced: one at a time per task, and its successor is ready
before it goes, unless the budget has no room for both.

**Paused.** An instance that somebody has paused does not count among those that serve: another one is started for the
work that waits, as far as the maximum allows. It is neither retired nor replaced, but for a reload or a removed task.

**Failing.** A failure is an instance that ended before it was ready, or soon after it and before it had answered an
execution: who ends one that works does not keep the next one from starting. Failures in a row delay the next start of
that task (capped back-off with full jitter). When they open the task's breaker, nothing is started for a
while, then one trial at a time. From then on the task is *unavailable* (clients get 503 with the reason at once,
instead of waiting in a queue that nothing empties) as long as no instance is ready. A task *recovers*, and its failures
are forgotten, when it has had a ready instance and no failure for `settled_s`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import assert_never

from spearpool.backoff import Breaker

from .budget import Budget
from .demand import Demand
from .members import Member, Task
from .scaling_moves import (
    Action,
    Availability,
    Event,
    InstanceEnded,
    InstanceReady,
    Observed,
    Pause,
    Recycle,
    Replan,
    Retire,
    ScalingPolicy,
    StartInstance,
    Stop,
    TaskPlan,
    TaskStaff,
    Tick,
)

__all__ = ["JITTER", "Scaling"]

JITTER = 0.1
"""By how much earlier than its limit an instance may be replaced."""


class Scaling:
    """`plans` maps each task to its plan. The first event starts what they want."""

    def __init__(self, plans: Mapping[str, TaskPlan], budget: Budget, policy: ScalingPolicy, now: float) -> None:
        self._policy = policy
        self._budget = budget
        self._host_free_bytes = math.inf
        self._stopped = False
        self._numbers = itertools.count(1)
        self._members: dict[int, Member] = {}
        self._tasks = {name: self._new_task(name, plan, now) for name, plan in plans.items()}
        for task in self._tasks.values():
            task.plan_for(now)

    def _new_task(self, name: str, plan: TaskPlan, now: float) -> Task:
        policy = self._policy
        breaker = Breaker(policy.breaker_limit, policy.breaker_window_s, policy.breaker_open_s)
        return Task(name, plan, breaker, Demand(plan.idle_timeout_s), start_at=now)

    def handle(self, event: Event, now: float, random: float) -> list[Action]:
        """What to do now. `random` is uniform in [0, 1)."""
        match event:
            case InstanceReady():
                self._ready(self._members[event.number], now, random)
            case InstanceEnded():
                self._ended(self._members.pop(event.number), event, now, random)
            case Observed():
                self._observe(event, now)
            case Replan():
                self._replan(event.plans, now)
            case Recycle():
                wanted = self._members.get(event.number)
                if wanted is not None and wanted.stays:
                    wanted.cause = event.cause
            case Pause() if event.number in self._members:
                self._set_aside(self._members[event.number], event, now)
            case Stop():
                self._stopped = True
            case Pause() | Tick():
                pass
            case _:
                assert_never(event)
        for task in self._tasks.values():
            task.plan_for(now)
            if self._recovers_at(task) <= now:
                task.breaker.succeeded()
                task.failures = 0
                task.tripped = False
                task.reason = ""
        changes = self._availability()
        if self._stopped:
            return changes
        return [*changes, *self._retirements(now), *self._starts(now)]

    def next_deadline(self) -> float:
        """Monotonic time at which `handle(Tick(), …)` has something to do; infinity when nothing is awaited."""
        times = [self._recovers_at(task) for task in self._tasks.values()]
        if not self._stopped and self._starting < self._policy.max_starting:
            waiting = (task for task in self._tasks.values() if task.lacks_one and not task.waits_for)
            times += [task.start_at for task in waiting]
        return min(times, default=math.inf)

    def snapshot(self) -> tuple[TaskStaff, ...]:
        return tuple(
            TaskStaff(
                task.name,
                task.wanted,
                task.starting,
                task.ready,
                task.failures,
                task.available,
                task.reason,
                task.plan.minimum,
                task.plan.maximum,
                task.waits_for,
                sum(member.plan.version != task.plan.version for member in task.members.values()),
            )
            for task in self._tasks.values()
        )

    @property
    def _starting(self) -> int:
        return sum(not member.ready for member in self._members.values())

    # What is heard

    def _ready(self, member: Member, now: float, random: float) -> None:
        member.ready_at = now
        member.share = 1.0 - JITTER * random
        member.task.serving_since = min(member.task.serving_since, now)

    def _ended(self, member: Member, event: InstanceEnded, now: float, random: float) -> None:
        task = member.task
        del task.members[member.number]
        self._budget.give_back(member.plan.need)
        if not task.ready:
            task.serving_since = math.inf
        if task.given_up and not task.members:
            del self._tasks[task.name]
        if not event.failed:
            return
        task.breaker.failed(now)
        task.tripped = task.tripped or task.breaker.is_open(now)
        task.start_at = max(now + self._policy.backoff.delay_s(task.failures, random), task.breaker.retry_at())
        task.failures += 1
        task.failed_at = now
        task.reason = event.reason

    def _set_aside(self, member: Member, event: Pause, now: float) -> None:
        """One that goes on counts as just used: if somebody was started for it, that one has become too many."""
        if member.paused and not event.paused:
            member.used_at = now
        member.paused = event.paused

    def _observe(self, seen: Observed, now: float) -> None:
        self._host_free_bytes = seen.host_free_bytes
        worked: dict[Task, int] = {}
        for member in self._members.values():
            member.busy = member.number in seen.in_use
        for number, executions in seen.in_use.items():
            user = self._members.get(number)
            if user is not None:
                user.used_at, user.executions = now, executions
                worked[user.task] = worked.get(user.task, 0) + 1
        for number, held in seen.memory_bytes.items():
            if number in self._members:
                self._members[number].memory_bytes = held
        for name, load in seen.loads.items():
            task = self._tasks.get(name)
            if task is not None:
                task.load = load
                task.demand.observe(now, load.queued, load.in_flight, task.plan.concurrency, task.serving)
                task.demand.worked(now, worked.get(task, 0))

    def _replan(self, plans: Mapping[str, TaskPlan | None], now: float) -> None:
        for name, plan in plans.items():
            task = self._tasks.get(name)
            if plan is None:
                if task is not None:
                    self._give_up(task)
            elif task is None:
                self._tasks[name] = self._new_task(name, plan, now)
            else:
                if plan.version != task.plan.version:  # what failed before need not fail now
                    task.breaker.succeeded()
                    task.start_at, task.failures, task.tripped, task.reason = now, 0, False, ""
                task.plan, task.given_up = plan, False
                task.demand.idle_timeout_s = plan.idle_timeout_s

    def _give_up(self, task: Task) -> None:
        if task.members:
            task.given_up = True
        else:
            del self._tasks[task.name]

    def _recovers_at(self, task: Task) -> float:
        return max(task.failed_at, task.serving_since) + self._policy.settled_s if task.failures else math.inf

    # What is said

    def _availability(self) -> list[Action]:
        changes: list[Action] = []
        for task in self._tasks.values():
            available = task.ready > 0 or not task.tripped
            if available != task.available:
                task.available = available
                reason = "" if available else f"instances of task {task.name!r} fail again and again: {task.reason}"
                changes.append(Availability(task.name, available, reason))
        return changes

    def _retirements(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for task in self._tasks.values():
            fresh = sum(member.ready and member.serves for member in task.members.values())
            if fresh >= task.wanted:
                actions += [self._retire(member, member.cause) for member in task.outgoing]
            self._mark_one(task, now)
            cause = "it is not needed any more"
            candidates = task.idle()
            if task.given_up:
                cause = "its task was removed"
                candidates += [*task.working(), *task.paused()]
            elif task.serving > task.plan.maximum:
                cause = f"there are to be at most {task.plan.maximum}"
                candidates += task.working()
            excess = len(candidates) if task.given_up else max(0, task.serving - task.wanted)
            actions += [self._retire(member, cause) for member in candidates[:excess]]
        return actions

    def _mark_one(self, task: Task, now: float) -> None:
        """The next one to be replaced, unless somebody is just now."""
        if task.given_up or any(member.cause and not member.retiring for member in task.members.values()):
            return
        for member in [*task.idle(), *task.working(), *task.paused()]:
            member.cause = member.due(now)
            if member.cause:
                return

    def _retire(self, member: Member, cause: str) -> Retire:
        member.retiring = True
        return Retire(member.number, cause)

    def _starts(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for task in self._tasks.values():
            task.waits_for = ""
        while self._starting < self._policy.max_starting:
            due = [task for task in self._tasks.values() if task.lacks_one and task.start_at <= now]
            due = [task for task in due if not task.waits_for]
            if not due:
                break
            task = min(due, key=lambda task: task.starting)
            task.waits_for = self._budget.shortage(task.plan.need, self._host_free_bytes)
            if task.waits_for:
                actions += self._make_room(task)
            else:
                actions.append(self._start(task))
        return actions

    def _start(self, task: Task) -> StartInstance:
        member = Member(next(self._numbers), task, task.plan)
        self._members[member.number] = task.members[member.number] = member
        self._budget.take(task.plan.need)
        return StartInstance(task.name, member.number)

    def _make_room(self, task: Task) -> list[Action]:
        """Something is too scarce for one more instance: one that is to be replaced goes first, or, where nobody is
        there for the work that waits, an idle one of another task that has more than its minimum."""
        if any(member.retiring for member in self._members.values()):
            return []  # there will be room
        for member in task.outgoing[:1]:
            return [self._retire(member, member.cause)]
        if task.ready or task.starting or not task.load.queued:
            return []
        spare = [
            member
            for other in self._tasks.values()
            if other is not task and other.serving > other.plan.minimum and not other.load.queued
            for member in other.idle()[:1]
        ]
        coldest = min(spare, key=lambda member: max(member.used_at, member.ready_at), default=None)
        return [] if coldest is None else [self._retire(coldest, f"task {task.name!r} needs its room")]
