from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.config import MonitoringConfig
from spearpool.metrics.layout import Layout
from spearpool.metrics.monitoring import MonitoringService, StageReport
from spearpool.metrics.rollup import Latency, Rollup
from spearpool.metrics.seat import Seat
from spearpool.metrics.segment import Segment
from spearpool.metrics.vocabulary import (
    CLOSED,
    COUNTER,
    COUNTERS,
    GAUGES,
    TASK_COUNTERS,
    EventKind,
    ExecutionStage,
    InstanceStage,
    SeatState,
)
from spearpool.protocol.events import Authenticated, CloseReason, Connected, Direction, Disconnected
from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.messages import MessageType
from tests.conftest import deadline
from tests.metrics.segments import RingReader, new_segment

RECORDS = 64


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[Segment]:
    with new_segment(tmp_path, Layout.plan(2, ["thumb", "sum"], RECORDS, rows=8)) as segment:
        yield segment


def occupied(segment: Segment, index: int) -> Seat:
    seat = Seat(segment, index)
    seat.occupy(1, os.getpid())
    return seat


def write(seat: Seat, count: int) -> None:
    for _ in range(count):
        seat.ring.write(seat.ring.position, EventKind.CONNECTED)


def sequences(records: Any) -> list[int]:
    found: list[int] = records["sequence"].tolist()
    return found


# Rings


def test_new_records_are_given_once(segment: Segment) -> None:
    seat, rollup = occupied(segment, 1), Rollup(segment)
    write(seat, 3)
    first, records, lost = rollup.new_records(1)
    assert (first, sequences(records), lost) == (0, [0, 1, 2], 0)
    first, records, lost = rollup.new_records(1)
    assert (first, len(records), lost) == (3, 0, 0)
    write(seat, 1)
    first, records, lost = rollup.new_records(1)
    assert (first, sequences(records), rollup.position(1)) == (3, [3], (4, 0))


def test_rings_do_not_mix(segment: Segment) -> None:
    write(occupied(segment, 0), 2)
    write(occupied(segment, 4), 5)
    rollup = Rollup(segment)
    assert [len(rollup.new_records(seat)[1]) for seat in range(5)] == [2, 0, 0, 0, 5]


def test_what_was_overwritten_is_lost(segment: Segment) -> None:
    seat, rollup = occupied(segment, 0), Rollup(segment)
    write(seat, RECORDS + 10)
    first, records, lost = rollup.new_records(0)
    assert (first, sequences(records), lost) == (10, list(range(10, RECORDS + 10)), 10)
    assert rollup.totals()["ring_lost"] == 10


def test_what_nobody_wants_is_neither_read_nor_lost(segment: Segment) -> None:
    seat, rollup = occupied(segment, 0), Rollup(segment)
    write(seat, 10 * RECORDS)
    rollup.skip_records(0)
    assert rollup.position(0) == (10 * RECORDS, 0)
    write(seat, 1)
    first, records, lost = rollup.new_records(0)
    assert (first, sequences(records), lost) == (10 * RECORDS, [10 * RECORDS], 0)


class Meanwhile:
    """Stands for the words that a reader looks at after it has copied: the writer goes on just before it looks."""

    def __init__(self, words: Any, happens: Any) -> None:
        self._words, self._happens = words, happens

    def __getitem__(self, seat: int) -> Any:
        self._happens()
        return self._words[seat]


