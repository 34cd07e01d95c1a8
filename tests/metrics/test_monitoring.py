from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spearpool.config import MonitoringConfig
from spearpool.errors import ErrorCode
from spearpool.metrics.histogram import HISTOGRAM_WORDS
from spearpool.metrics.layout import (
    SEAT_NAMES,
)
from spearpool.metrics.monitoring import MonitoringService, StageReport
from spearpool.metrics.seat import Seat
from spearpool.metrics.segment import Segment
from spearpool.metrics.vocabulary import (
    BOARD,
    CLOSE_REASONS,
    COUNTER,
    COUNTERS,
    DIRECTIONS,
    FINAL_STAGES,
    GAUGE,
    HISTOGRAM,
    HISTOGRAMS,
    NO_MESSAGE_TYPE,
    NO_TASK,
    OTHER,
    RECORD_FLAGS,
    TASK_COUNTERS,
    TASK_HISTOGRAMS,
    EventKind,
    ExecutionStage,
    InstanceStage,
    WorkerStage,
)
from spearpool.protocol.events import (
    Authenticated,
    AuthenticationFailed,
    CloseReason,
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
from tests.metrics.segments import Record, RingReader, new_segment

CONNECTION = ConnectionId(1, 2, 3).pack()
THUMB, SUM = 0, 1

EVENTS: list[ConnectionEvent] = [
    Connected("192.0.2.1:5000"),
    Authenticated("shop", "client", 0, 0.25),
    AuthenticationFailed("stranger", "expired"),
    Disconnected(CloseReason.IDLE, True, 2.0),
    HeartbeatTimeout(30.0),
    Errored(400, "no JSON"),
]
MESSAGES: list[ConnectionEvent] = [MessageReceived(MessageType.HEARTBEAT, 99), MessageSent(MessageType.SIGNAL, 98)]


class Desk:
    """A monitoring service on a seat, and what can be seen of it."""

    def __init__(self, segment: Segment, *, master: bool = True, **switches: Any) -> None:
        self.segment = segment
        self.seat = Seat(segment, 0)
        self.seat.occupy(1, 1)
        self.service = MonitoringService(self.seat, MonitoringConfig(**switches), master)
        self.reader = RingReader(segment, 0)

    def record(self, *events: ConnectionEvent) -> list[Record]:
        for event in events:
            self.service.record_connection_event(CONNECTION, event)
        return self.reader.read()

    def counters(self) -> dict[str, int]:
        """Those that are not 0, without the number of records."""
        values = zip(COUNTERS, self.seat.counters.tolist(), strict=False)
        return {name: value for name, value in values if value and name != "ring_records"}

    def histograms(self) -> dict[str, tuple[int, int]]:
        """Sum and count of those that are not empty."""
        words = self.seat.histograms.tolist()
        found = {}
        for name, place in HISTOGRAM.items():
            total, *buckets = words[place * HISTOGRAM_WORDS : (place + 1) * HISTOGRAM_WORDS]
            if sum(buckets):
                found[name] = (total, sum(buckets))
        return found

    def task_histograms(self, column: int) -> dict[str, tuple[int, int]]:
        words = self.segment.seat_part(0, "task_histograms").tolist()
        found = {}
        for place, name in enumerate(TASK_HISTOGRAMS, column * len(TASK_HISTOGRAMS)):
            total, *buckets = words[place * HISTOGRAM_WORDS : (place + 1) * HISTOGRAM_WORDS]
            if sum(buckets):
                found[name] = (total, sum(buckets))
        return found

    @property
    def authenticated_now(self) -> int:
        return int(self.seat.gauges[GAUGE["authenticated_now"]])


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[Segment]:
    with new_segment(tmp_path) as made:
        yield made


@pytest.fixture
def desk(segment: Segment) -> Desk:
    return Desk(segment)


def test_the_life_of_a_client(desk: Desk) -> None:
    records = desk.record(
        Connected("192.0.2.1:5000"), Authenticated("shop", "client", 0, 0.25), Disconnected(CloseReason.PEER, True, 2.0)
    )
    name = desk.seat.names.find("shop")
    assert name
    told = [(r.sequence, EventKind(r.kind), r.connection, r.duration_ns, r.name, r.code, r.flags) for r in records]
    assert told == [
        (0, EventKind.CONNECTED, CONNECTION, 0, 0, 0, 0),
        (1, EventKind.AUTHENTICATED, CONNECTION, 250_000_000, name, 0, 1),
        (2, EventKind.DISCONNECTED, CONNECTION, 2_000_000_000, name, CLOSE_REASONS.index(CloseReason.PEER), 1),
    ]
    assert all((r.instance, r.task, r.message_type, r.direction) == (0, NO_TASK, NO_MESSAGE_TYPE, 0) for r in records)
    assert desk.counters() == {"connections_opened": 1, "authenticated": 1, "connections_closed_peer": 1}
    assert desk.histograms() == {"auth_duration_ns": (250_000_000, 1), "connection_lifetime_ns": (2_000_000_000, 1)}
    assert desk.authenticated_now == 0
    assert desk.seat.open_connections() == 0


def test_authenticated_now_counts_who_is_there(desk: Desk) -> None:
    desk.record(Connected("a:1"), Authenticated("shop", "client"), Disconnected(CloseReason.AUTH_TIMEOUT, False))
    assert desk.authenticated_now == 1


def test_a_connection_that_moves_to_another_seat_and_back(segment: Segment, desk: Desk) -> None:
    there = Desk.__new__(Desk)
    there.segment, there.seat = segment, Seat(segment, 2)
    there.seat.occupy(2, 2)
    there.service, there.reader = MonitoringService(there.seat, MonitoringConfig()), RingReader(segment, 2)
    desk.record(Connected("x"), Authenticated("thumb-3-7", "agent", InstanceId(3, 7).pack(), 0.25))
    for giver, taker in ((desk, there), (there, desk)):
        giver.service.record_handed_over(CONNECTION, taker.seat.index)
        assert (giver.seat.open_connections(), taker.seat.open_connections()) == (0, 1)
        taker.service.record_taken_in(CONNECTION, "thumb-3-7", InstanceId(3, 7).pack())
        assert (giver.seat.gauges[GAUGE["authenticated_now"]], taker.seat.gauges[GAUGE["authenticated_now"]]) == (0, 1)
        assert not giver.service._peers
        taker.service.record_message_event(CONNECTION, MessageType.HEARTBEAT, Direction.INCOMING, 9)
        taken, message = taker.reader.read()[-2:]
        assert (taken.kind, message.kind) == (EventKind.TAKEN_IN, EventKind.MESSAGE_RECEIVED)
        assert {record.connection for record in (taken, message)} == {CONNECTION}
        assert {(record.instance, record.task) for record in (taken, message)} == {(InstanceId(3, 7).pack(), THUMB)}
    assert [record.kind for record in there.reader.read()] == [EventKind.HANDED_OVER]
    counters = [made.seat.counters[COUNTER["connections_opened"]] for made in (desk, there)]
    assert counters == [1, 0]


def test_what_was_not_counted_as_handed_over_counts_as_opened(desk: Desk) -> None:
    desk.service.record_taken_in(CONNECTION, "shop", counted=False)
    assert desk.seat.counters[COUNTER["connections_opened"]] == desk.seat.open_connections() == 1


def test_moves_are_not_recorded_where_connections_are_not(segment: Segment) -> None:
    desk = Desk(segment, enable_connection_tracking=False)
    desk.service.record_taken_in(CONNECTION, "shop", counted=False)
    desk.service.record_handed_over(CONNECTION, 2)
    assert (desk.seat.open_connections(), desk.seat.handed_over(2), desk.reader.read()) == (0, 0, [])


@pytest.mark.parametrize("reason", CloseReason)
def test_every_reason_is_counted_by_its_name(desk: Desk, reason: CloseReason) -> None:
    (record,) = desk.record(Disconnected(reason))
    assert (CLOSE_REASONS[record.code], record.flags) == (reason, 0)
    assert desk.counters() == {f"connections_closed_{reason.value}": 1}


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("message_type", MessageType)
def test_every_message_is_counted_by_type_and_direction(
    desk: Desk, message_type: MessageType, direction: Direction
) -> None:
    desk.service.record_message_event(CONNECTION, message_type, direction, 200, 5_000, instance=77)
    (record,) = desk.reader.read()
    way = "in" if direction is Direction.INCOMING else "out"
    assert desk.counters() == {f"messages_{way}_{message_type.name.lower()}": 1, f"bytes_{way}": 200}
    assert desk.histograms() == {"message_size_bytes": (200, 1), "message_processing_ns": (5_000, 1)}
    assert (record.message_type, DIRECTIONS[record.direction]) == (message_type.code, direction.value)
    assert (record.size, record.duration_ns, record.instance, record.connection) == (200, 5_000, 77, CONNECTION)
    received = EventKind.MESSAGE_RECEIVED if way == "in" else EventKind.MESSAGE_SENT
    assert EventKind(record.kind) is received


def test_messages_may_come_as_events(desk: Desk) -> None:
    received, sent = desk.record(*MESSAGES)
    assert (received.kind, received.size) == (EventKind.MESSAGE_RECEIVED, 99)
    assert (sent.kind, sent.size) == (EventKind.MESSAGE_SENT, 98)
    counted = {"messages_in_heartbeat": 1, "messages_out_signal": 1, "bytes_in": 99, "bytes_out": 98}
    assert desk.counters() == counted
    assert desk.histograms() == {"message_size_bytes": (197, 2)}  # nothing was said about processing


def test_what_a_launched_agent_says_carries_instance_and_task(desk: Desk) -> None:
    instance = InstanceId(4, 9)
    heartbeat = MessageReceived(MessageType.HEARTBEAT, 9)
    records = desk.record(
        Authenticated(instance.name("sum"), "agent", instance.pack()),
        heartbeat,
        HeartbeatTimeout(3.0),
        Disconnected(CloseReason.HEARTBEAT_TIMEOUT, True),
        heartbeat,
    )
    assert [(r.instance, r.task, r.name) for r in records] == [(instance.pack(), SUM, 0)] * 4 + [(0, NO_TASK, 0)]
    assert desk.seat.names.names() == ["", OTHER]  # its name can be put together


def test_an_external_agent_has_instance_and_name(desk: Desk) -> None:
    instance = InstanceId(4, 9).pack()
    records = desk.record(Authenticated("agent-seven", "agent", instance), MessageSent(MessageType.SIGNAL, 1))
    name = desk.seat.names.find("agent-seven")
    assert name
    assert [(r.instance, r.task, r.name) for r in records] == [(instance, NO_TASK, name)] * 2


@pytest.mark.parametrize("code", [*ErrorCode, 418, 0, -1, 2**32 - 1])
def test_errors_are_counted_by_known_codes(desk: Desk, code: int) -> None:
    desk.service.record_error(CONNECTION, code)
    (record,) = desk.reader.read()
    assert (record.kind, record.code) == (EventKind.ERROR, min(max(code, 0), 0xFFFF))
    known = code in set(ErrorCode)
    assert desk.counters() == {f"errors_{int(code)}" if known else "errors_other": 1}


def test_heartbeat_timeout(desk: Desk) -> None:
    (record,) = desk.record(HeartbeatTimeout(1.5))
    assert (record.kind, record.duration_ns) == (EventKind.HEARTBEAT_TIMEOUT, 1_500_000_000)
    assert desk.counters() == {"heartbeat_timeouts": 1}


def test_strangers_cannot_fill_the_table_of_names(desk: Desk) -> None:
    for number in range(10 * SEAT_NAMES):
        desk.record(Connected(f"[2001:db8::{number:x}]:1"), AuthenticationFailed(f"x{number}", f"cause {number}"))
    assert desk.counters()["auth_failed"] == 10 * SEAT_NAMES
    assert 0 < len(desk.seat.names) < SEAT_NAMES / 4
    (record,) = desk.record(AuthenticationFailed("x", "cause 0"))
    assert desk.seat.names.names()[record.name] == "cause 0"
    (record,) = desk.record(AuthenticationFailed("x", "one more"))
    assert desk.seat.names.names()[record.name] == OTHER


@pytest.mark.parametrize("stage", ExecutionStage)
def test_stages_of_executions(desk: Desk, stage: ExecutionStage) -> None:
    desk.service.record_execution(stage, SUM, 5_000)
    (record,) = desk.reader.read()
    assert EventKind(record.kind).name == f"EXECUTION_{stage.name}"
    assert (record.task, record.duration_ns) == (SUM, 5_000)
    block = desk.seat.task_counters.tolist()
    assert sum(block) == 1
    assert desk.task_histograms(THUMB) == {}
    expected = {ExecutionStage.DISPATCHED: {"execution_queue_ns": (5_000, 1)}}
    expected |= {end: {"execution_duration_ns": (5_000, 1)} for end in FINAL_STAGES}
    assert desk.task_histograms(SUM) == expected.get(stage, {})


def test_an_execution_is_open_from_its_receipt_to_its_end(desk: Desk) -> None:
    stages = (ExecutionStage.RECEIVED, ExecutionStage.QUEUED, ExecutionStage.FORWARDED, ExecutionStage.DISPATCHED)
    for stage in stages:
        desk.service.record_execution(stage, THUMB)
        assert desk.seat.open_executions(THUMB) == 1
    desk.service.record_execution(ExecutionStage.TIMEOUT, THUMB)
    assert desk.seat.open_executions(THUMB) == 0


def test_stages_of_instances_and_workers(desk: Desk) -> None:
    instance = InstanceId(3, 4)
    for stage in InstanceStage:
        desk.service.record_instance(stage, instance, THUMB, StageReport(duration_ns=1_000, age_ns=3_000))
    desk.service.record_worker(WorkerStage.KILLED, 7, 3, 9)
    *stages, killed = desk.reader.read()
    assert [EventKind(r.kind).name for r in stages] == [f"INSTANCE_{stage.name}" for stage in InstanceStage]
    assert {(r.instance, r.task, r.duration_ns) for r in stages} == {(instance.pack(), THUMB, 1_000)}
    assert desk.histograms() == {"instance_start_ns": (3_000, 1)}, "from the request until it is ready"
    block = dict(zip(TASK_COUNTERS, desk.seat.task_counters.tolist(), strict=False))
    counted = ("instances_started", "instances_exited", "instances_failed", "instances_restarted")
    assert {name: count for name, count in block.items() if count} == dict.fromkeys(counted, 1)
    assert EventKind(killed.kind) is EventKind.WORKER_KILLED
    assert (ConnectionId.unpack(killed.connection), killed.code) == (ConnectionId(7, 3, 0), 9)


def test_what_is_told_of_the_end_of_an_instance(desk: Desk) -> None:
    instance = InstanceId(3, 4)
    for told in (
        StageReport(connection=CONNECTION, code=-9, reason="was killed"),
        StageReport(code=0, ago_ns=10**9),
        StageReport(),
    ):
        desk.service.record_instance(InstanceStage.FAILED, instance, SUM, told)
    killed, done, none = desk.reader.read()
    assert (killed.connection, killed.code, killed.flags) == (CONNECTION, 0x1_0000 - 9, RECORD_FLAGS["has_code"])
    assert desk.seat.names.names()[killed.name] == "was killed"
    assert (done.code, done.flags, done.name) == (0, RECORD_FLAGS["has_code"], 0)
    assert none.flags == 0
    assert killed.time_ns - 2 * 10**9 < done.time_ns < none.time_ns - 10**9 + 10**8


def test_loop_lag(desk: Desk) -> None:
    desk.service.record_loop_lag(7_000)
    desk.service.record_loop_lag(-1)
    assert desk.histograms() == {"event_loop_lag_ns": (7_000, 2)}


def test_switches(segment: Segment) -> None:
    """Each switch turns off its own kind and nothing else."""
    connections = Desk(segment, enable_message_tracking=False)
    assert len(connections.record(*EVENTS, *MESSAGES)) == len(EVENTS)
    connections.seat.vacate()
    messages = Desk(segment, enable_connection_tracking=False)
    messages.reader.next = messages.reader.written
    kinds = {record.kind for record in messages.record(*EVENTS, *MESSAGES)}
    assert kinds == {EventKind.MESSAGE_RECEIVED, EventKind.MESSAGE_SENT}


def test_without_performance_tracking_there_are_no_durations(segment: Segment) -> None:
    desk = Desk(segment, enable_performance_tracking=False)
    desk.service.record_message_event(CONNECTION, MessageType.SIGNAL, Direction.INCOMING, 5, 5)
    desk.service.record_execution(ExecutionStage.COMPLETED, SUM, 5)
    desk.service.record_instance(InstanceStage.READY, InstanceId(1, 1), SUM, StageReport(duration_ns=5, age_ns=5))
    desk.service.record_loop_lag(5)
    records = desk.record(*EVENTS, *MESSAGES)
    assert len(records) == 3 + len(EVENTS) + len(MESSAGES)
    assert {record.duration_ns for record in records} == {0}
    assert sum(desk.seat.histograms) == sum(segment.seat_part(0, "task_histograms")) == 0


@pytest.mark.parametrize("off", [{"master": False}, {"enabled": False}])
def test_the_master_switch_turns_off_everything(segment: Segment, off: dict[str, bool]) -> None:
    desk = Desk(segment, **off)
    desk.service.record_message_event(CONNECTION, MessageType.SIGNAL, Direction.INCOMING, 5)
    desk.service.record_execution(ExecutionStage.COMPLETED, SUM, 5)
    desk.service.record_instance(InstanceStage.REQUESTED, InstanceId(1, 1), SUM, StageReport(age_ns=5))
    desk.service.record_worker(WorkerStage.READY, 1, 1)
    desk.service.record_loop_lag(5)
    desk.service.record_error(CONNECTION, 400)
    assert desk.record(*EVENTS, *MESSAGES) == []
    assert desk.counters() == {}
    assert sum(desk.seat.task_counters) == 0
    assert sum(desk.seat.histograms) == 0
    desk.seat.publish_capacity(SUM, 3, 0)  # the board is no monitoring: executions depend on it
    assert desk.segment.seat_part(0, "board")[SUM * len(BOARD)] == 3


@pytest.mark.parametrize(
    "arguments",
    [
        (CONNECTION, MessageType.SIGNAL, Direction.INCOMING, 2**32),
        (CONNECTION, MessageType.SIGNAL, Direction.INCOMING, -1),
        (CONNECTION, MessageType.SIGNAL, Direction.INCOMING, 1, -1),
        (CONNECTION, "Signal", Direction.INCOMING, 1),
        (-1, MessageType.SIGNAL, Direction.INCOMING, 1),
        (CONNECTION, MessageType.SIGNAL, Direction.INCOMING, None),
    ],
)
def test_what_cannot_be_recorded_is_counted_and_does_no_harm(desk: Desk, arguments: Any) -> None:
    desk.service.record_message_event(*arguments)
    desk.service.record_execution(ExecutionStage.COMPLETED, 10_000)
    desk.service.record_instance(InstanceStage.READY, InstanceId(1, 1), -1, StageReport())
    desk.service.record_worker(WorkerStage.READY, 1, "x")  # type: ignore[arg-type]
    assert desk.reader.read() == []
    assert desk.counters() == {"recording_errors": 4}
    assert sum(desk.seat.histograms) == 0
    desk.record(Connected("a:1"))
    assert desk.counters()["connections_opened"] == 1


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0, 1e300])
def test_a_close_counts_whatever_its_lifetime_is_said_to_be(desk: Desk, seconds: float) -> None:
    desk.record(
        Connected("a:1"), Authenticated("a", "client", 0, seconds), Disconnected(CloseReason.LOST, True, seconds)
    )
    assert desk.seat.open_connections() == desk.authenticated_now == 0
    assert "recording_errors" not in desk.counters()


