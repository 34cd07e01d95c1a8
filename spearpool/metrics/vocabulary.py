"""The names of everything that is counted, recorded and told, each in one table; a name's place is its number.

`layout` says where they lie, and hands on the names that readers of a segment need.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from spearpool.errors import ErrorCode
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import MessageType

__all__ = [
    "AGENT_FIELDS",
    "BOARD",
    "CLOSED",
    "CLOSE_REASONS",
    "COUNTER",
    "COUNTERS",
    "DIRECTIONS",
    "EXECUTION_COUNTERS",
    "FINAL_STAGES",
    "GAUGE",
    "GAUGES",
    "HISTOGRAM",
    "HISTOGRAMS",
    "INSTANCE_COUNTERS",
    "LIMITS",
    "LIMIT_FIELDS",
    "LIMIT_SCALES",
    "LIVENESS",
    "NAME_BYTES",
    "NAME_TABLE_HEAD",
    "NO_MESSAGE_TYPE",
    "NO_TASK",
    "OTHER",
    "RECORD_BYTES",
    "RECORD_FIELDS",
    "RECORD_FLAGS",
    "RECORD_FORMAT",
    "RING_RECORDS",
    "ROW_FIELDS",
    "ROW_LABEL_WORD",
    "ROW_LIMITS_WORD",
    "ROW_PAUSE_WORD",
    "ROW_STAGES",
    "ROW_WORDS",
    "TASK_COUNTERS",
    "TASK_HISTOGRAM",
    "TASK_HISTOGRAMS",
    "TASK_WORDS",
    "EventKind",
    "ExecutionStage",
    "InstanceStage",
    "LimitLevel",
    "SeatState",
    "WorkerStage",
]

OTHER = "other"


class SeatState(IntEnum):
    EMPTY = 0
    STARTING = 1
    READY = 2
    LEAVING = 3
    GONE = 4


class ExecutionStage(IntEnum):
    """What happened to an execution; the origin worker alone counts. Each stage is a counter of the task's block."""

    RECEIVED = 0
    QUEUED = 1
    DISPATCHED = 2  # to a local agent; its duration is the time since it was received
    FORWARDED = 3  # to a neighbour
    COMPLETED = 4
    FAILED = 5
    CANCELLED = 6
    TIMEOUT = 7
    LOST = 8  # outcome unknown
    REFUSED = 9  # answered with an Error


FINAL_STAGES = frozenset(stage for stage in ExecutionStage if stage >= ExecutionStage.COMPLETED)
"""Every received execution ends in exactly one of these."""


class InstanceStage(IntEnum):
    """How far an instance has come, in this order; it ends in EXITED or in FAILED."""

    REQUESTED = 0
    SPAWNED = 1  # its process was forked
    CONNECTED = 2
    AUTHENTICATED = 3
    READY = 4
    STOPPING = 5  # its end has begun, asked for or because it was too slow
    EXITED = 6  # as it was asked to, or by itself like a program that is done
    FAILED = 7  # in any other way, or it never ran
    RESTARTED = 8  # told right after REQUESTED: it takes the place of one that ended unasked


ROW_STAGES: tuple[InstanceStage, ...] = tuple(stage for stage in InstanceStage if stage is not InstanceStage.RESTARTED)
"""Those that have a time in the instance's row, which says `restarts` besides."""


class WorkerStage(IntEnum):
    SPAWNED = 0
    READY = 1
    DRAINING = 2
    EXITED = 3
    KILLED = 4


class EventKind(IntEnum):
    """What a record is about. `EXECUTION + stage`, `INSTANCE + stage` and `WORKER + stage` are the other kinds."""

    TORN = 0  # was in the hands of a writer that died; carries nothing
    CONNECTED = 1
    AUTHENTICATED = 2
    AUTHENTICATION_FAILED = 3
    DISCONNECTED = 4
    MESSAGE_RECEIVED = 5
    MESSAGE_SENT = 6
    HEARTBEAT_TIMEOUT = 7
    ERROR = 8
    HANDED_OVER = 9  # to another worker, where TAKEN_IN tells the rest; neither closed nor opened
    TAKEN_IN = 10
    EXECUTION_RECEIVED = 16
    EXECUTION_QUEUED = 17
    EXECUTION_DISPATCHED = 18
    EXECUTION_FORWARDED = 19
    EXECUTION_COMPLETED = 20
    EXECUTION_FAILED = 21
    EXECUTION_CANCELLED = 22
    EXECUTION_TIMEOUT = 23
    EXECUTION_LOST = 24
    EXECUTION_REFUSED = 25
    INSTANCE_REQUESTED = 32
    INSTANCE_SPAWNED = 33
    INSTANCE_CONNECTED = 34
    INSTANCE_AUTHENTICATED = 35
    INSTANCE_READY = 36
    INSTANCE_STOPPING = 37
    INSTANCE_EXITED = 38
    INSTANCE_FAILED = 39
    INSTANCE_RESTARTED = 40
    WORKER_SPAWNED = 48
    WORKER_READY = 49
    WORKER_DRAINING = 50
    WORKER_EXITED = 51
    WORKER_KILLED = 52


class Pause(IntEnum):
    """Whether an instance that is asked to rest does so."""

    NONE = 0
    DISPATCH = 1  # no executions are given to it
    PROCESS = 2  # and its processes are stopped


class LimitLevel(IntEnum):
    NONE = 0
    ENFORCED = 1  # by the kernel
    WATCHED = 2  # sampled by the supervisor


CLOSE_REASONS: tuple[CloseReason, ...] = tuple(CloseReason)
"""A `disconnected` record's `code` is an index into this."""

DIRECTIONS = ("", "incoming", "outgoing")
"""A record's `direction` is an index into this."""

