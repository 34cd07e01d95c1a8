from __future__ import annotations

import math

from spearpool.supervisor.rescue import PATIENCE_S, Lend, Rescues, TakeBack

STEP_S = PATIENCE_S / 4


class Watch:
    """Slots and their workers as the test sets them, on a clock of its own."""

    def __init__(self, slots: int) -> None:
        self.rescues = Rescues()
        self.now = 64.0
        self.attendants: dict[int, int | None] = {slot: slot + 1 for slot in range(slots)}
        assert self.look() == []

    def look(self, after_s: float = 0.0) -> list[Lend | TakeBack]:
        self.now += after_s
        return self.rescues.look(self.attendants, self.now)


def test_while_everybody_is_there_nothing_is_lent() -> None:
    watch = Watch(3)
    assert watch.look(60.0) == []
    assert watch.rescues.next_deadline() == math.inf


def test_a_slot_that_waits_is_lent_after_a_moment_and_taken_back() -> None:
    watch = Watch(2)
    watch.attendants[0] = None
    assert watch.look() == []
    due = watch.rescues.next_deadline()
    assert due == watch.now + PATIENCE_S
    assert watch.look(PATIENCE_S - STEP_S) == []
    assert watch.rescues.next_deadline() == due
    watch.now = due
    assert watch.look() == [Lend(0, 2)]
    assert watch.rescues.next_deadline() == math.inf
    assert watch.look(60.0) == []
    watch.attendants[0] = 3
    assert watch.look() == [TakeBack(0, 2)]
    assert watch.look(60.0) == []


def test_an_heir_that_is_quick_needs_nobody() -> None:
    watch = Watch(2)
    for heir in range(3, 20):
        watch.attendants[0] = None
        assert watch.look() == []
        watch.attendants[0] = heir
        assert watch.look(PATIENCE_S - STEP_S) == []


def test_when_the_neighbour_ends_the_next_one_gets_it_at_once() -> None:
    watch = Watch(3)
    watch.attendants[0] = None
    watch.look()
    assert watch.look(PATIENCE_S) == [Lend(0, 2)]
    watch.attendants[1] = 9  # an heir, who has nothing of what its predecessor had
    assert watch.look() == [Lend(0, 9)]
    watch.attendants[1] = None
    assert watch.look() == [Lend(0, 3)], "and slot 1 has only begun to wait"
    assert watch.look(PATIENCE_S) == [Lend(1, 3)]


def test_loans_are_shared() -> None:
    watch = Watch(6)
    for slot in (1, 2, 4, 5):
        watch.attendants[slot] = None
    watch.look()
    assert watch.look(PATIENCE_S) == [Lend(1, 1), Lend(2, 4), Lend(4, 1), Lend(5, 4)]


def test_with_nobody_left_nothing_can_be_lent_until_there_is() -> None:
    watch = Watch(2)
    watch.attendants = {0: None, 1: None}
    assert watch.look() == watch.look(60.0) == []
    assert watch.rescues.next_deadline() == math.inf, "or the caller would not sleep"
    watch.attendants[1] = 3
    assert watch.look() == [Lend(0, 3)]


def test_the_listener_of_a_removed_slot_is_given_back() -> None:
    watch = Watch(3)
    watch.attendants[2] = None
    watch.look()
    assert watch.look(PATIENCE_S) == [Lend(2, 1)]
    del watch.attendants[2]
    assert watch.look() == [TakeBack(2, 1)]
    assert watch.rescues.next_deadline() == math.inf
