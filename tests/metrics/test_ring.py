from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from spearpool.errors import SegmentError
from spearpool.metrics.layout import (
    Layout,
)
from spearpool.metrics.ring import RingWriter
from spearpool.metrics.segment import Segment
from spearpool.metrics.vocabulary import (
    NO_MESSAGE_TYPE,
    NO_TASK,
    EventKind,
)
from tests.conftest import deadline
from tests.metrics.segments import Record, RingReader, new_segment

SIZE = 64


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[Segment]:
    with new_segment(tmp_path) as made:
        yield made


def writer_of(segment: Segment, seat: int = 0) -> RingWriter:
    parts = (segment.seat_part(seat, name) for name in ("ring", "ring_state", "counters"))
    return RingWriter(*parts, sealed=segment.layout.sealed)


def test_a_record_carries_every_field(segment: Segment) -> None:
    writer = writer_of(segment)
    writer.write(-1, 5, 2**64 - 1, 2**63, 4, 2**32 - 1, 6, 7, 8, 9, 2, 1)
    writer.write(3, EventKind.CONNECTED)
    assert RingReader(segment, 0).read() == [
        Record(0, -1, 2**64 - 1, 2**63, 4, 2**32 - 1, 6, 7, 8, 5, 9, 2, 1, 0),
        Record(1, 3, 0, 0, 0, 0, 0, 0, NO_TASK, 1, NO_MESSAGE_TYPE, 0, 0, 0),
    ]
    assert writer.position == 2


def test_a_reader_that_comes_late_knows_what_it_lost(segment: Segment) -> None:
    writer, reader = writer_of(segment), RingReader(segment, 0)
    for number in range(SIZE + 10):
        writer.write(number, 1)
    assert [record.sequence for record in reader.read()] == list(range(10, SIZE + 10))
    assert (reader.lost, reader.next, reader.written) == (10, SIZE + 10, SIZE + 10)
    assert reader.read() == []


def test_what_is_overwritten_while_it_is_copied_is_lost_not_torn(segment: Segment) -> None:
    writer, reader = writer_of(segment), RingReader(segment, 0)
    for number in range(SIZE):
        writer.write(number, 1)
    copied = reader.copy()
    for number in range(3):
        writer.write(number, 1)
    assert [record.sequence for record in reader.accept(copied)] == list(range(3, SIZE))
    assert [record.sequence for record in reader.read()] == [SIZE, SIZE + 1, SIZE + 2]
    assert reader.lost == 3


def test_a_record_that_is_being_written_already_took_its_victim(segment: Segment) -> None:
    """The order of stores: between intent and tail the oldest record is gone and the new one not there yet."""
    writer, reader = writer_of(segment), RingReader(segment, 0)
    for number in range(SIZE):
        writer.write(number, 1)
    segment.seat_part(0, "ring_state")[0] = SIZE + 1
    assert [record.sequence for record in reader.read()] == list(range(1, SIZE))
    assert (reader.lost, reader.written) == (1, SIZE)


def test_a_value_that_does_not_fit_appends_nothing(segment: Segment) -> None:
    writer, reader = writer_of(segment), RingReader(segment, 0)
    writer.write(1, 1)
    for wrong in ({"size": 2**32}, {"connection": -1}, {"kind": 256}, {"name": "x"}):
        with pytest.raises(struct.error):
            writer.write(2, **{"kind": 1, **wrong})  # type: ignore[arg-type]
    writer.write(3, 1)
    assert [(record.sequence, record.time_ns) for record in reader.read()] == [(0, 1), (1, 3)]


def test_a_successor_goes_on_where_the_last_one_stopped(segment: Segment) -> None:
    first = writer_of(segment)
    first.resume(0)
    first.write(1, 1)
    heir = writer_of(segment)
    heir.resume(2)
    heir.write(3, 1)
    assert [(record.sequence, record.time_ns) for record in RingReader(segment, 0).read()] == [(0, 1), (1, 3)]


