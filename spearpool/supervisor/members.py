"""Tasks and their instances as `scaling` keeps them: who is there, who serves, who goes, who is due. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spearpool.backoff import Breaker

from .demand import Demand
from .scaling_moves import Load, TaskPlan

__all__ = ["Member", "Task"]


@dataclass(slots=True, eq=False)
class Member:
    """One instance. `share` is the part of its plan's limits at which it is due; `cause` says why it is to go."""

    number: int
    task: Task
    plan: TaskPlan
    ready_at: float = math.inf
    used_at: float = -math.inf
    share: float = 1.0
    executions: int = 0
    memory_bytes: int = 0
    busy: bool = False
    paused: bool = False
    cause: str = ""
    retiring: bool = False

    @property
    def ready(self) -> bool:
        return self.ready_at < math.inf

    @property
    def stays(self) -> bool:
        return not self.cause and not self.retiring

    @property
    def serves(self) -> bool:
        """Whether it counts among those that there should be."""
        return self.stays and not self.paused

    def due(self, now: float) -> str:
        """Why it must be replaced, `""` when it need not."""
        plan = self.task.plan
        if self.plan.version != plan.version:
            return "its task was reloaded"
        if self.paused:
            return ""
        if plan.max_executions and self.executions >= plan.max_executions * self.share:
            return f"it was given {self.executions} executions (max_executions = {plan.max_executions})"
        if plan.max_age_s and now - self.ready_at >= plan.max_age_s * self.share:
            return f"it has lived for {now - self.ready_at:.0f} s (max_age_s = {plan.max_age_s:g})"
        if plan.max_memory_bytes and self.memory_bytes >= plan.max_memory_bytes * self.share:
            return f"it holds {self.memory_bytes} bytes (max_memory_bytes = {plan.max_memory_bytes})"
        return ""


@dataclass(slots=True, eq=False)
class Task:
    """A task's instances, how many it wants, and what keeps it from them."""

    name: str
    plan: TaskPlan
    breaker: Breaker
    demand: Demand
    start_at: float
    load: Load = Load(0, 0)
    members: dict[int, Member] = field(default_factory=dict)
    failures: int = 0
    failed_at: float = -math.inf
    serving_since: float = math.inf
    tripped: bool = False
    available: bool = True
    reason: str = ""
    waits_for: str = ""
    wanted: int = 0
    given_up: bool = False

    @property
    def starting(self) -> int:
        return sum(not member.ready for member in self.members.values())

    @property
    def ready(self) -> int:
        return sum(member.ready and not member.retiring for member in self.members.values())

    @property
    def serving(self) -> int:
        """Those that are there, or on their way, and are neither to go nor paused."""
        return sum(member.serves for member in self.members.values())

    @property
    def outgoing(self) -> list[Member]:
        """Those that go as soon as they can be spared."""
        members = self.members.values()
        return [member for member in members if member.cause and member.ready and not member.retiring]

    @property
    def lacks_one(self) -> bool:
        """Whether one more may be started as soon as `start_at` has come; a successor goes beyond the maximum."""
        living = sum(not member.retiring for member in self.members.values())
        leaving = any(not member.stays and not member.retiring for member in self.members.values())
        room = living < self.plan.maximum + leaving
        return self.serving < self.wanted and room and not (self.tripped and self.starting)

    def plan_for(self, now: float) -> None:
        """How many instances it should have now."""
        plan = self.plan
        needed = self.demand.needed(now) + plan.warm_spare
        self.wanted = 0 if self.given_up else max(plan.minimum, min(plan.maximum, needed))

    def idle(self) -> list[Member]:
        """Instances that serve and do nothing, the one that was idle longest first."""
        idle = [member for member in self.members.values() if member.ready and member.serves and not member.busy]
        return sorted(idle, key=lambda member: max(member.used_at, member.ready_at))

    def working(self) -> list[Member]:
        return [member for member in self.members.values() if member.ready and member.serves and member.busy]

    def paused(self) -> list[Member]:
        return [member for member in self.members.values() if member.ready and member.stays and member.paused]