COUNTERS: tuple[str, ...] = (
    "ring_records",
    "connections_opened",
    *(f"connections_closed_{reason.value}" for reason in CLOSE_REASONS),
    "authenticated",
    "auth_failed",
    *(f"messages_in_{kind.name.lower()}" for kind in MessageType),
    *(f"messages_out_{kind.name.lower()}" for kind in MessageType),
    "bytes_in",
    "bytes_out",
    "heartbeat_timeouts",
    *(f"errors_{code.value}" for code in ErrorCode),
    "errors_other",
    "recording_errors",
)
"""Counters of a seat; they only grow, whoever sits there. `ring_records` is the tail of the seat's ring."""

GAUGES: tuple[str, ...] = ("authenticated_now", "queue_bytes")
EXECUTION_COUNTERS: tuple[str, ...] = tuple(stage.name.lower() for stage in ExecutionStage)
INSTANCE_COUNTERS: dict[InstanceStage, str] = {
    InstanceStage.REQUESTED: "instances_started",
    InstanceStage.EXITED: "instances_exited",
    InstanceStage.FAILED: "instances_failed",
    InstanceStage.RESTARTED: "instances_restarted",
}
"""Stages that are counted, in the supervisor's seat: started − exited − failed = instances that there are."""

TASK_COUNTERS: tuple[str, ...] = (*EXECUTION_COUNTERS, *INSTANCE_COUNTERS.values())
HISTOGRAMS: tuple[str, ...] = (
    "connection_lifetime_ns",
    "auth_duration_ns",
    "message_size_bytes",
    "message_processing_ns",
    "event_loop_lag_ns",
    "instance_start_ns",
)
TASK_HISTOGRAMS: tuple[str, ...] = ("execution_duration_ns", "execution_queue_ns")
BOARD: tuple[str, ...] = ("free", "queued", "since_ns")
LIVENESS: tuple[str, ...] = ("heartbeat_ns", "state", "incarnation", "pid", "occupied_ns")
AGENT_FIELDS: tuple[str, ...] = ("generation", "connections", "in_flight", "executions", "bytes", "throttled")

LIMITS: tuple[str, ...] = (
    "memory_bytes",
    "cpu_cores",
    "cpu_seconds",
    "open_files",
    "file_size_bytes",
    "processes",
    "disk_bytes",
    "network_bytes_per_s",
    "nice",
    "cpu_affinity",
    "execution_timeout_s",
)
"""Limits of an instance in the order of their places in its row; `cpu_affinity` is told as a number of CPUs."""

LIMIT_SCALES: dict[str, int] = {"cpu_cores": 1000, "execution_timeout_s": 1000}
"""Limits whose words are thousandths, so that they may be fractions."""

LIMIT_FIELDS: tuple[str, ...] = ("level", "value", "usage", "breaches")
ROW_FIELDS: tuple[str, ...] = (
    "generation",
    "alive",
    "external",
    "task",
    "owner",
    "pid",
    "start_ticks",
    "restarts",
    *(f"{stage.name.lower()}_ns" for stage in ROW_STAGES),
)

RECORD_FIELDS: tuple[tuple[str, str, str], ...] = (
    ("sequence", "Q", "<u8"),  # position in the ring since the segment was made
    ("time_ns", "q", "<i8"),  # wall clock
    ("connection", "Q", "<u8"),  # ConnectionId.pack()
    ("instance", "Q", "<u8"),  # InstanceId.pack(), 0: none
    ("duration_ns", "Q", "<u8"),
    ("size", "I", "<u4"),  # bytes of the message
    ("name", "I", "<u4"),  # place in the seat's name table, 0: none
    ("code", "H", "<u2"),  # close reason, wire error code, exit code or signal, restarts; see `RECORD_FLAGS`
    ("task", "H", "<u2"),  # task column, NO_TASK: none
    ("kind", "B", "|u1"),
    ("message_type", "B", "|u1"),  # MessageType.code, NO_MESSAGE_TYPE: none
    ("direction", "B", "|u1"),
    ("flags", "B", "|u1"),  # bits of `RECORD_FLAGS`
    ("check", "Q", "<u8"),  # xor of the seven words before it when the layout is `sealed`, else 0
)
RECORD_FORMAT = "<" + "".join(code for _, code, _ in RECORD_FIELDS)
RECORD_BYTES = 64
RING_RECORDS = (64, 2**24)
"""Fewest and most records of a ring."""

RECORD_FLAGS: dict[str, int] = {"authenticated": 1, "has_code": 2}
"""Bits of a record's `flags`: the connection was authenticated; `code` tells of an instance. Of one that ended, it is
the exit code or minus the signal (as 16 bits), of one that was restarted, how often."""

NO_TASK = 0xFFFF
NO_MESSAGE_TYPE = 0xFF

NAME_BYTES = 64
NAME_TABLE_HEAD: tuple[str, ...] = ("used", "refused")
TASK_WORDS = 16
LIMIT_SLOTS = 12
ROW_WORDS = 80
ROW_LIMITS_WORD = 16
ROW_LABEL_WORD = ROW_LIMITS_WORD + LIMIT_SLOTS * len(LIMIT_FIELDS)
ROW_PAUSE_WORD = ROW_LABEL_WORD + NAME_BYTES // 8


def _places(names: Sequence[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}


COUNTER = _places(COUNTERS)
GAUGE = _places(GAUGES)
HISTOGRAM = _places(HISTOGRAMS)
TASK_HISTOGRAM = _places(TASK_HISTOGRAMS)
CLOSED: tuple[int, ...] = tuple(COUNTER[f"connections_closed_{reason.value}"] for reason in CLOSE_REASONS)
"""Places of the `connections_closed_…` counters."""
