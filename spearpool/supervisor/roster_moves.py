"""What can happen to the workers of a pool (events) and what the roster orders (actions), as frozen values.

Every one that concerns a single worker names its slot and its incarnation. `roster.Roster` says what follows what.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    "Spawn",
    "SpawnFailed",
    "StartFailed",
    "Started",
    "StopRequested",
    "Tick",
    "WorkerExited",
    "WorkerReady",
]


# Events


@dataclass(frozen=True, slots=True)
class Started:
    """The warden has forked the worker."""

    slot: int
    incarnation: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """There is no such process, and never was."""

    slot: int
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerReady:
    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The worker said why it cannot serve; its exit follows."""

    slot: int
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """The worker was reaped: exit code or signal number, the other is None."""

    slot: int
    incarnation: int
    code: int | None
    signal: int | None


@dataclass(frozen=True, slots=True)
class StopRequested:
    """Have everybody finish what is in flight until `deadline` (monotonic seconds); a second request may be sooner."""

    deadline: float


@dataclass(frozen=True, slots=True)
class Drained:
    """The worker has nothing in flight any more."""

    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """Have everybody exit; who has not by `deadline` (monotonic seconds) is killed."""

    deadline: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Started | SpawnFailed | WorkerReady | StartFailed | WorkerExited | StopRequested | Drained | LeaveRequested | Tick
)


# Actions


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker into a seat (its index in the segment); answered by `Started` or `SpawnFailed`."""

    slot: int
    seat: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Drain:
    slot: int
    incarnation: int
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Leave:
    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL. The worker stays in the roster until its exit is seen."""

    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class AllReady:
    """Every slot has a worker that serves; said once, when the start is complete."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The pool cannot start. Kills follow, then `AllGone`."""

    reason: str


@dataclass(frozen=True, slots=True)
class AllDrained:
    """Nothing is in flight anywhere: time for `LeaveRequested`."""


@dataclass(frozen=True, slots=True)
class AllGone:
    """No worker is left and none will come."""


Action = Spawn | Drain | Leave | Kill | AllReady | GiveUp | AllDrained | AllGone
