"""What the dispatcher moves about: executions and agents, and the instructions it returns.

An `Execution` is at exactly one `Place` at a time; `dispatch` alone moves it. Whoever is to be answered (`origin`) and
what carries an agent's messages (`connection`) are the shell's own objects: nothing here looks inside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from spearpool.errors import ErrorCode
from spearpool.packing import Record
from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.messages import ExecuteRequest

__all__ = [
    "CLIENT",
    "Action",
    "Agent",
    "Answer",
    "Dispatch",
    "Ending",
    "Execution",
    "Finish",
    "Forward",
    "Located",
    "Mislaid",
    "Nudge",
    "Place",
    "Refuse",
    "Relay",
    "Terminate",
    "TerminateRemote",
    "Unused",
]

CLIENT = -1
"""`Execution.source` when it came from a client and not from a neighbour."""


class Place(Enum):
    """Where an execution is.

    ```
    NEW ──► QUEUED ──► RUNNING ──► ENDED
     │        ▲ │         │ ▲
     │        │ ▼         ▼ │
     ├──► FORWARDED ───► LOST          every place ──► ENDED
     └──► RUNNING
    ```
    """

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"  # at an agent of this worker; it may still wait inside the instance (prefetch)
    FORWARDED = "forwarded"  # at a neighbour, which may not pass it on
    LOST = "lost"  # whoever had it is gone; its agent may come back and name it
    ENDED = "ended"

    __hash__ = object.__hash__  # see MessageType


class Ending(Enum):
    """Why the dispatcher itself ended an execution that had been accepted."""

    TIMED_OUT = "timed out"
    CANCELLED = "cancelled"
    OUTCOME_UNKNOWN = "outcome unknown"

    __hash__ = object.__hash__  # see MessageType


@dataclass(slots=True, eq=False)
class Agent:
    """One agent's connection.

    `who` is equal for connections of the same agent. `running` holds the ids that use its capacity, with None those
    that nobody here waits for, the oldest first; `held` is the capacity of one that is suspended, because it is
    `parked` (about to move) or `paused` (by the user), or both. It runs `concurrency` of them at a time; the clocks of
    one that is `timed` are `stuck`'s. `instance` (its row) and `sent` (execution ids by the request ids that carried
    them there) are the shell's.
    """

    connection: Any
    task: str
    capacity: int
    who: object = None
    running: dict[str, Execution | None] = field(default_factory=dict)
    held: int = 0
    instance: InstanceId | None = None
    sent: dict[int, str] = field(default_factory=dict)
    concurrency: int = 1
    timed: bool = False
    parked: bool = False
    paused: bool = False

    def may_have(self, execution: Execution) -> bool:
        """Whether this agent may be the one that was lost with the execution."""
        where = execution.place in {Place.LOST, Place.FORWARDED}
        return where and execution.task == self.task and execution.who in (None, self.who)


@dataclass(slots=True, eq=False)
class Execution:
    """One run of a task. Times are monotonic seconds; `source` is the neighbour (its incarnation) that forwarded it.

    `who` is the agent that had it last, None when that is not known here.
    """

    execution_id: str
    task: str
    request: ExecuteRequest
    origin: Any
    request_id: int
    size_bytes: int
    received_at: float
    deadline: float = math.inf
    source: int = CLIENT
    place: Place = Place.NEW
    agent: Agent | None = None
    neighbour: int = CLIENT
    who: object = None
    queued_at: float = 0.0


class Dispatch(Record, frozen=True):
    """Send the execution to the agent."""

    execution: Execution
    agent: Agent


class Forward(Record, frozen=True):
    """Send the execution to the neighbour `incarnation`, marked as forwarded."""

    execution: Execution
    incarnation: int


class Answer(Record, frozen=True):
    """The final answer as the agent or the neighbour gave it: pass it to the origin."""

    execution: Execution
    response: Any


class Finish(Record, frozen=True):
    """The execution ended without an answer of its agent: tell the origin how."""

    execution: Execution
    ending: Ending


class Refuse(Record, frozen=True):
    """Nothing was executed: answer with an `Error`."""

    execution: Execution
    code: ErrorCode
    message: str
    details: str | None = None


class Terminate(Record, frozen=True):
    """Tell the agent that nobody waits for this execution any more."""

    agent: Agent
    execution_id: str


class TerminateRemote(Record, frozen=True):
    """The same, to a neighbour."""

    incarnation: int
    execution_id: str


class Nudge(Record, frozen=True):
    """Tell the neighbour that we take one of those that it has queued for the task. It sends one, or says `Unused`."""

    incarnation: int
    task: str


class Unused(Record, frozen=True):
    """Tell the neighbour that nobody waits here for the capacity that its nudge told us of."""

    incarnation: int
    task: str


class Located(Record, frozen=True):
    """Tell the neighbour that an agent which came to us works on this execution, which the neighbour accepted."""

    incarnation: int
    execution_id: str


class Mislaid(Record, frozen=True):
    """Tell it that the agent is gone from here again."""

    incarnation: int
    execution_id: str


class Relay(Record, frozen=True):
    """Pass the final answer of an execution to who accepted it: it found its way here with its agent."""

    incarnation: int
    execution_id: str
    response: Any


Action = (
    Dispatch
    | Forward
    | Answer
    | Finish
    | Refuse
    | Terminate
    | TerminateRemote
    | Nudge
    | Unused
    | Located
    | Mislaid
    | Relay
)
