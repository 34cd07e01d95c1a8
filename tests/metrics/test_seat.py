from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spearpool.errors import SegmentError
from spearpool.metrics.histogram import HISTOGRAM_WORDS, bucket_of
from spearpool.metrics.layout import (
    SEAT_NAMES,
    Layout,
)
from spearpool.metrics.seat import OTHER_NAME, Board, Loss, Seat
from spearpool.metrics.segment import Segment
from spearpool.metrics.vocabulary import (
    BOARD,
    COUNTER,
    GAUGE,
    HISTOGRAM,
    OTHER,
    TASK_HISTOGRAM,
    TASK_HISTOGRAMS,
    EventKind,
    ExecutionStage,
    SeatState,
)
from tests.conftest import deadline
from tests.metrics.segments import RingReader, new_segment

OPENED, CRASH = COUNTER["connections_opened"], COUNTER["connections_closed_crash"]
PEER = COUNTER["connections_closed_peer"]


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[Segment]:
    with new_segment(tmp_path) as made:
        yield made


@pytest.fixture
def seat(segment: Segment) -> Seat:
    made = Seat(segment, 0)
    made.occupy(1, 1000)
    return made


def test_who_sits_there(segment: Segment) -> None:
    seat, seen = Seat(segment, 3), Seat(segment, 3)
    assert seen.state is SeatState.EMPTY
    before = time.monotonic_ns()
    seat.occupy(7, 1234)
    assert (seen.state, seen.incarnation, seen.pid) == (SeatState.STARTING, 7, 1234)
    assert before <= seen.heartbeat_ns <= time.monotonic_ns()
    seat.state = SeatState.READY
    seat.beat(99)
    assert (seen.state, seen.heartbeat_ns) == (SeatState.READY, 99)
    seat.vacate()
    assert (seen.state, seen.incarnation, seen.pid) == (SeatState.GONE, 7, 1234)


@pytest.mark.parametrize("index", [-1, 5])
def test_there_are_two_seats_per_slot_and_one_more(segment: Segment, index: int) -> None:
    assert Seat(segment, 4).index == segment.layout.supervisor_seat
    with pytest.raises(SegmentError, match=f"seat {index}: expected 0 to 4"):
        Seat(segment, index)


@pytest.mark.parametrize("state", [SeatState.STARTING, SeatState.READY, SeatState.LEAVING])
def test_a_seat_has_one_occupant(seat: Seat, state: SeatState) -> None:
    seat.state = state
    with pytest.raises(SegmentError, match=f"seat 0 is {state.name} under pid 1000: expected EMPTY or GONE"):
        seat.occupy(2, 2000)
    assert (seat.incarnation, seat.pid) == (1, 1000)


def test_seats_do_not_touch_each_other(segment: Segment) -> None:
    seats = [Seat(segment, index) for index in range(segment.layout.seats)]
    for seat in seats:
        seat.occupy(seat.index, 1)
        seat.add(OPENED, seat.index + 1)
        seat.publish_capacity(segment.layout.columns - 1, seat.index, 10 * seat.index)
        seat.intern(f"name-{seat.index}")
        seat.ring.write(seat.index, EventKind.CONNECTED)
    board = Board(segment)
    for seat in seats:
        assert seat.counters[OPENED] == seat.index + 1
        assert board.capacity(seat.index, segment.layout.columns - 1) == (seat.index, 10 * seat.index)
        assert board.capacity(seat.index, 0) == (0, 0)
        assert seat.names.names() == ["", OTHER, f"name-{seat.index}"]
        assert [record.time_ns for record in RingReader(segment, seat.index).read()] == [seat.index]


