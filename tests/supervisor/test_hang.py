from __future__ import annotations

import pytest

from spearpool.supervisor.hang import DUMP_S, LOOK_S, Dump, End, HangWatch

LIMIT_S = 10.0
STEP_S = 0.0625
"""Between two looks; a power of two, for sums without rounding."""


class Watch:
    """Looks again and again at worker 1, which stands still, and worker 2, which beats."""

    def __init__(self) -> None:
        self.watch = HangWatch(LIMIT_S)
        self.now = 500.0
        self.beats = {1: 17, 2: 17}
        self.watch.look(self.beats, self.now)

    def look(self, after_s: float = STEP_S) -> list[Dump | End]:
        self.now += after_s
        self.beats[2] += 1
        return self.watch.look(self.beats, self.now)

    def looks(self, seconds: float) -> list[Dump | End]:
        return [found for _ in range(round(seconds / STEP_S)) for found in self.look()]


def test_a_worker_that_beats_is_left_alone() -> None:
    watch = Watch()
    del watch.beats[1]
    assert watch.looks(60.0) == []


def test_stacks_first_then_the_end_and_each_once() -> None:
    watch = Watch()
    assert watch.looks(LIMIT_S - STEP_S) == []
    assert watch.look() == [Dump(1)]
    assert watch.looks(DUMP_S - STEP_S) == []
    assert watch.look() == [End(1)]
    assert watch.looks(60.0) == []


@pytest.mark.parametrize("still_s", [LIMIT_S - STEP_S, LIMIT_S, LIMIT_S + DUMP_S - STEP_S])
def test_one_beat_and_all_is_forgiven(still_s: float) -> None:
    watch = Watch()
    assert End(1) not in watch.looks(still_s)
    watch.beats[1] += 1
    assert watch.looks(LIMIT_S) == [], "it counts from the beat, which is seen at the next look"
    assert watch.look() == [Dump(1)]


def test_a_pause_of_our_own_counts_for_one_look() -> None:
    """The whole pool stood still, us included: by their words everybody would be overdue."""
    watch = Watch()
    watch.looks(5.0)
    watch.beats[2] -= 1  # it did not beat in the pause, either
    assert watch.look(3600.0) == []
    assert watch.looks(LIMIT_S - 5.0 - LOOK_S - STEP_S) == []
    assert watch.look() == [Dump(1)]


def test_pauses_do_not_add_up_against_workers_that_beat_in_between() -> None:
    watch = Watch()
    for _ in range(100):
        watch.beats[1] += 1
        assert watch.look(3600.0) == []


def test_stacks_are_asked_for_however_late_the_look_comes() -> None:
    """However slow we are, nobody is ended in the look in which stacks are asked for."""
    watch = Watch()
    found = [watch.look(LOOK_S) for _ in range(round((LIMIT_S + DUMP_S) / LOOK_S))]
    assert [each for each in found if each] == [[Dump(1)], [End(1)]]


def test_who_should_not_beat_is_forgotten() -> None:
    watch = Watch()
    watch.looks(LIMIT_S - STEP_S)
    del watch.beats[1]
    watch.look()
    watch.beats[1] = 17
    assert watch.looks(LIMIT_S) == [], "a new beginning"
    assert watch.look() == [Dump(1)]


def test_a_clock_of_theirs_counts_nothing() -> None:
    watch = Watch()
    watch.beats[1] = 10**18
    assert watch.looks(LIMIT_S) == []
    assert watch.look() == [Dump(1)]
