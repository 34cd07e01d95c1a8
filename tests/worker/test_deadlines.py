from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from spearpool.worker.deadlines import Deadlines


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