def test_an_heir_counts_on_and_begins_the_present_anew(segment: Segment, seat: Seat) -> None:
    seat.add(OPENED)
    seat.add_task(0, ExecutionStage.RECEIVED)
    seat.observe(HISTOGRAM["message_size_bytes"], 100)
    name = seat.intern("agent-x")
    seat.ring.write(1, EventKind.CONNECTED)
    seat.gauges[GAUGE["queue_bytes"]] = 5
    seat.publish_capacity(1, 3, 4, 5)
    seat.publish_arrived(1, 6)
    seat.set_agent(2, 9, 1, 1)
    seat.vacate()
    board = Board(segment)
    assert (board.capacity(0, 1), board.since_ns(1)[0], board.arrived(0, 1)) == ((0, 0), 0, 0)
    assert seat.agent(2) == (0, 0, 0, 0, 0, 0)
    assert seat.gauges.tolist() == [0] * len(seat.gauges)

    heir = Seat(segment, 0)
    heir.occupy(2, 2000)
    heir.add(OPENED, 2)
    heir.add_task(0, ExecutionStage.RECEIVED)
    heir.observe(HISTOGRAM["message_size_bytes"], 100)
    heir.ring.write(2, EventKind.CONNECTED)
    assert heir.counters[OPENED] == 3
    assert heir.task_counters[ExecutionStage.RECEIVED] == 2
    assert heir.histograms[HISTOGRAM["message_size_bytes"] * HISTOGRAM_WORDS] == 200
    assert heir.intern("agent-x") == name
    assert [record.sequence for record in RingReader(segment, 0).read()] == [0, 1]


def test_values_land_in_their_histograms(segment: Segment, seat: Seat) -> None:
    def words_of(words: memoryview, place: int) -> list[int]:
        return words[place * HISTOGRAM_WORDS : (place + 1) * HISTOGRAM_WORDS].tolist()

    for value in (5, 70_000, 70_001):
        seat.observe(HISTOGRAM["auth_duration_ns"], value)
        seat.observe_task(1, TASK_HISTOGRAM["execution_queue_ns"], value + 1)
    total, *buckets = words_of(seat.histograms, HISTOGRAM["auth_duration_ns"])
    assert (total, sum(buckets), buckets[bucket_of(5)], buckets[bucket_of(70_000)]) == (140_006, 3, 1, 2)
    place = len(TASK_HISTOGRAMS) + TASK_HISTOGRAM["execution_queue_ns"]
    total, *buckets = words_of(segment.seat_part(0, "task_histograms"), place)
    assert (total, sum(buckets)) == (140_009, 3)
    assert sum(seat.histograms) == 140_006 + 3


def test_names_run_out_into_other(seat: Seat) -> None:
    places = [seat.intern(f"name-{number}") for number in range(SEAT_NAMES + 5)]
    kept = SEAT_NAMES - 2
    assert places == [*range(2, SEAT_NAMES), *[OTHER_NAME] * (SEAT_NAMES + 5 - kept)]
    assert seat.names.names()[OTHER_NAME] == OTHER
    assert seat.names.refused == 7
    assert (seat.intern(""), seat.intern(OTHER), seat.intern("name-0")) == (0, OTHER_NAME, 2)


def test_what_a_seat_says_of_an_instance(seat: Seat) -> None:
    seat.set_agent(3, 5, 1, 2)
    seat.set_agent(4, 1, 1, 0)
    assert [seat.agent(row)[:3] for row in (2, 3, 4)] == [(0, 0, 0), (5, 1, 2), (1, 1, 0)]
    seat.set_agent(3, 6, 1, 0)
    assert seat.agent(3)[:3] == (6, 1, 0)
    seat.set_in_flight(3, 6, 4)
    seat.set_in_flight(3, 5, 9)  # the row was given away meanwhile
    assert seat.agent(3)[:3] == (6, 1, 4)


def test_what_died_with_an_occupant_is_booked_once(segment: Segment, seat: Seat) -> None:
    seat.add(OPENED, 10)
    seat.add(PEER, 3)
    seat.add_task(0, ExecutionStage.RECEIVED, 5)
    seat.add_task(0, ExecutionStage.COMPLETED, 2)
    seat.add_task(0, ExecutionStage.DISPATCHED, 4)  # is no end
    last = segment.layout.columns - 1
    seat.add_task(last, ExecutionStage.RECEIVED, 2)
    seat.add_task(last, ExecutionStage.REFUSED)
    supervisor = Seat(segment, 0)
    assert (supervisor.open_connections(), supervisor.open_executions(0)) == (7, 3)
    assert supervisor.book_crash() == Loss(connections=7, executions=4)
    assert supervisor.book_crash() == Loss(0, 0)
    assert (seat.open_connections(), seat.open_executions(0), seat.open_executions(last)) == (0, 0, 0)
    assert segment.seat_part(0, "booked_counters")[CRASH] == 7
    assert seat.counters[CRASH] == 0  # the occupant's words are the occupant's

    seat.vacate()
    heir = Seat(segment, 0)
    heir.occupy(2, 2000)
    heir.add(OPENED, 2)
    heir.add(PEER)
    assert heir.open_connections() == 1
    assert heir.book_crash() == Loss(1, 0)
    assert segment.seat_part(0, "booked_counters")[CRASH] == 8


