from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spearpool.metrics.bus.items import Account, Event, Gap, InstanceState, WorkerState, decode_events, plain
from spearpool.metrics.monitoring import MonitoringService, StageReport
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.vocabulary import ExecutionStage, InstanceStage, WorkerStage
from spearpool.protocol.events import (
    Authenticated,
    AuthenticationFailed,
    CloseReason,
    Connected,
    Direction,
    Disconnected,
    Errored,
    HeartbeatTimeout,
)
from spearpool.protocol.identifiers import ConnectionId, InstanceId
from spearpool.protocol.messages import MessageType
from tests.metrics.bus.living import monitoring
from tests.metrics.segments import new_segment

CONNECTION = ConnectionId(1, 3, 9).pack()
INSTANCE = InstanceId(4, 2)
NOTHING = dict.fromkeys(
    (
        "connection_id",
        "instance_id",
        "message_type",
        "direction",
        "size_bytes",
        "duration_s",
        "task",
        "reason",
        "code",
    )
)
Record = Callable[[MonitoringService], None]


def connection_event(event: Any) -> Record:
    return lambda service: service.record_connection_event(CONNECTION, event)


HERE = {"worker": 1, "connection_id": "c-1-3-9"}
ROWS: list[tuple[str, Record, dict[str, Any]]] = [
    ("connected", connection_event(Connected("10.0.0.1:5")), HERE),
    (
        "authenticated",
        connection_event(Authenticated("alice", "client", duration_s=0.25)),
        HERE | {"instance_id": "alice", "duration_s": 0.25},
    ),
    (
        "authenticated",
        connection_event(Authenticated("sum-4-2", "agent", INSTANCE.pack(), 0.5)),
        HERE | {"instance_id": "sum-4-2", "duration_s": 0.5, "task": "sum"},
    ),
    (
        "authentication_failed",
        connection_event(AuthenticationFailed("mallory", "unknown key")),
        HERE | {"reason": "unknown key"},
    ),
    (
        "disconnected",
        connection_event(Disconnected(CloseReason.HEARTBEAT_TIMEOUT, lifetime_s=1.5)),
        HERE | {"reason": "heartbeat_timeout", "duration_s": 1.5},
    ),
    (
        "message_received",
        lambda s: s.record_message_event(CONNECTION, MessageType.EXECUTE_REQUEST, Direction.INCOMING, 1234, 5_000),
        HERE | {"message_type": "ExecuteRequest", "direction": "incoming", "size_bytes": 1234, "duration_s": 5e-6},
    ),
    (
        "message_sent",
        lambda s: s.record_message_event(CONNECTION, MessageType.HEARTBEAT, Direction.OUTGOING, 0),
        HERE | {"message_type": "Heartbeat", "direction": "outgoing", "size_bytes": 0},
    ),
    ("heartbeat_timeout", connection_event(HeartbeatTimeout(30.0)), HERE | {"duration_s": 30.0}),
    ("error", connection_event(Errored(413, "too large")), HERE | {"code": 413}),
    (
        "execution_completed",
        lambda s: s.record_execution(ExecutionStage.COMPLETED, 0, 2_000_000),
        {"worker": 1, "task": "thumb", "duration_s": 0.002},
    ),
    ("execution_refused", lambda s: s.record_execution(ExecutionStage.REFUSED, 10), {"worker": 1, "task": "other"}),
    (
        "worker_exited",
        lambda s: s.record_worker(WorkerStage.EXITED, 0, 5, 78),
        {"worker": 0, "code": 78},
    ),
]


