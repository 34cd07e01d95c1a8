from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spearpool.config import ResourceLimits
from spearpool.errors import SegmentError
from spearpool.metrics.instances_table import InstanceRow, InstancesTable, LimitState
from spearpool.metrics.layout import (
    Layout,
)
from spearpool.metrics.segment import Segment
from spearpool.metrics.vocabulary import (
    LIMITS,
    OTHER,
    ROW_STAGES,
    InstanceStage,
    LimitLevel,
)
from spearpool.protocol.identifiers import ConnectionId, InstanceId
from tests.conftest import deadline
from tests.metrics.segments import new_segment

ROWS = 8


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[Segment]:
    with new_segment(tmp_path) as made:
        yield made


@pytest.fixture
def table(segment: Segment) -> InstancesTable:
    return InstancesTable(segment)


def row_of(table: InstancesTable, instance: InstanceId) -> InstanceRow:
    row = table.snapshot(instance.row)
    assert row is not None
    return row


def test_a_row_tells_everything_to_any_reader(segment: Segment, table: InstancesTable) -> None:
    instance = table.open_row(segment.task_index("sum"), restarts=3)
    owner = ConnectionId(127, 2**24 - 1, 2**32 - 1).pack()
    table.set_process(instance.row, 4321, 999)
    table.set_owner(instance.row, owner)
    table.mark(instance.row, InstanceStage.REQUESTED, 10)
    table.mark(instance.row, InstanceStage.SPAWNED, 20)
    table.set_limit(instance.row, LIMITS.index("memory_bytes"), 2**30, LimitLevel.ENFORCED)
    table.set_limit(instance.row, LIMITS.index("nice"), -5, LimitLevel.WATCHED)
    table.set_usage(instance.row, LIMITS.index("memory_bytes"), 2**29, 1)
    assert row_of(InstancesTable(segment), instance) == InstanceRow(
        instance=InstanceId(0, 1),
        instance_id="sum-0-1",
        alive=True,
        external=False,
        task_index=1,
        task="sum",
        owner=owner,
        pid=4321,
        start_ticks=999,
        restarts=3,
        stages_ns=(10, 20, 0, 0, 0, 0, 0, 0),
        limits=(
            LimitState("memory_bytes", LimitLevel.ENFORCED, 2**30, 2**29, 1),
            LimitState("nice", LimitLevel.WATCHED, -5, 0, 0),
        ),
    )


def test_every_configurable_limit_has_its_place() -> None:
    assert {*LIMITS, "on_breach"} == set(ResourceLimits.__struct_fields__)


def test_the_stage_is_the_last_one_reached(table: InstancesTable) -> None:
    instance = table.open_row(0)
    assert row_of(table, instance).stage is InstanceStage.REQUESTED
    for stage in ROW_STAGES:
        table.mark(instance.row, stage, 100 + stage)
        assert row_of(table, instance).stage is stage


def test_an_external_instance_keeps_its_own_name(segment: Segment, table: InstancesTable) -> None:
    instance = table.open_row(segment.layout.columns - 1, external=True, label="agent-seven")
    row = row_of(table, instance)
    assert (row.external, row.instance_id, row.task) == (True, "agent-seven", OTHER)


def test_a_closed_row_is_void_and_its_successor_another_instance(table: InstancesTable) -> None:
    first = table.open_row(0, external=True, label="first")
    table.set_limit(first.row, 0, 1, LimitLevel.ENFORCED)
    table.mark(first.row, InstanceStage.READY, 5)
    assert table.is_alive(first.row, first.generation)
    table.close_row(first.row)
    table.close_row(first.row)
    assert not table.is_alive(first.row, first.generation)
    assert (row_of(table, first).alive, row_of(table, first).instance_id) == (False, "first")

    others = [table.open_row(0) for _ in range(ROWS - 1)]
    second = table.open_row(1)  # the oldest of the closed rows comes last
    assert second == InstanceId(first.row, first.generation + 1)
    assert len({instance.row for instance in (*others, second)}) == ROWS
    assert table.is_alive(second.row, second.generation)
    assert not table.is_alive(first.row, first.generation)
    row = row_of(table, second)
    assert (row.instance_id, row.external, row.stages_ns, row.limits) == ("sum-0-2", False, (0,) * len(ROW_STAGES), ())


def test_rows_run_out(table: InstancesTable) -> None:
    instances = [table.open_row(0) for _ in range(ROWS)]
    with pytest.raises(SegmentError, match="all 8 rows of the instances table are in use"):
        table.open_row(0)
    table.close_row(instances[5].row)
    assert table.open_row(0) == InstanceId(5, 2)


@pytest.mark.parametrize("row", [-1, ROWS, 2**32])
def test_a_row_that_is_not_there_is_not_alive(table: InstancesTable, row: int) -> None:
    assert not table.is_alive(row, 1)
    assert not table.is_alive(0, 0)


def test_snapshots_are_the_living_by_place(table: InstancesTable) -> None:
    assert table.snapshots() == []
    assert table.snapshot(0) is None
    instances = [table.open_row(0) for _ in range(4)]
    table.close_row(instances[1].row)
    assert [row.instance for row in table.snapshots()] == [instances[0], instances[2], instances[3]]


def test_a_table_made_later_knows_which_rows_are_free(segment: Segment, table: InstancesTable) -> None:
    table.open_row(0)
    assert InstancesTable(segment).open_row(0) == InstanceId(1, 1)


def test_a_row_that_is_opened_again_while_it_is_copied_is_copied_again(segment: Segment, table: InstancesTable) -> None:
    first = table.open_row(0, external=True, label="first")
    table.close_row(first.row)

    class Overtaken:
        """The words of the table; the first copy of a row is out of date as soon as it is made."""

        def __init__(self, words: memoryview) -> None:
            self.words = words
            self.copies = 0

        def __getitem__(self, place: Any) -> Any:
            if not isinstance(place, slice):
                return self.words[place]
            copied = memoryview(bytes(self.words[place])).cast("q")
            if not self.copies:
                table.open_row(1, external=True, label="second")
            self.copies += 1
            return copied

    for _ in range(ROWS - 1):
        table.open_row(0)
    reader: Any = InstancesTable(segment)
    reader._words = Overtaken(reader._words)
    row = reader.snapshot(first.row)
    assert (row.instance, row.instance_id, row.task) == (InstanceId(first.row, 2), "second", "sum")
    assert reader._words.copies == 2


@pytest.mark.process
def test_what_a_reader_sees_of_a_row_belongs_to_one_instance(tmp_path: Path) -> None:
    """One row, opened and closed as fast as it goes by another process: whatever is alive is whole."""
    with new_segment(tmp_path, Layout.plan(1, ["a", "b"], 64, rows=1)) as segment:
        pid = os.fork()
        if not pid:
            try:
                writer = InstancesTable(segment)
                for number in range(1, 2**40):
                    instance = writer.open_row(number % 2, external=True, label=f"label-{number}", restarts=number)
                    writer.close_row(instance.row)
            finally:
                os._exit(1)
        try:
            reader, end = InstancesTable(segment), deadline(60)
            seen: set[int] = set()
            while len(seen) < 100:
                assert time.monotonic() < end, f"{len(seen)} instances seen"
                for row in reader.snapshots():
                    number = row.instance.generation
                    assert (row.restarts, row.instance_id) == (number, f"label-{number}")
                    assert row.task == ("b" if number % 2 else "a")
                    seen.add(number)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