def test_what_is_handed_over_is_always_somebody_s(segment: Segment, seat: Seat) -> None:
    taker = Seat(segment, 2)
    taker.occupy(2, 2000)
    seat.add(OPENED, 5)
    seat.add(PEER)
    seat.hand_over(2)
    seat.hand_over(2)
    assert (seat.open_connections(), taker.open_connections()) == (2, 2)
    assert (seat.handed_over(2), taker.taken_in(), seat.taken_in()) == (2, 2, 0)
    taker.add(PEER)
    taker.hand_over(0)
    assert (seat.open_connections(), taker.open_connections()) == (3, 0)

    assert taker.book_crash() == Loss(0, 0)
    seat.hand_over(2)  # before it knew of the other's death
    assert taker.book_crash() == Loss(1, 0)
    taker.vacate()
    taker.occupy(3, 3000)
    assert (seat.open_connections(), taker.open_connections()) == (2, 0)  # what was moved stays moved
    assert Seat(segment, segment.layout.supervisor_seat).open_connections() == 0


def test_a_column_of_the_board_at_once(segment: Segment) -> None:
    board = Board(segment)
    for index in (0, 3):
        Seat(segment, index).publish_capacity(1, index + 1, 7, 100 * index + 5)
    assert board.free(1) == [1, 0, 0, 4, 0]
    assert board.since_ns(1) == [5, 0, 0, 305, 0]
    assert board.free(0) == board.since_ns(2) == [0] * segment.layout.seats


def test_what_arrived_is_told_to_each_sender(segment: Segment) -> None:
    board = Board(segment)
    for index in (0, 3):
        for sender in range(2 * segment.layout.slots):
            Seat(segment, index).publish_arrived(sender, 10 * index + sender + 1)
    told = [[board.arrived(index, sender) for sender in range(2 * segment.layout.slots)] for index in (0, 1, 3)]
    assert told == [[1, 2, 3, 4], [0, 0, 0, 0], [31, 32, 33, 34]]


def test_a_board_row_has_room_for_every_column(segment: Segment, seat: Seat) -> None:
    board = Board(segment)
    for column in range(segment.layout.columns):
        seat.publish_capacity(column, column + 1, column + 2)
    rows = [board.capacity(0, column) for column in range(segment.layout.columns)]
    assert rows == [(column + 1, column + 2) for column in range(segment.layout.columns)]
    assert len(segment.seat_part(0, "board")) == segment.layout.columns * len(BOARD)


@pytest.mark.process
def test_counters_grow_across_kills(tmp_path: Path) -> None:
    """Workers killed while they count: a reader never sees a counter go back, and the heir continues from it."""
    with new_segment(tmp_path, Layout.plan(1, [], 64, rows=1)) as segment:
        reader, last = Seat(segment, 0), 0
        for incarnation in range(5):
            pid = os.fork()
            if not pid:
                try:
                    worker = Seat(segment, 0)
                    worker.occupy(incarnation, os.getpid())
                    while True:
                        worker.add(OPENED)
                finally:
                    os._exit(1)
            try:
                end, target = deadline(20), last + 20_000
                while last < target:
                    assert time.monotonic() < end
                    now = reader.counters[OPENED]
                    assert now >= last
                    last = now
            finally:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            assert (reader.incarnation, reader.pid) == (incarnation, pid)
            reader.book_crash()
            reader.vacate()
            assert reader.open_connections() == 0


def test_what_an_agent_did_here_is_counted_for_its_generation(segment: Segment) -> None:
    seat = Seat(segment, 0)
    seat.set_agent(3, 5, 1, 0)
    seat.count_execution(3, 5)
    seat.count_traffic(3, 5, 100, 1)
    seat.set_agent(3, 5, 0, 0)
    seat.set_agent(3, 5, 1, 0)  # it left, and came back
    seat.count_traffic(3, 5, 20, 0)
    seat.count_execution(3, 4)  # an earlier namesake's
    seat.count_traffic(3, 4, 7, 7)
    assert seat.agent(3) == (5, 1, 0, 1, 120, 1)
    seat.set_agent(3, 6, 1, 0)
    assert seat.agent(3) == (6, 1, 0, 0, 0, 0)
