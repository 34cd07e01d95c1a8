"""Stages on record: in the row, as records of the ring, as counters. Only the time is played."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spearpool.config import MonitoringConfig
from spearpool.instances.places import Place
from spearpool.instances.progress import Progress
from spearpool.metrics.instances_table import InstancesTable
from spearpool.metrics.monitoring import MonitoringService
from spearpool.metrics.rollup import Rollup
from spearpool.metrics.seat import Seat
from spearpool.metrics.segment import Segment
from spearpool.metrics.vocabulary import RECORD_FLAGS, ROW_STAGES, EventKind, InstanceStage
from tests.metrics.segments import RingReader, new_segment

Stage = InstanceStage

CONNECTION = 0x0102_0304_0506_0708
SUM = 1
BEGIN = 1_000_000


class Life:
    """One instance's progress in a segment of its own; `now` is the monotonic clock."""

    def __init__(self, segment: Segment) -> None:
        self.now = BEGIN
        seat = Seat(segment, segment.layout.supervisor_seat)
        seat.occupy(0, os.getpid())
        self.seat = seat
        self.rollup = Rollup(segment)
        self.table = InstancesTable(segment)
        self.instance = self.table.open_row(SUM)
        self.reader = RingReader(segment, seat.index)
        self.begun_ns = time.time_ns()
        service = MonitoringService(seat, MonitoringConfig())
        self.progress = Progress(self.table, service, self.instance, SUM, lambda: self.now)

    def at(self, moment: int) -> Progress:
        self.now = BEGIN + moment
        return self.progress

    def told(self) -> list[tuple[str, int]]:
        """Kind and duration of the records since the last look."""
        return [(EventKind(record.kind).name, record.duration_ns) for record in self.reader.read()]

    def row(self) -> dict[InstanceStage, int]:
        """Times in the row, counted from the beginning."""
        row = self.table.snapshot(self.instance.row)
        assert row is not None
        return {stage: row.stages_ns[stage] - BEGIN for stage in ROW_STAGES if row.stages_ns[stage]}

    def counted(self) -> dict[str, int]:
        totals = self.rollup.task_totals()["sum"]
        return {name.removeprefix("instances_"): count for name, count in totals.items() if count}


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    with new_segment(tmp_path) as segment:
        yield Life(segment)


def test_a_life_from_the_request_to_the_end(life: Life) -> None:
    life.at(0).requested(Place())
    life.at(5).reached(Stage.SPAWNED, BEGIN + 4)
    life.progress.connection = CONNECTION
    life.at(30).reached(Stage.CONNECTED, BEGIN + 20)
    life.progress.reached(Stage.AUTHENTICATED, BEGIN + 22)
    life.progress.reached(Stage.READY)
    life.at(100).reached(Stage.STOPPING)
    life.at(140).ended(failed=False, code=0, reason="exited with code 0")
    assert life.row() == {
        Stage.REQUESTED: 0,
        Stage.SPAWNED: 4,
        Stage.CONNECTED: 20,
        Stage.AUTHENTICATED: 22,
        Stage.READY: 30,
        Stage.STOPPING: 100,
        Stage.EXITED: 140,
    }
    assert life.told() == [
        ("INSTANCE_REQUESTED", 0),
        ("INSTANCE_SPAWNED", 4),
        ("INSTANCE_CONNECTED", 16),
        ("INSTANCE_AUTHENTICATED", 2),
        ("INSTANCE_READY", 8),
        ("INSTANCE_STOPPING", 70),
        ("INSTANCE_EXITED", 40),
    ]
    assert life.counted() == {"started": 1, "exited": 1}
    assert life.rollup.latencies()["instance_start_ns"].mean == 30, "from the request until it is ready"


