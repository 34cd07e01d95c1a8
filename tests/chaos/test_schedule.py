"""The storm's schedule is a function of its seed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.schedule import HOLD_S, SCALES, Blow, Kind, plan

COUNTS = st.dictionaries(st.sampled_from(Kind), st.integers(0, 30))


@given(st.integers(), st.floats(0.1, 1000), COUNTS)
def test_as_many_blows_as_asked_for_in_time_and_in_order(seed: int, seconds: float, counts: dict[Kind, int]) -> None:
    blows = plan(seed, seconds, counts)
    assert Counter(blow.kind for blow in blows) == +Counter(counts)
    times = [blow.at_s for blow in blows]
    assert times == sorted(times)
    assert all(0 <= at <= seconds for at in times)


def test_the_seed_decides() -> None:
    counts = dict.fromkeys(Kind, 5)
    assert plan(1, 10, counts) == plan(1, 10, counts)
    assert plan(1, 10, counts) != plan(2, 10, counts)


@pytest.mark.parametrize("kind", HOLD_S)
def test_stops_are_held_within_their_bounds(kind: Kind) -> None:
    least, most = HOLD_S[kind]
    assert all(least <= blow.hold_s <= most for blow in plan(3, 10, {kind: 100}))


def test_scalings_take_turns() -> None:
    assert [blow.workers for blow in plan(4, 10, {Kind.SCALE: 4})] == [*SCALES, *SCALES]


def test_nothing_to_do() -> None:
    assert plan(5, 10, {}) == list[Blow]()
