"""One slot: seats and what an end costs. What follows for the pool is in `test_roster`."""

from __future__ import annotations

import math

import pytest

from spearpool.backoff import Backoff
from spearpool.supervisor.slot import Slot, SlotView, Worker, WorkerPolicy, WorkerState

POLICY = WorkerPolicy(
    ready_timeout_s=30.0,
    settled_s=10.0,
    backoff=Backoff(base_s=1.0, cap_s=4.0),
    breaker_limit=3,
    breaker_window_s=60.0,
    breaker_open_s=20.0,
)


@pytest.fixture
def slot() -> Slot:
    return Slot(3, POLICY, now=100.0)


def _ready(slot: Slot, incarnation: int, now: float) -> Worker:
    worker = slot.seat_worker(incarnation, now)
    worker.become(WorkerState.READY)
    worker.ready_at = now
    return worker


def _end(slot: Slot, worker: Worker, now: float) -> bool:
    slot.workers.remove(worker)
    return slot.ended(worker, "was killed", now, 0.5, heir=True)


def test_a_new_slot_wants_a_worker_at_once(slot: Slot) -> None:
    assert (slot.lacks_worker, slot.serves, slot.spawn_at) == (True, False, 100.0)
    assert slot.view(heir=True) == SlotView(3, "waiting", None, None, None, 0, "")
    assert slot.view(heir=False).state == "empty"


def test_a_worker_takes_the_even_seat_first_and_must_be_ready_in_time(slot: Slot) -> None:
    worker = slot.seat_worker(7, 100.0)
    assert (worker.slot, worker.seat, worker.incarnation, worker.deadline) == (3, 6, 7, 130.0)
    assert not slot.lacks_worker
    assert slot.find(7) is worker
    assert slot.find(8) is None
    assert slot.view(heir=True) == SlotView(3, "starting", 6, 7, None, 0, "")


def test_an_heir_takes_the_other_seat_while_its_predecessor_is_still_there(slot: Slot) -> None:
    first = _ready(slot, 7, 100.0)
    first.become(WorkerState.KILLED)
    heir = slot.seat_worker(8, 101.0)
    assert heir.seat == 7
    assert slot.view(heir=True).incarnation == 8  # the newest stands for the slot
    slot.workers.remove(first)
    heir.become(WorkerState.KILLED)
    assert slot.seat_worker(9, 102.0).seat == 6


@pytest.mark.parametrize("held", [1, 2])
def test_a_slot_whose_seats_are_held_waits(slot: Slot, held: int) -> None:
    for incarnation in range(held):
        slot.seat_worker(incarnation, 100.0).become(WorkerState.KILLED)
    assert slot.lacks_worker is (held == 1)


def test_with_both_seats_free_the_next_one_takes_the_one_the_last_did_not_have(slot: Slot) -> None:
    for incarnation, seat in ((1, 6), (2, 7), (3, 6)):
        worker = _ready(slot, incarnation, 100.0)
        assert worker.seat == seat
        _end(slot, worker, 200.0)


@pytest.mark.parametrize("state", WorkerState)
def test_a_slot_serves_with_a_worker_that_is_ready_and_was_not_asked_to_leave(slot: Slot, state: WorkerState) -> None:
    slot.seat_worker(7, 100.0).become(state)
    assert slot.serves is (state is WorkerState.READY)
    assert slot.lacks_worker is (state not in {WorkerState.STARTING, WorkerState.READY})
    assert slot.workers[0].deadline == math.inf


def test_failures_in_a_row_delay_the_heir_and_open_the_breaker(slot: Slot) -> None:
    opened, delays = [], []
    for incarnation in range(4):
        opened.append(_end(slot, _ready(slot, incarnation, 100.0), 101.0))
        delays.append(slot.spawn_at - 101.0)
    assert delays == [0.0, 0.5, 20.0, 20.0]
    assert opened == [False, False, True, True]
    assert slot.failures == 4
    assert slot.view(heir=True) == SlotView(3, "waiting", None, None, None, 4, "was killed")


def test_a_settled_worker_makes_them_forgotten(slot: Slot) -> None:
    for incarnation in range(3):
        _end(slot, _ready(slot, incarnation, 100.0), 101.0)
    assert not _end(slot, _ready(slot, 9, 100.0), 110.0)
    assert (slot.failures, slot.spawn_at) == (0, 110.0)
    assert not _end(slot, _ready(slot, 10, 110.0), 111.0)
    assert slot.spawn_at == 111.0, "the breaker was closed as well"


def test_an_end_without_an_heir_is_noted_and_costs_nothing(slot: Slot) -> None:
    worker = _ready(slot, 1, 100.0)
    slot.workers.remove(worker)
    assert not slot.ended(worker, "exited with code 0", 101.0, 0.5, heir=False)
    assert slot.view(heir=False) == SlotView(3, "empty", None, None, None, 0, "exited with code 0")
    assert (slot.failures, slot.spawn_at) == (0, 100.0)
