from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.worker.deadlines import Alarm, Deadlines


def test_earliest_first() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key, when in (("late", 3.0), ("early", 1.0), ("never", inf), ("middle", 2.0)):
        deadlines.set(key, when)
    assert deadlines.next() == 1.0
    assert list(deadlines.due(2.0)) == ["early", "middle"]
    assert (deadlines.next(), len(deadlines)) == (3.0, 1)


def test_a_moved_deadline_counts_once() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("key", 1.0)
    deadlines.set("key", 2.0)
    assert list(deadlines.due(1.5)) == []
    assert list(deadlines.due(2.0)) == ["key"]
    assert list(deadlines.due(9.0)) == []


def test_advance_only_brings_forward() -> None:
    deadlines: Deadlines[int] = Deadlines()
    deadlines.advance(1, 5.0)
    deadlines.advance(1, 7.0)
    assert list(deadlines.due(5.0)) == [1]
    deadlines.set(2, 5.0)
    deadlines.advance(2, 3.0)
    assert list(deadlines.due(3.0)) == [2]


def test_may_be_set_again_while_iterating() -> None:
    deadlines: Deadlines[int] = Deadlines()
    deadlines.set(1, 1.0)
    for key in deadlines.due(2.0):
        deadlines.set(key, 3.0)
    assert list(deadlines.due(3.0)) == [1]


def test_discarded_ones_do_not_pile_up() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for key in range(100_000):
        deadlines.set(key, 1e9)
        deadlines.discard(key)
    assert len(deadlines._heap) < 1000


def test_in_order_also_after_the_heap_was_made_anew() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for key in range(40):
        deadlines.set(key, 100.0 - key)
    for _ in range(10):  # leaves old entries behind
        for key in range(40):
            deadlines.set(key, 200.0 - key)
    assert len(deadlines._heap) < 200
    assert deadlines.next() <= 161.0
    assert list(deadlines.due(180.0)) == list(range(39, 19, -1))
    assert list(deadlines.due(300.0)) == list(range(19, -1, -1))
    assert (len(deadlines), deadlines.next()) == (0, inf)


def test_the_heap_is_not_made_anew_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(heapq, "heapify", lambda heap: made.append(len(heap)))
    deadlines: Deadlines[int] = Deadlines()
    for key in range(1000):
        deadlines.set(key, float(key))
    assert made == []


def test_none_is_no_deadline() -> None:
    deadlines: Deadlines[int] = Deadlines()
    deadlines.set(1, 5.0)
    deadlines.set(1, inf)
    deadlines.set(2, 6.0)
    assert len(deadlines) == 1
    assert list(deadlines.due(10.0)) == [2]


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 20))), st.integers(0, 20))
def test_agrees_with_a_dictionary(steps: list[tuple[int, int | None]], now: int) -> None:
    deadlines: Deadlines[int] = Deadlines()
    model: dict[int, float] = {}
    for key, when in steps:
        if when is None:
            deadlines.discard(key)
            model.pop(key, None)
        else:
            deadlines.set(key, when)
            model[key] = when
    assert deadlines.next() <= min(model.values(), default=inf)
    assert sorted(deadlines.due(now)) == sorted(key for key, when in model.items() if when <= now)
    assert len(deadlines) == sum(when > now for when in model.values())


class Clock:
    """A loop in which time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[Timer] = []

    def call_later(self, delay_s: float, ring: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay_s, ring))
        return self.timers[-1]

    def pass_to(self, now: float) -> None:
        self.now = now
        for timer in [timer for timer in self.timers if timer.when <= now]:
            self.timers.remove(timer)
            if not timer.cancelled:
                timer.ring()

    def wakes(self) -> list[float]:
        return [timer.when for timer in self.timers if not timer.cancelled]


@dataclass(eq=False)
class Timer:
    when: float
    ring: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


class Called:
    """What an alarm called, and what it was told to do next: call again `after` so long."""

    def __init__(self, clock: Clock, after: float = inf) -> None:
        self.keys: list[tuple[int, float]] = []
        self.after = after
        self.alarm: Alarm[int] = Alarm(cast(asyncio.AbstractEventLoop, clock), 0.5, self.due)

    def due(self, key: int, now: float) -> float:
        self.keys.append((key, now))
        return now + self.after


def test_an_alarm_serves_what_is_due_in_one_call(clock: Clock) -> None:
    called = Called(clock)
    called.alarm.advance(1, 110.0)
    called.alarm.advance(2, 109.7)  # within the grain: not worth another timer
    assert clock.wakes() == [110.0]
    called.alarm.advance(3, 105.0)
    assert clock.wakes() == [105.0]
    clock.pass_to(105.0)
    assert called.keys == [(3, 105.0)]
    assert clock.wakes() == [109.7]
    clock.pass_to(110.0)
    assert called.keys == [(3, 105.0), (2, 110.0), (1, 110.0)]
    assert clock.wakes() == []


def test_an_alarm_rings_again_when_it_is_told_to(clock: Clock) -> None:
    called = Called(clock, after=3.0)
    called.alarm.advance(1, 104.0)
    clock.pass_to(104.0)
    clock.pass_to(107.0)
    assert called.keys == [(1, 104.0), (1, 107.0)]


def test_an_alarm_does_not_ring_more_often_than_its_grain(clock: Clock) -> None:
    called = Called(clock)
    called.alarm.advance(1, 90.0)
    assert clock.wakes() == [100.5]


def test_what_an_alarm_is_not_to_call_for(clock: Clock) -> None:
    called = Called(clock)
    called.alarm.cancel()  # nothing to cancel yet
    for key in (1, 2):
        called.alarm.advance(key, 110.0)
    called.alarm.discard(1)
    clock.pass_to(110.0)
    assert called.keys == [(2, 110.0)]
    called.alarm.advance(3, 120.0)
    assert clock.wakes() == [120.0]
    called.alarm.cancel()
    assert clock.wakes() == []
