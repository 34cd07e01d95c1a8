"""What is read out of the events of workers, and the look at the sums."""

from __future__ import annotations

from pathlib import Path

import pytest

from spearpool.metrics import Seat, Segment
from spearpool.metrics.layout import COUNTER, Layout
from tests.chaos.witness import SumsWatch, WorkerEvent, recoveries, unbidden
from tests.conftest import eventually


def story(*events: tuple[float, int, str]) -> list[WorkerEvent]:
    """Time, slot and what happened; a kill has the code 9."""
    return [WorkerEvent(at, slot, f"worker_{what}", 9 * (what == "killed")) for at, slot, what in events]


def test_recovery_is_the_next_ready_of_that_slot() -> None:
    events = story((1.0, 0, "ready"), (1.9, 1, "ready"), (2.5, 1, "ready"), (3.0, 0, "ready"), (4.0, 0, "ready"))
    assert recoveries([(2.0, 0), (2.0, 1), (5.0, 1)], events) == [1.0, 0.5, None]


@pytest.mark.parametrize(
    ("removal", "found"),
    [
        ((2.1, 2.4, 2), []),  # the slot was taken away before there was an heir
        ((2.1, 2.4, 3), [1.0]),  # it stayed
        ((1.0, 1.9, 2), [1.0]),  # over before the kill
        ((3.1, 3.4, 2), [1.0]),  # when the heir was there
    ],
)
def test_a_slot_that_is_taken_away_needs_no_heir(removal: tuple[float, float, int], found: list[float]) -> None:
    assert recoveries([(2.0, 2)], story((3.0, 2, "ready")), [removal]) == found


def test_deaths_that_we_did_not_bring() -> None:
    events = story((0.1, 0, "spawned"), (0.2, 0, "ready"), (1.1, 0, "killed"), (1.2, 0, "spawned"), (1.3, 0, "ready"))
    assert unbidden([(1.0, 0)], events) == []
    assert unbidden([], events) == [events[2]]
    assert unbidden([(1.0, 1)], events) == [events[2]]
    assert unbidden([(1.15, 0)], events) == [events[2]]


def test_an_exit_counts_by_its_code() -> None:
    planned, failed = WorkerEvent(1.0, 0, "worker_exited", 0), WorkerEvent(1.0, 0, "worker_exited", 78)
    assert unbidden([], [planned, failed]) == [failed]


def test_an_heir_that_is_given_up_with_its_slot() -> None:
    events = story((1.2, 5, "spawned"), (1.3, 5, "killed"))
    assert unbidden([], events) == [events[1]]
    assert unbidden([], events, excuse_starting=True) == []
    grown_up = story((1.2, 5, "spawned"), (1.25, 5, "ready"), (1.3, 5, "killed"))
    assert unbidden([], grown_up, excuse_starting=True) == [grown_up[2]]


def test_sums_that_go_back_are_seen(tmp_path: Path) -> None:
    with Segment.create(tmp_path, "p", Layout.plan(1, ["t"], 64), 1, 1, 1) as segment:
        assert segment.path is not None
        seat = Seat(segment, 0)
        seat.occupy(1, 1)
        seat.add(COUNTER["bytes_in"], 5)
        with SumsWatch(segment.path) as watch:
            eventually(lambda: watch.looks > 1)
            assert not watch.wrong
            seat.add(COUNTER["bytes_in"], -1)
            eventually(lambda: watch.wrong["went back"])
            assert watch.examples == ["went back: slot 0 bytes_in: 5 → 4"]
            seat.add(COUNTER["connections_closed_peer"])
            eventually(lambda: watch.wrong["fewer than no open connections"])
            assert watch.unsettled_executions() == 0
            assert watch.closed_by_crash() == 0
            seat.add(COUNTER["connections_closed_crash"], 2)
            assert watch.closed_by_crash() == 2
        segment.unlink()
