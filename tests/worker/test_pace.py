"""`pace`: over any stretch of time no more passes than the rate and one burst; who waits gets on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.worker.pace import BURST_S, Pace


def test_a_burst_then_the_rate() -> None:
    pace = Pace(1000, 10.0)
    assert pace.allowance(10.0) == 1000 * BURST_S
    pace.take(1000, 10.0)
    assert pace.allowance(10.0) == 0
    assert pace.allowance(10.5) == 500
    assert pace.allowance(99.0) == 1000 * BURST_S, "what is not used is not saved for longer"


def test_a_debt_is_paid_by_waiting() -> None:
    pace = Pace(1000, 0.0)
    pace.take(4000, 0.0)
    assert pace.allowance(0.0) == -3000
    assert pace.wait_s(0, 0.0) == pytest.approx(3.0)
    assert pace.allowance(2.0) == -1000
    assert pace.wait_s(0, 2.0) == pytest.approx(1.0)


def test_who_wants_little_waits_for_little_and_who_wants_much_for_a_step() -> None:
    pace = Pace(100_000, 0.0)
    pace.take(110_000, 0.0)
    assert pace.wait_s(1, 0.0) == pytest.approx(0.1, rel=0.01)
    assert pace.wait_s(1 << 30, 0.0) == pytest.approx(0.12, rel=0.01)
    assert pace.wait_s(1 << 30, 1.0) > 0, "a timer never spins"


def test_a_clock_that_stands_still_gives_nothing() -> None:
    pace = Pace(1000, 5.0)
    pace.take(1000, 5.0)
    assert pace.allowance(4.0) == 0
    assert pace.allowance(5.0) == 0


@given(
    rate=st.integers(1024, 1 << 30),
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 1 << 22)), min_size=1, max_size=60),
)
def test_never_more_than_the_rate_and_a_burst(rate: int, steps: list[tuple[float, int]]) -> None:
    """Whoever takes only what is allowed; whoever wants more waits as long as told, and then gets some."""
    pace, now, passed = Pace(rate, 0.0), 0.0, 0
    for idle_s, wanted in steps:
        now += idle_s
        allowed = pace.allowance(now)
        assert allowed >= 0
        if wanted and not allowed:
            now += pace.wait_s(wanted, now)
            allowed = pace.allowance(now)
            assert allowed > 0
        size = min(wanted, allowed)
        pace.take(size, now)
        passed += size
        assert passed <= rate * (now + BURST_S) * (1 + 1e-9) + 1