@pytest.mark.parametrize(("kind", "record", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_a_record_becomes_a_line(kind: str, record: Record, expected: dict[str, Any], tmp_path: Path) -> None:
    with new_segment(tmp_path) as segment:
        record(monitoring(segment, 2))
        rollup = Rollup(segment)
        _, records, _ = rollup.new_records(2)
        (event,) = decode_events(records.tobytes(), 1, rollup.names(2), rollup.task_names())
    line = plain(event)
    assert list(line)[:5] == ["kind", "seq", "time", "worker", "type"]
    assert line.pop("time") == pytest.approx(event.time)
    assert line == {"kind": "event", "seq": 0, "type": kind, **NOTHING, **expected}


Told = tuple[InstanceStage, StageReport, dict[str, Any]]
ENDED = "was killed by signal SIGKILL"
STAGES: list[Told] = [
    (InstanceStage.REQUESTED, StageReport(), {}),
    (InstanceStage.RESTARTED, StageReport(duration_ns=5_000_000, code=2), {"duration_s": 0.005, "restarts": 2}),
    (
        InstanceStage.READY,
        StageReport(duration_ns=3_000_000, connection=CONNECTION),
        {"worker": 1, "connection_id": "c-1-3-9", "duration_s": 0.003},
    ),
    (
        InstanceStage.EXITED,
        StageReport(code=0, reason="exited with code 0"),
        {"code": 0, "reason": "exited with code 0"},
    ),
    (
        InstanceStage.FAILED,
        StageReport(connection=CONNECTION, code=-9, reason=ENDED),
        {"worker": 1, "connection_id": "c-1-3-9", "code": -9, "reason": ENDED},
    ),
    (InstanceStage.FAILED, StageReport(reason="was not launched"), {"reason": "was not launched"}),
]


@pytest.mark.parametrize(("stage", "told", "expected"), STAGES, ids=[stage.name for stage, _, _ in STAGES])
def test_a_stage_of_an_instance_becomes_a_line_of_that_kind(
    stage: InstanceStage, told: StageReport, expected: dict[str, Any], tmp_path: Path
) -> None:
    with new_segment(tmp_path) as segment:
        monitoring(segment, 4).record_instance(stage, INSTANCE, 1, told)
        rollup = Rollup(segment)
        _, records, _ = rollup.new_records(4)
        (event,) = decode_events(records.tobytes(), None, rollup.names(4), rollup.task_names())
    line = plain(event)
    assert list(line)[:5] == ["kind", "seq", "time", "worker", "stage"]
    assert line.pop("time") == pytest.approx(event.time)
    nothing = dict.fromkeys(("worker", "connection_id", "duration_s", "restarts", "reason", "code"))
    known = {"kind": "instance", "seq": 0, "stage": stage.name.lower(), "instance_id": "sum-4-2", "task": "sum"}
    assert line == known | nothing | expected


def test_an_unknown_name_is_other(tmp_path: Path) -> None:
    with new_segment(tmp_path) as segment:
        connection_event(Authenticated("alice", "client"))(monitoring(segment, 0))
        rollup = Rollup(segment)
        _, records, _ = rollup.new_records(0)
        (event,) = decode_events(records.tobytes(), 0, ["", "other"], {})
    assert isinstance(event, Event)
    assert event.instance_id == "other"


def test_the_account_is_the_contract() -> None:
    assert plain(Account(5, 1, 2)) == {"kind": "account", "received": 5, "lost_ring": 1, "lost_bus": 2}


def test_states_are_flat_lines() -> None:
    worker = plain(WorkerState(1.5, 3, {"slot": 3, "state": "ready"}))
    assert worker == {"kind": "worker", "time": 1.5, "worker": 3, "slot": 3, "state": "ready"}
    instance = plain(InstanceState(1.5, {"instance_id": "sum-0-1", "worker": None}))
    assert instance == {"kind": "instance", "time": 1.5, "instance_id": "sum-0-1", "worker": None}


def test_a_gap_says_where_and_how_much() -> None:
    assert plain(Gap(10, 1.5, 0, "sp1.e.0.0.", 3, 4)) == {
        "kind": "gap",
        "seq": 10,
        "time": 1.5,
        "worker": 0,
        "topic": "sp1.e.0.0.",
        "lost_ring": 3,
        "lost_bus": 4,
    }
