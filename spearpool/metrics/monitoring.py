"""`MonitoringService`: what happens becomes counters, histograms and records of one seat.

The caller reports; nothing here blocks, grows without bound or raises. The switches of `MonitoringConfig` decide per
kind: connection tracking (everything that happens to a connection, messages excepted), message tracking, and
performance tracking (durations and histograms); the master switch turns off all of it. Executions, instances and
workers follow the master switch alone. Names that a stranger chooses are never interned: whoever fails to authenticate
must not be able to fill the table.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from time import time_ns
from typing import NamedTuple, assert_never

from spearpool.config import MonitoringConfig
from spearpool.errors import ErrorCode
from spearpool.protocol.events import (
    Authenticated,
    AuthenticationFailed,
    Connected,
    ConnectionEvent,
    Direction,
    Disconnected,
    Errored,
    HeartbeatTimeout,
    MessageReceived,
    MessageSent,
)
from spearpool.protocol.identifiers import ConnectionId, InstanceId
from spearpool.protocol.messages import MessageType

from .histogram import HISTOGRAM_WORDS, bucket_of
from .seat import OTHER_NAME, Seat
from .vocabulary import (
    CLOSE_REASONS,
    CLOSED,
    COUNTER,
    DIRECTIONS,
    FINAL_STAGES,
    GAUGE,
    HISTOGRAM,
    INSTANCE_COUNTERS,
    NO_TASK,
    RECORD_FLAGS,
    TASK_COUNTERS,
    TASK_HISTOGRAM,
    TASK_WORDS,
    EventKind,
    ExecutionStage,
    InstanceStage,
    WorkerStage,
)

__all__ = ["MonitoringService", "StageReport"]

_OPENED = COUNTER["connections_opened"]
_AUTHENTICATED, _AUTH_FAILED = COUNTER["authenticated"], COUNTER["auth_failed"]
_HEARTBEAT_TIMEOUTS, _ERRORS_OTHER = COUNTER["heartbeat_timeouts"], COUNTER["errors_other"]
_RECORDING_ERRORS = COUNTER["recording_errors"]
_AUTHENTICATED_NOW = GAUGE["authenticated_now"]
_LIFETIME, _AUTH_DURATION = HISTOGRAM["connection_lifetime_ns"], HISTOGRAM["auth_duration_ns"]
_SIZE_SUM = HISTOGRAM["message_size_bytes"] * HISTOGRAM_WORDS
_PROCESSING_SUM = HISTOGRAM["message_processing_ns"] * HISTOGRAM_WORDS
_SIZE_BUCKETS, _PROCESSING_BUCKETS = _SIZE_SUM + 1, _PROCESSING_SUM + 1
_LAG, _INSTANCE_START = HISTOGRAM["event_loop_lag_ns"], HISTOGRAM["instance_start_ns"]
_DURATION, _QUEUE = TASK_HISTOGRAM["execution_duration_ns"], TASK_HISTOGRAM["execution_queue_ns"]

_CLOSE_CODE = {reason: code for code, reason in enumerate(CLOSE_REASONS)}
_ERROR_COUNTER = {int(code): COUNTER[f"errors_{code.value}"] for code in ErrorCode}
_OF_TASK = {stage: TASK_COUNTERS.index(name) for stage, name in INSTANCE_COUNTERS.items()}
_OBSERVED = tuple(
    _DURATION if stage in FINAL_STAGES else _QUEUE if stage is ExecutionStage.DISPATCHED else None
    for stage in ExecutionStage
)
"""By stage of an execution: the histogram that takes its duration, if any."""


def _messages(way: str, kind: EventKind, direction: str) -> dict[MessageType, tuple[int, int, int, int, int]]:
    """Counter of messages, counter of bytes, record kind, type and direction by message type."""
    volume, place = COUNTER[f"bytes_{way}"], DIRECTIONS.index(direction)
    return {
        message: (COUNTER[f"messages_{way}_{message.name.lower()}"], volume, int(kind), message.code, place)
        for message in MessageType
    }


_INCOMING = _messages("in", EventKind.MESSAGE_RECEIVED, "incoming")
_OUTGOING = _messages("out", EventKind.MESSAGE_SENT, "outgoing")
# Looking up a member of an Enum costs 100 ns, a tenth of what recording a message may cost: they are kept as globals.
_DIRECTION_IN = Direction.INCOMING
_EXECUTION = int(EventKind.EXECUTION_RECEIVED)
_INSTANCE = int(EventKind.INSTANCE_REQUESTED)
_WORKER = int(EventKind.WORKER_SPAWNED)

_WAS_AUTHENTICATED, _HAS_CODE = RECORD_FLAGS["authenticated"], RECORD_FLAGS["has_code"]
_MAX_CAUSES = 32
_MAX_CODE = 0xFFFF
_MAX_SECONDS = 1e9
_NOT_RECORDABLE = (struct.error, ValueError, OverflowError, TypeError, LookupError)


_Tracked = Connected | Authenticated | AuthenticationFailed | Disconnected | HeartbeatTimeout | Errored


class _Peer(NamedTuple):
    """What the records of an authenticated connection say about its other side."""

    instance: int = 0
    task: int = NO_TASK
    name: int = 0


_STRANGER = _Peer()


class StageReport(NamedTuple):
    """What is told of an instance that reached a stage.

    It was `ago_ns` ago, `duration_ns` after the stage before and `age_ns` after the request. `connection` is its
    agent's, if there is or was one. Of an end, `code` is the exit code, or minus the signal; of a restart, how many
    there were. `reason` says it in a few words; their number must be bounded, since they become names of the seat.
    """

    ago_ns: int = 0
    duration_ns: int = 0
    age_ns: int = 0
    connection: int = 0
    code: int | None = None
    reason: str = ""


class MonitoringService:
    """Records into one seat, which its process occupies. `master` is `ConnectionManagerConfig.enable_monitoring`."""

    def __init__(self, seat: Seat, config: MonitoringConfig, master: bool = True) -> None:
        enabled = master and config.enabled
        self._seat = seat
        self._counters = seat.counters
        self._histograms = seat.histograms
        self._tasks = seat.task_counters
        self._write = seat.ring.write
        self._enabled = enabled
        self._connections = enabled and config.enable_connection_tracking
        self._messages = enabled and config.enable_message_tracking
        self._performance = enabled and config.enable_performance_tracking
        self._peers: dict[int, _Peer] = {}
        self._causes: dict[str, int] = {}

    def record_message_event(
        self,
        connection_id: int,
        message_type: MessageType,
        direction: Direction,
        size_bytes: int,
        processing_ns: int = 0,
        instance: int = 0,
    ) -> None:
        """A whole message came or went. `instance` is the agent's; it is known by itself once it authenticated."""
        if not self._messages:
            return
        try:
            peer = self._peers.get(connection_id, _STRANGER)
            counter, volume, kind, code, way = (_INCOMING if direction is _DIRECTION_IN else _OUTGOING)[message_type]
            told_ns = processing_ns if self._performance else 0
            self._write(
                time_ns(), kind, connection_id, instance or peer[0], told_ns, size_bytes, peer[2], 0, peer[1], code, way
            )
            counters = self._counters
            counters[counter] += 1
            counters[volume] += size_bytes
            if self._performance:  # `Seat.observe` written out: calls are what costs here
                histograms = self._histograms
                histograms[_SIZE_SUM] += size_bytes
                histograms[_SIZE_BUCKETS + bucket_of(size_bytes)] += 1
                if processing_ns:
                    histograms[_PROCESSING_SUM] += processing_ns
                    histograms[_PROCESSING_BUCKETS + bucket_of(processing_ns)] += 1
        except _NOT_RECORDABLE:
            self._not_recorded()

    def record_connection_event(self, connection_id: int, event: ConnectionEvent) -> None:
        """Something happened to a connection (`ConnectionId.pack()`)."""
        if isinstance(event, MessageReceived):
            self.record_message_event(connection_id, event.message_type, Direction.INCOMING, event.size_bytes)
        elif isinstance(event, MessageSent):
            self.record_message_event(connection_id, event.message_type, Direction.OUTGOING, event.size_bytes)
        elif self._connections:
            try:
                self._record(connection_id, event)
            except _NOT_RECORDABLE:
                self._not_recorded()

    def record_error(self, connection_id: int, code: int) -> None:
        """A protocol error was sent or received; `code` is the wire's."""
        self.record_connection_event(connection_id, Errored(code, ""))

    def record_handed_over(self, connection_id: int, seat: int) -> None:
        """The connection belongs to the occupant of that seat from now on, who records that it was taken in."""
        if not self._connections:
            return
        try:
            self._seat.hand_over(seat)
            self._seat.gauges[_AUTHENTICATED_NOW] -= 1
            self._write_of(connection_id, EventKind.HANDED_OVER, 0, flags=_WAS_AUTHENTICATED)
            self._peers.pop(connection_id, None)
        except _NOT_RECORDABLE:
            self._not_recorded()

    def record_taken_in(self, connection_id: int, label: str, instance: int = 0, *, counted: bool = True) -> None:
        """A connection came from another worker; not `counted` there, it counts as opened here.

        `label` and `instance` are those of its `Authenticated`.
        """
        if not self._connections:
            return
        try:
            if not counted:
                self._counters[_OPENED] += 1
            self._seat.gauges[_AUTHENTICATED_NOW] += 1
            self._peers[connection_id] = self._peer(label, instance)
            self._write_of(connection_id, EventKind.TAKEN_IN, 0, flags=_WAS_AUTHENTICATED)
        except _NOT_RECORDABLE:
            self._not_recorded()

    def record_execution(self, stage: ExecutionStage, task_index: int, duration_ns: int = 0) -> None:
        """An execution of a task reached a stage, so long after it was received."""
        if not self._enabled:
            return
        try:
            told_ns = duration_ns if self._performance else 0
            self._tasks[task_index * TASK_WORDS + stage] += 1
            self._write(time_ns(), _EXECUTION + stage, 0, 0, told_ns, 0, 0, 0, task_index)
            histogram = _OBSERVED[stage]
            if self._performance and histogram is not None:
                self._seat.observe_task(task_index, histogram, duration_ns)
        except _NOT_RECORDABLE:
            self._not_recorded()

    def record_instance(self, stage: InstanceStage, instance: InstanceId, task_index: int, told: StageReport) -> None:
        """A launched instance reached a stage. For the supervisor's own seat."""
        if not self._enabled:
            return
        try:
            self._write(
                time_ns() - told.ago_ns,
                _INSTANCE + stage,
                told.connection,
                instance.pack(),
                told.duration_ns if self._performance else 0,
                name=self._seat.intern(told.reason) if told.reason else 0,
                code=(told.code or 0) & _MAX_CODE,
                task=task_index,
                flags=0 if told.code is None else _HAS_CODE,
            )
            if stage in _OF_TASK:
                self._seat.task_counters[task_index * TASK_WORDS + _OF_TASK[stage]] += 1
            if self._performance and stage is InstanceStage.READY:
                self._seat.observe(_INSTANCE_START, told.age_ns)
        except _NOT_RECORDABLE:
            self._not_recorded()

    def record_worker(self, stage: WorkerStage, slot: int, incarnation: int, code: int = 0) -> None:
        """A worker reached a stage; `code` is its exit code or signal. For the supervisor's own seat."""
        if not self._enabled:
            return
        try:
            worker = ConnectionId(slot, incarnation, 0).pack()
            self._write(time_ns(), _WORKER + stage, connection=worker, code=code & _MAX_CODE)
        except _NOT_RECORDABLE:
            self._not_recorded()

    def record_loop_lag(self, lag_ns: int) -> None:
        """The event loop turned so much later than it should have."""
        if not self._performance:
            return
        try:
            self._seat.observe(_LAG, max(lag_ns, 0))
        except _NOT_RECORDABLE:
            self._not_recorded()

    def _record(self, connection: int, event: _Tracked) -> None:
        match event:
            case Connected():
                self._counters[_OPENED] += 1
                self._write(time_ns(), EventKind.CONNECTED, connection)
            case Authenticated():
                self._record_authenticated(connection, event)
            case AuthenticationFailed(cause=cause):
                self._counters[_AUTH_FAILED] += 1
                self._write(time_ns(), EventKind.AUTHENTICATION_FAILED, connection, name=self._cause(cause))
            case Disconnected():
                self._record_disconnected(connection, event)
            case HeartbeatTimeout(silent_s=silent_s):
                self._counters[_HEARTBEAT_TIMEOUTS] += 1
                self._write_of(connection, EventKind.HEARTBEAT_TIMEOUT, self._told_ns(silent_s))
            case Errored(code=code):
                self._counters[_ERROR_COUNTER.get(code, _ERRORS_OTHER)] += 1
                self._write_of(connection, EventKind.ERROR, 0, min(max(code, 0), _MAX_CODE))
            case _:
                assert_never(event)

    def _record_authenticated(self, connection: int, event: Authenticated) -> None:
        duration_ns = self._told_ns(event.duration_s)
        self._peers[connection] = self._peer(event.instance_id, event.instance)
        self._counters[_AUTHENTICATED] += 1
        self._seat.gauges[_AUTHENTICATED_NOW] += 1
        if self._performance:
            self._seat.observe(_AUTH_DURATION, duration_ns)
        self._write_of(connection, EventKind.AUTHENTICATED, duration_ns, flags=_WAS_AUTHENTICATED)

    def _record_disconnected(self, connection: int, event: Disconnected) -> None:
        code = _CLOSE_CODE[event.reason]
        lifetime_ns = self._told_ns(event.lifetime_s)
        self._counters[CLOSED[code]] += 1
        if event.authenticated:
            self._seat.gauges[_AUTHENTICATED_NOW] -= 1
        if self._performance:
            self._seat.observe(_LIFETIME, lifetime_ns)
        flags = _WAS_AUTHENTICATED if event.authenticated else 0
        self._write_of(connection, EventKind.DISCONNECTED, lifetime_ns, code, flags)
        self._peers.pop(connection, None)

    def _write_of(self, connection: int, kind: EventKind, duration_ns: int, code: int = 0, flags: int = 0) -> None:
        instance, task, name = self._peers.get(connection, _STRANGER)
        self._write(time_ns(), kind, connection, instance, duration_ns, 0, name, code, task, flags=flags)

    def _peer(self, label: str, instance: int) -> _Peer:
        """Launched instances are named by task and number; everybody else by an interned name."""
        if not instance:
            return _Peer(name=self._seat.intern(label))
        task, *_ = label.rsplit("-", 2)
        if InstanceId.unpack(instance).name(task) == label:
            return _Peer(instance, self._seat.segment.task_index(task))
        return _Peer(instance, name=self._seat.intern(label))

    def _cause(self, cause: str) -> int:
        """Causes may quote what a stranger sent: only so many different ones get a name."""
        place = self._causes.get(cause)
        if place is None:
            if len(self._causes) >= _MAX_CAUSES:
                return OTHER_NAME
            place = self._causes[cause] = self._seat.intern(cause)
        return place

    def _told_ns(self, seconds: float) -> int:
        """A duration in ns; 0 where durations are not wanted or make no sense."""
        return int(seconds * 1e9) if self._performance and 0 <= seconds < _MAX_SECONDS else 0

    def _not_recorded(self) -> None:
        """A value did not fit its field, or the segment is closed: count it where that is still possible."""
        with suppress(ValueError):
            self._counters[_RECORDING_ERRORS] += 1
