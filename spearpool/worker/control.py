"""What supervisor and worker say to each other over the worker's control channel.

The first record to a worker is always `Setup`. After that either side speaks when it has something to say; there are no
replies to wait for except `ExternalRow`, which answers `ExternalAgent` by its `request`.
"""

from __future__ import annotations

import signal
import socket

from spearpool.channel import Channel
from spearpool.config import Settings
from spearpool.packing import Packer, Record

__all__ = [
    "EXIT_CANNOT_START",
    "STACKS_SIGNAL",
    "AgentPaused",
    "Claim",
    "Disown",
    "Drain",
    "Drained",
    "Emptied",
    "Empty",
    "ExternalAgent",
    "ExternalRow",
    "FromWorker",
    "Key",
    "Leave",
    "LeaveWanted",
    "Link",
    "Overran",
    "Ready",
    "Released",
    "Rescue",
    "RescueOver",
    "Revocations",
    "RowCleared",
    "Setup",
    "SignalAgent",
    "StartFailed",
    "SupervisorEnd",
    "TaskState",
    "ToWorker",
    "WorkWaits",
    "WorkerEnd",
    "supervisor_end",
    "worker_end",
]


EXIT_CANNOT_START = 78
"""Exit code (EX_CONFIG) of a worker that cannot serve at all: while the pool starts, the start fails with it."""

STACKS_SIGNAL = signal.SIGUSR2
"""Has a worker that is ready write the stacks of its threads to its log, whatever it is doing, and go on."""


class Key(Record, frozen=True):
    """A key for tokens: `launch` keys live in memory only, `issue` keys in the state directory."""

    key_id: str
    secret: bytes


class Setup(Record, frozen=True):
    """First record; descriptors: the slot's listener, the segment, the Unix socket that agents dial."""

    slot: int
    seat: int
    incarnation: int
    epoch: int
    settings: Settings
    keys: list[Key]
    revoked: list[str]


class Link(Record, frozen=True):
    """A link to a neighbour; descriptors: our ends of the stream and of the channel for hand-over."""

    slot: int
    seat: int
    incarnation: int


class Rescue(Record, frozen=True):
    """Accept for this slot as well: its own worker is not there; descriptor: the slot's listener."""

    slot: int


class RescueOver(Record, frozen=True):
    """The slot has a worker again: close its listener."""

    slot: int


class Disown(Record, frozen=True):
    """A newer connection of this instance won: close this one."""

    row: int
    generation: int
    connection: int


class RowCleared(Record, frozen=True):
    """The instance is gone or revoked: close what is left of it."""

    row: int
    generation: int


class ExternalRow(Record, frozen=True):
    """Answer to `ExternalAgent`; `generation` 0: refused."""

    request: int
    row: int
    generation: int


class SignalAgent(Record, frozen=True):
    """Send this signal (`Terminate`, `Pause`, …, or a custom name) to the instance's agent."""

    row: int
    generation: int
    signal: str


class AgentPaused(Record, frozen=True):
    """Dispatch no more to this instance's agent, or dispatch again; said to every worker. Its row says the same
    (`Pause`), to whoever gets the agent later."""

    row: int
    generation: int
    pause: int


class TaskState(Record, frozen=True):
    """Whether a task can be served; `reason` is told to clients with 503 when not."""

    task: str
    available: bool
    reason: str


class Revocations(Record, frozen=True):
    """The whole list of revoked token ids."""

    revoked: list[str]


class Drain(Record, frozen=True):
    """Stop accepting, refuse new executions (503), finish those in flight for at most `deadline_s`, then `Drained`."""

    deadline_s: float


class Empty(Record, frozen=True):
    """A planned leave; others go on serving. Stop accepting, and give up every connection at a moment when nothing is
    under way on it: to a neighbour, else it is closed. Refuse nothing until then; at the latest after `deadline_s` say
    `Emptied`.
    """

    deadline_s: float


class Leave(Record, frozen=True):
    """Close everything and exit 0."""


class Ready(Record, frozen=True):
    """The worker serves."""

    pid: int


class StartFailed(Record, frozen=True):
    """The worker cannot serve and exits."""

    reason: str


class Claim(Record, frozen=True):
    """An agent authenticated here. Times are monotonic ns."""

    row: int
    generation: int
    connection: int
    connected_ns: int
    authenticated_ns: int


class Released(Record, frozen=True):
    """An agent's connection ended here."""

    row: int
    generation: int
    connection: int
    reason: str


class ExternalAgent(Record, frozen=True):
    """An agent with an issued token authenticated and needs a row."""

    request: int
    instance_id: str
    task: str


class Overran(Record, frozen=True):
    """An execution reached the limit `execution_timeout_s` of its task at this instance and was cancelled; or, with
    `held_s`, the instance has not let go of it so long after that."""

    row: int
    generation: int
    execution_id: str
    held_s: float


class Drained(Record, frozen=True):
    """Nothing is in flight any more, or the deadline passed with `abandoned` executions."""

    abandoned: int


class Emptied(Record, frozen=True):
    """No connection is left, or the deadline passed: how many were handed over, how many we closed, and how many
    executions had to be awaited."""

    handed_over: int
    closed: int
    awaited: int


class WorkWaits(Record, frozen=True):
    """An execution begins to wait here for an instance of this task."""

    task: str


class LeaveWanted(Record, frozen=True):
    """Somebody sent this worker SIGTERM: it asks for an heir, and to be told to empty itself."""


ToWorker = (
    Setup
    | Link
    | Rescue
    | RescueOver
    | Disown
    | RowCleared
    | ExternalRow
    | SignalAgent
    | AgentPaused
    | TaskState
    | Revocations
    | Drain
    | Empty
    | Leave
)
FromWorker = (
    Ready | StartFailed | Claim | Released | ExternalAgent | Overran | Drained | Emptied | LeaveWanted | WorkWaits
)

_TO_WORKER: Packer[ToWorker] = Packer(ToWorker)
_FROM_WORKER: Packer[FromWorker] = Packer(FromWorker)

WorkerEnd = Channel[ToWorker, FromWorker]
SupervisorEnd = Channel[FromWorker, ToWorker]


def worker_end(sock: socket.socket) -> WorkerEnd:
    return Channel(sock, _TO_WORKER, _FROM_WORKER, may_lack_fds=True)


def supervisor_end(sock: socket.socket) -> SupervisorEnd:
    return Channel(sock, _FROM_WORKER, _TO_WORKER)