def test_a_closed_segment_is_no_reason_to_raise(segment: Segment) -> None:
    service = MonitoringService(Seat(segment, 0), MonitoringConfig())
    segment.close()
    for event in (*EVENTS, *MESSAGES):
        service.record_connection_event(CONNECTION, event)
    service.record_execution(ExecutionStage.COMPLETED, SUM)
    service.record_loop_lag(1)


def test_nothing_is_kept_of_connections_that_are_gone(desk: Desk) -> None:
    for counter in range(1000):
        connection = ConnectionId(0, 0, counter).pack()
        desk.service.record_connection_event(connection, Authenticated("shop", "client"))
        desk.service.record_connection_event(connection, Disconnected(CloseReason.PEER, True))
    assert len(desk.service._peers) == 0


@pytest.mark.process
def test_writing_needs_neither_numpy_nor_zmq() -> None:
    program = "import sys, spearpool.metrics; print(sorted({'numpy', 'zmq', 'psutil', 'click'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


def test_every_histogram_is_somebodys() -> None:
    recorded = {"connection_lifetime_ns", "auth_duration_ns", "message_size_bytes", "message_processing_ns"}
    assert set(HISTOGRAMS) == recorded | {"event_loop_lag_ns", "instance_start_ns"}
    assert COUNTER["ring_records"] == 0  # where the ring looks for its tail