@pytest.mark.parametrize("meanwhile", [0, 1, 40, RECORDS, 3 * RECORDS])
def test_what_was_overwritten_while_it_was_copied_is_dropped(
    meanwhile: int, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    seat, rollup = occupied(segment, 0), Rollup(segment)
    write(seat, 2 * RECORDS)
    monkeypatch.setattr(rollup, "_intents", Meanwhile(rollup._intents, lambda: write(seat, meanwhile)))
    first, records, lost = rollup.new_records(0)
    whole = max(0, RECORDS - meanwhile)
    assert (len(records), lost, first) == (whole, 2 * RECORDS - whole, 2 * RECORDS - whole)
    assert sequences(records) == list(range(first, 2 * RECORDS))


@given(steps=st.lists(st.integers(0, 150), max_size=30))
def test_it_agrees_with_the_plain_reader(steps: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    with new_segment(tmp_path_factory.mktemp("s"), Layout.plan(1, [], RECORDS, rows=8)) as segment:
        seat, rollup, model = occupied(segment, 0), Rollup(segment), RingReader(segment, 0)
        for count in steps:
            write(seat, count)
            first, records, lost = rollup.new_records(0)
            expected = model.read()
            assert [tuple(record) for record in records.tolist()] == expected
            assert (first + len(records), lost) == (model.next, model.lost)


def sealed_segment(directory: Path) -> Any:
    return new_segment(directory, Layout.plan(1, [], RECORDS, rows=8, sealed=True))


def test_a_sealed_ring_is_read_as_well(tmp_path: Path) -> None:
    with sealed_segment(tmp_path) as segment:
        seat, rollup = occupied(segment, 0), Rollup(segment)
        write(seat, RECORDS + 5)
        first, records, lost = rollup.new_records(0)
        assert (first, len(records), lost) == (5, RECORDS, 5)


@pytest.mark.parametrize("word", [0, 1, 7], ids=["position", "content", "check"])
def test_a_sealed_record_that_is_not_whole_yet_waits(word: int, tmp_path: Path) -> None:
    with sealed_segment(tmp_path) as segment:
        seat, rollup = occupied(segment, 0), Rollup(segment)
        write(seat, 10)
        with segment.seat_part(0, "ring").cast("Q") as words:
            words[6 * 8 + word] ^= 1
            first, records, lost = rollup.new_records(0)
            assert (first, sequences(records), lost) == (0, [0, 1, 2, 3, 4, 5], 0)
            words[6 * 8 + word] ^= 1
        first, records, lost = rollup.new_records(0)
        assert (first, sequences(records), lost) == (6, [6, 7, 8, 9], 0)


WRITER = """
import os, sys
from pathlib import Path
from spearpool.metrics.seat import Seat
from spearpool.metrics.segment import Segment
segment = Segment.open(Path(sys.argv[1]), writable=True)
seat = Seat(segment, 0)
seat.occupy(1, os.getpid())
write = seat.ring.write
for n in range(int(sys.argv[2])):
    write(n, 1, n, n, n, n & 0xffffffff)
"""


@pytest.mark.process
def test_a_writer_at_full_speed_is_read_whole_or_counted(tmp_path: Path) -> None:
    count = 150_000
    with new_segment(tmp_path, Layout.plan(1, [], 256, rows=8)) as segment:
        rollup = Rollup(segment)
        read, end = 0, deadline(60)
        with subprocess.Popen([sys.executable, "-c", WRITER, str(segment.path), str(count)]) as writer:
            try:
                while rollup.position(0)[0] < count:
                    assert writer.poll() in {None, 0}
                    first, records, _ = rollup.new_records(0)
                    expected = np.arange(first, first + len(records), dtype=np.uint64)
                    for field in ("sequence", "time_ns", "connection", "instance", "duration_ns", "size"):
                        assert (records[field].astype(np.uint64) == expected).all()
                    read += len(records)
                    assert deadline(0) < end, "the writer is stuck"
            finally:
                writer.kill()
        assert read + rollup.position(0)[1] == count
        assert read > 0


# Counters


def test_a_slot_is_the_sum_of_its_seats_and_of_what_was_booked(segment: Segment) -> None:
    first, second, other = occupied(segment, 2), occupied(segment, 3), occupied(segment, 0)
    for seat, opened in ((first, 5), (second, 7), (other, 100)):
        seat.add(COUNTER["connections_opened"], opened)
    first.add(COUNTER["connections_closed_peer"], 2)
    first.add_task(1, ExecutionStage.RECEIVED, 4)
    rollup = Rollup(segment)
    assert rollup.open_connections(1) == 10
    assert first.book_crash() == (3, 4)
    first.vacate()
    assert rollup.open_connections(1) == 7
    counters = rollup.slot_counters(1)
    assert counters[COUNTER["connections_opened"]] == 12
    assert counters[COUNTER["connections_closed_crash"]] == 3
    assert rollup.slot_tasks(1)[1, ExecutionStage.LOST] == 4
    assert rollup.open_connections(0) == 100


def test_the_place_behind_the_last_slot_is_the_supervisor_s(segment: Segment) -> None:
    occupied(segment, 4).add(COUNTER["bytes_in"], 9)
    rollup = Rollup(segment)
    assert rollup.slot_counters(2)[COUNTER["bytes_in"]] == 9
    assert rollup.slots_in_use() == [2]


def test_slots_in_use_are_those_in_which_somebody_sat(segment: Segment) -> None:
    rollup = Rollup(segment)
    assert rollup.slots_in_use() == []
    seat = occupied(segment, 3)
    assert rollup.slots_in_use() == [1]
    seat.vacate()
    assert rollup.slots_in_use() == [1]


def test_words_are_counters_gauges_and_tasks(segment: Segment) -> None:
    seat, rollup = occupied(segment, 0), Rollup(segment)
    seat.add(COUNTER["bytes_out"], 3)
    seat.gauges[1] = 4
    seat.add_task(10, ExecutionStage.REFUSED, 5)
    words = rollup.slot_words(0)
    assert len(words) == len(COUNTERS) + len(GAUGES) + segment.layout.columns * len(TASK_COUNTERS)
    assert words[COUNTER["bytes_out"]] == 3
    assert words[len(COUNTERS) + 1] == 4
    assert words[-len(TASK_COUNTERS) + ExecutionStage.REFUSED] == 5, "the last column's"
    assert words.sum() == 12


def record_one_of_each(segment: Segment) -> None:
    service = MonitoringService(occupied(segment, 0), MonitoringConfig())
    for connection in (1, 2, 3):
        service.record_connection_event(connection, Connected("x"))
    service.record_connection_event(1, Authenticated("alice", "client", duration_s=0.001))
    service.record_connection_event(2, Disconnected(CloseReason.IDLE, lifetime_s=2.0))
    service.record_message_event(1, MessageType.HEARTBEAT, Direction.INCOMING, 100)
    service.record_message_event(1, MessageType.EXECUTE_REQUEST, Direction.INCOMING, 200)
    service.record_message_event(1, MessageType.HEARTBEAT, Direction.OUTGOING, 300)
    service.record_execution(ExecutionStage.RECEIVED, 0)
    service.record_execution(ExecutionStage.COMPLETED, 0, 1_000_000)
    service.record_execution(ExecutionStage.FAILED, 1, 8)
    for stage in (InstanceStage.REQUESTED, InstanceStage.FAILED):
        service.record_instance(stage, InstanceId(1, 1), 1, StageReport())


def test_totals_are_those_of_status(segment: Segment) -> None:
    record_one_of_each(segment)
    totals = Rollup(segment).totals()
    expected = {
        "connections_opened": 3,
        "connections_closed": 1,
        "connections_open": 2,
        "connections_handed_over": 0,
        "authenticated": 1,
        "auth_failed": 0,
        "messages_in": 2,
        "messages_out": 1,
        "bytes_in": 300,
        "bytes_out": 300,
        "executions_received": 1,
        "executions_completed": 1,
        "executions_failed": 1,
        "instances_started": 1,
        "instances_failed": 1,
        "heartbeat_timeouts": 0,
        "ring_records": 13,
        "ring_lost": 0,
        "errors": 0,
    }
    assert {name: totals[name] for name in expected} == expected
    assert all(type(value) is int for value in totals.values())


def test_a_connection_that_moves_is_neither_opened_nor_closed(segment: Segment) -> None:
    giver, taker, rollup = occupied(segment, 1), occupied(segment, 2), Rollup(segment)
    giver.add(COUNTER["connections_opened"], 3)
    for _ in range(2):
        giver.hand_over(2)
    taker.add(CLOSED[0])
    assert [rollup.open_connections(slot) for slot in (0, 1, 2)] == [1, 1, 0]
    totals = rollup.totals()
    assert (totals["connections_open"], totals["connections_handed_over"]) == (2, 2)


def test_tasks_by_name(segment: Segment) -> None:
    record_one_of_each(segment)
    rollup = Rollup(segment)
    totals = rollup.task_totals()
    assert list(totals) == ["thumb", "sum", "other"]
    assert totals["thumb"] == dict.fromkeys(TASK_COUNTERS, 0) | {"received": 1, "completed": 1}
    segment.add_task("new")
    assert list(rollup.task_totals()) == ["thumb", "sum", "new", "other"]


def test_latencies_are_bounds_of_buckets(segment: Segment) -> None:
    record_one_of_each(segment)
    seat = occupied(segment, 2)
    seat.observe(0, 2**43)  # beyond the last bucket
    latencies = Rollup(segment).latencies()
    assert set(latencies) == {
        "connection_lifetime_ns",
        "auth_duration_ns",
        "message_size_bytes",
        "execution_duration_ns{thumb}",
        "execution_duration_ns{sum}",
    }
    assert latencies["execution_duration_ns{sum}"] == Latency(1, 8.0, 8, 8, 8)
    sizes = latencies["message_size_bytes"]
    assert (sizes.count, sizes.mean) == (3, 200.0)
    assert 200 <= (sizes.p50 or 0) <= 225
    lifetime = latencies["connection_lifetime_ns"]
    assert lifetime.count == 2
    assert lifetime.p50 is not None
    assert lifetime.p99 is None


def test_the_end_is_read_before_the_beginning(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that opens and closes while it is read is never seen to have closed what it had not opened."""
    seat, rollup = occupied(segment, 0), Rollup(segment)
    counters, tasks = rollup._counters, rollup._tasks

    class Busy:
        """Each look at the counters finds one more connection opened and closed, one more execution begun and ended."""

        def __init__(self, words: Any) -> None:
            self._words = words

        def __getitem__(self, key: Any) -> Any:
            seat.add(COUNTER["connections_opened"])
            seat.add_task(0, ExecutionStage.RECEIVED)
            found = self._words[key]
            seen = found.copy()
            seat.add(CLOSED[0])
            seat.add_task(0, ExecutionStage.COMPLETED)
            return seen

    monkeypatch.setattr(rollup, "_counters", Busy(counters))
    monkeypatch.setattr(rollup, "_tasks", Busy(tasks))
    for _ in range(3):
        assert rollup.open_connections(0) >= 0
        stages = rollup.slot_tasks(0)[0]
        assert stages[ExecutionStage.RECEIVED] >= stages[ExecutionStage.COMPLETED]


def test_what_is_booked_is_read_before_the_beginning(segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Occupants of a seat that open, begin and die one after the other while it is read."""
    seat, rollup = occupied(segment, 0), Rollup(segment)

    def live_and_die() -> None:
        seat.add(COUNTER["connections_opened"], 3)
        seat.add_task(0, ExecutionStage.RECEIVED, 2)
        seat.book_crash()

    monkeypatch.setattr(rollup, "_booked_counters", Meanwhile(rollup._booked_counters, live_and_die))
    monkeypatch.setattr(rollup, "_booked_tasks", Meanwhile(rollup._booked_tasks, live_and_die))
    for _ in range(3):
        totals = rollup.totals()
        assert totals["connections_open"] == totals["connections_opened"] - totals["connections_closed"] >= 0
        assert rollup.open_connections(0) >= 0
        stages = rollup.slot_tasks(0)[0]
        assert stages[ExecutionStage.RECEIVED] >= stages[ExecutionStage.LOST]


# Seats


def test_who_sits_where(segment: Segment) -> None:
    seat = occupied(segment, 3)
    seat.state = SeatState.READY
    seat.beat(12345)
    seat.gauges[0] = 6
    rollup = Rollup(segment)
    lives = rollup.seat_states()
    assert [life.seat for life in lives] == [0, 1, 2, 3, 4]
    assert [life.state for life in lives] == [SeatState.EMPTY] * 3 + [SeatState.READY, SeatState.EMPTY]
    assert (lives[3].incarnation, lives[3].pid, lives[3].heartbeat_ns) == (1, os.getpid(), 12345)
    assert lives[3].occupied_ns > 0
    assert (rollup.authenticated_now(1), rollup.authenticated_now(0)) == (6, 0)


def test_names_from_a_place_on(segment: Segment) -> None:
    seat, rollup = occupied(segment, 0), Rollup(segment)
    assert rollup.names(0) == ["", "other"]
    seat.intern("alice")
    seat.intern("bob")
    assert rollup.names(0, 3) == ["bob"]
    assert rollup.names(0, 4) == []
