"""What can happen to the workers of a pool (events) and what the roster orders (actions), as frozen values.

Every one that concerns a single worker names its slot and its incarnation. `roster.Roster` says what follows what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "Action",
    "AllDrained",
    "AllGone",
    "AllReady",
    "Drain",
    "Drained",
    "Emptied",
    "Empty",
    "Event",
    "GiveUp",
    "Hung",
    "Kill",
    "Leave",
    "LeaveRequested",
    "Measured",
    "OfWorker",
    "QueuesSeen",
    "ReloadRequested",
    "RenewRequested",
    "RenewalFailed",
    "Renewed",
    "Renewing",
    "ScaleRequested",
    "SlotRemoved",
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
class Hung:
    """The worker lives and does nothing: `reason`, in words that follow its name."""

    slot: int
    incarnation: int
    reason: str


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
class ReloadRequested:
    """Replace every worker that there is now, one after the other."""


@dataclass(frozen=True, slots=True)
class RenewRequested:
    """Replace this worker: a planned leave with an heir."""

    slot: int
    incarnation: int
    cause: str


@dataclass(frozen=True, slots=True)
class Emptied:
    """The worker has given up all its connections, and has nothing in flight any more."""

    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What the worker has used: connections that it opened in its life, and bytes of its own that it holds now."""

    slot: int
    incarnation: int
    connections: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ScaleRequested:
    """Have so many slots. For new ones there are listeners already; those of removed ones are closed afterwards."""

    slots: int


@dataclass(frozen=True, slots=True)
class QueuesSeen:
    """How many connections wait at each slot that is to be removed, just now."""

    waiting: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """Have everybody exit; who has not by `deadline` (monotonic seconds) is killed."""

    deadline: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


OfWorker = (
    Started
    | SpawnFailed
    | WorkerReady
    | StartFailed
    | WorkerExited
    | Hung
    | Drained
    | RenewRequested
    | Emptied
    | Measured
)
"""Events of a single worker."""

Event = OfWorker | StopRequested | ReloadRequested | ScaleRequested | QueuesSeen | LeaveRequested | Tick


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
class Empty:
    """Have the worker give up what it has, while others go on serving; answered by `Emptied`."""

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
class Renewing:
    """The turn of this worker has come: its heir is to be spawned."""

    slot: int
    incarnation: int
    cause: str


@dataclass(frozen=True, slots=True)
class Renewed:
    """This worker is gone, and its slot serves."""

    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class RenewalFailed:
    """This worker stays, because its heir could not take over; the renewals that were to follow are off, too."""

    slot: int
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class SlotRemoved:
    """Nobody is left in the highest slot and nothing waits there: its listener can be closed."""

    slot: int


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


Action = (
    Spawn
    | Drain
    | Empty
    | Leave
    | Kill
    | Renewing
    | Renewed
    | RenewalFailed
    | SlotRemoved
    | AllReady
    | GiveUp
    | AllDrained
    | AllGone
)