def test_what_comes_after_the_fork_waits_until_that_is_heard_of(life: Life) -> None:
    life.at(0).requested(Place())
    life.progress.connection = CONNECTION
    life.at(30).reached(Stage.CONNECTED, BEGIN + 20)
    life.progress.reached(Stage.AUTHENTICATED, BEGIN + 22)
    life.progress.reached(Stage.READY)
    assert life.told() == [("INSTANCE_REQUESTED", 0)]
    life.at(40).reached(Stage.SPAWNED, BEGIN + 4)
    assert life.told() == [
        ("INSTANCE_SPAWNED", 4),
        ("INSTANCE_CONNECTED", 16),
        ("INSTANCE_AUTHENTICATED", 2),
        ("INSTANCE_READY", 8),
    ]
    times = list(life.row().values())
    assert times == sorted(times)


def test_a_record_is_of_the_time_when_it_happened(life: Life) -> None:
    life.at(0).requested(Place())
    life.at(60_000_000_000).reached(Stage.SPAWNED, BEGIN)  # a minute ago
    requested, spawned = life.reader.read()
    assert life.begun_ns <= requested.time_ns <= time.time_ns()
    assert spawned.time_ns <= time.time_ns() - 60_000_000_000
    assert spawned.time_ns >= life.begun_ns - 60_000_000_000


def test_records_say_who_it_is_about_and_where(life: Life) -> None:
    life.at(0).requested(Place())
    life.progress.connection = CONNECTION
    for stage in (Stage.SPAWNED, Stage.CONNECTED):
        life.progress.reached(stage)
    life.progress.ended(failed=True, code=-9, reason="was killed by signal SIGKILL")
    records = life.reader.read()
    assert {(record.instance, record.task) for record in records} == {(life.instance.pack(), SUM)}
    assert [record.connection for record in records] == [0, 0, CONNECTION, CONNECTION]
    assert [(record.flags, record.code) for record in records] == [(0, 0)] * 3 + [
        (RECORD_FLAGS["has_code"], 0x1_0000 - 9)
    ]
    assert life.seat.names.names()[records[-1].name] == "was killed by signal SIGKILL"


def test_a_stage_counts_once(life: Life) -> None:
    life.at(0).requested(Place())
    life.progress.reached(Stage.SPAWNED)
    life.at(10).reached(Stage.STOPPING)
    life.at(20).reached(Stage.STOPPING)
    assert life.told()[2:] == [("INSTANCE_STOPPING", 10)]
    assert life.row()[Stage.STOPPING] == 10


def test_one_that_never_ran_has_failed_without_a_code(life: Life) -> None:
    life.at(0).requested(Place())
    life.at(7).ended(failed=True, code=None, reason="was not launched")
    _, failed = life.reader.read()
    assert (EventKind(failed.kind), failed.duration_ns, failed.flags) == (EventKind.INSTANCE_FAILED, 7, 0)
    assert life.counted() == {"started": 1, "failed": 1}


def test_what_still_waits_at_the_end_is_told_before_it(life: Life) -> None:
    """Killed while it was launched: nobody ever said that it was forked."""
    life.at(0).requested(Place())
    life.at(5).reached(Stage.STOPPING)
    life.at(9).ended(failed=False, code=None, reason="was not launched")
    assert life.told() == [("INSTANCE_REQUESTED", 0), ("INSTANCE_STOPPING", 5), ("INSTANCE_EXITED", 4)]


@pytest.mark.parametrize(("restarts", "told"), [(3, 3), (100_000, 0xFFFF)])
def test_a_restart_says_how_long_the_place_was_empty_and_how_often(life: Life, restarts: int, told: int) -> None:
    life.at(50).requested(Place(restarts, BEGIN + 20))
    requested, restarted = life.reader.read()
    assert EventKind(requested.kind) is EventKind.INSTANCE_REQUESTED
    assert EventKind(restarted.kind) is EventKind.INSTANCE_RESTARTED
    assert (restarted.duration_ns, restarted.code, restarted.flags) == (30, told, RECORD_FLAGS["has_code"])
    assert life.counted() == {"started": 1, "restarted": 1}
    life.at(60).reached(Stage.SPAWNED)
    assert life.told() == [("INSTANCE_SPAWNED", 10)], "a restart is no stage that the next one begins at"