def test_the_record_in_a_dead_hand_becomes_a_torn_one(segment: Segment) -> None:
    writer_of(segment).write(1, 1)
    segment.seat_part(0, "ring_state")[0] = 2
    segment.seat_part(0, "ring")[64:90] = b"\xff" * 26
    heir = writer_of(segment)
    heir.resume(9)
    assert heir.position == 2
    torn = RingReader(segment, 0).read()[1]
    assert (torn.sequence, torn.kind, torn.time_ns, torn.connection) == (1, EventKind.TORN, 9, 0)


@pytest.mark.parametrize(("intent", "tail"), [(2, 0), (0, 1), (-1, -1), (10**12, 3)])
def test_a_ring_that_no_writer_can_have_left(segment: Segment, intent: int, tail: int) -> None:
    segment.seat_part(0, "ring_state")[0] = intent
    segment.seat_part(0, "counters")[0] = tail
    with pytest.raises(SegmentError, match=f"intent {intent} and tail {tail}"):
        writer_of(segment).resume(0)


def test_a_sealed_record_carries_the_xor_of_its_words(tmp_path: Path) -> None:
    with new_segment(tmp_path, Layout.plan(1, [], SIZE, rows=1, sealed=True)) as segment:
        writer = writer_of(segment)
        for number in range(SIZE + 5):
            writer.write(number, 3, 2**64 - 1 - number, size=number, flags=1)
        records = RingReader(segment, 0).read()
        assert len(records) == SIZE
        assert all(record.check == record.seal() != 0 for record in records)
        damaged = records[0]._replace(size=77)
        assert damaged.check != damaged.seal()


# Two processes


@contextmanager
def writing_process(segment: Segment, seat: int) -> Iterator[int]:
    """Writes as fast as it can, each record telling its position in every field; killed at the end."""
    pid = os.fork()
    if not pid:
        try:
            write = writer_of(segment, seat).write
            for n in range(segment.seat_part(seat, "counters")[0], 2**40):
                low = n & 0xFFFF
                write(n, low & 0xFF, n, n, n, n & 0xFFFF_FFFF, low, low, low, low & 0xFF, low & 0xFF, low & 0xFF)
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def assert_whole(record: Record) -> None:
    n = record.sequence
    low = n & 0xFFFF
    byte = low & 0xFF
    assert record == Record(n, n, n, n, n, n, low, low, low, byte, byte, byte, byte, 0)


@pytest.mark.process
def test_no_record_is_torn_between_two_processes(tmp_path: Path) -> None:
    """A small ring and a reader that is much slower than the writer: most is overwritten under its eyes."""
    with new_segment(tmp_path, Layout.plan(1, [], SIZE, rows=1, sealed=False)) as segment:
        reader = RingReader(segment, 0)
        read, seen = 0, -1

        def look() -> None:
            nonlocal read, seen
            for record in reader.read():
                assert record.sequence > seen
                assert_whole(record)
                seen = record.sequence
                read += 1
            assert reader.next == read + reader.lost

        with writing_process(segment, 0):
            end = deadline(60)
            while reader.next < 200_000 or not reader.lost or not read:
                assert time.monotonic() < end, f"{read} read and {reader.lost} lost"
                look()
        look()
        assert reader.written == read + reader.lost


@pytest.mark.process
def test_killed_writers_leave_a_ring_that_goes_on(tmp_path: Path) -> None:
    """Ten writers on one ring, each killed at a random moment: the positions of what is read never lie."""
    with new_segment(tmp_path, Layout.plan(1, [], SIZE, rows=1, sealed=False)) as segment:
        reader = RingReader(segment, 0)
        read = torn = 0
        for _ in range(10):
            before = reader.written
            with writing_process(segment, 0):
                end = deadline(10)
                while reader.written < before + 3 * SIZE:
                    assert time.monotonic() < end
            writer_of(segment).resume(0)
            for record in reader.read():
                read += 1
                if record.kind == EventKind.TORN and record.time_ns == 0 and record.sequence:
                    torn += 1
                else:
                    assert_whole(record)
        assert reader.written == read + reader.lost
        assert torn <= 10


def test_the_writer_needs_nothing_but_memory() -> None:
    records, state, tail = memoryview(bytearray(4096)), memoryview(bytearray(8)), memoryview(bytearray(8))
    RingWriter(records, state.cast("q"), tail.cast("q"), sealed=False).write(1, 1)
    assert (state[0], tail[0], records[8]) == (1, 1, 1)
