"""What `scaling` is told and what it says: events, actions, plans, and what `status` shows of a task's staff."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from spearpool.backoff import Backoff

from .budget import Need

__all__ = [
    "Action",
    "Availability",
    "Event",
    "InstanceEnded",
    "InstanceReady",
    "Load",
    "Observed",
    "Pause",
    "Recycle",
    "Replan",
    "Retire",
    "ScalingPolicy",
    "StartInstance",
    "Stop",
    "TaskPlan",
    "TaskStaff",
    "Tick",
]


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """How many instances a task may have, and when one of them is replaced; 0: never.

    An instance of another `version` than its task's plan is replaced as well.
    """

    minimum: int
    maximum: int
    concurrency: int = 1
    warm_spare: int = 0
    idle_timeout_s: float = math.inf
    max_executions: int = 0
    max_age_s: float = 0.0
    max_memory_bytes: int = 0
    need: Need = Need()
    version: int = 0


@dataclass(frozen=True, slots=True)
class InstanceReady:
    """An instance that `StartInstance` asked for is ready."""

    number: int


@dataclass(frozen=True, slots=True)
class InstanceEnded:
    """An instance that `StartInstance` asked for is gone, or could not even be launched.

    `failed`: its end counts as a failure; `reason` says what happened.
    """

    number: int
    failed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Load:
    """A task's executions now: those that wait, and those at its instances."""

    queued: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class Observed:
    """A look at the pool. `in_use` are the instances that have worked since the last look, with the number of
    executions that each was given until now; `memory_bytes` what instances hold, where it was measured."""

    loads: Mapping[str, Load]
    in_use: Mapping[int, int]
    memory_bytes: Mapping[int, int] = field(default_factory=dict)
    host_free_bytes: float = math.inf


@dataclass(frozen=True, slots=True)
class Replan:
    """Other plans for tasks; a task that had none is new, one whose plan is None is given up."""

    plans: Mapping[str, TaskPlan | None]


@dataclass(frozen=True, slots=True)
class Recycle:
    """Somebody wants this instance replaced."""

    number: int
    cause: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Somebody has paused an instance, or has it go on."""

    number: int
    paused: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Start no more instances."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = InstanceReady | InstanceEnded | Observed | Replan | Recycle | Pause | Stop | Tick


@dataclass(frozen=True, slots=True)
class StartInstance:
    """Start an instance; answered by `InstanceReady` and `InstanceEnded`, or by `InstanceEnded` alone."""

    task: str
    number: int


@dataclass(frozen=True, slots=True)
class Retire:
    """Have an instance end when it has finished what it has."""

    number: int
    cause: str


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether the task can be served has changed; `reason` is for clients and `status`."""

    task: str
    available: bool
    reason: str


Action = StartInstance | Retire | Availability


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
    """One task as `status` shows it. `failures` counts those in a row; `reason` tells the last one, if any;
    `waits_for` says which resource keeps it from having more instances."""

    task: str
    wanted: int
    starting: int
    ready: int
    failures: int
    available: bool
    reason: str
    minimum: int = 0
    maximum: int = 0
    waits_for: str = ""
    outdated: int = 0
