"""Delays stay in their bounds and grow; the breaker opens, lets one through, and forgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.backoff import Backoff, Breaker


@pytest.mark.parametrize(
    ("backoff", "ceilings"),
    [
        (Backoff(base_s=0.1, cap_s=1.0), [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]),
        (Backoff(base_s=0.1, cap_s=1.0, first_free=False), [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]),
    ],
)
def test_the_ceiling_doubles_up_to_the_cap(backoff: Backoff, ceilings: list[float]) -> None:
    assert [backoff.delay_s(attempt, 1.0) for attempt in range(7)] == pytest.approx(ceilings)


@given(attempt=st.integers(0, 10**6), random=st.floats(0, 1, exclude_max=True), first_free=st.booleans())
def test_jitter_is_full_and_bounded(attempt: int, random: float, first_free: bool) -> None:
    """Full jitter: anything from 0 to the ceiling; a huge attempt number does not overflow."""
    backoff = Backoff(base_s=0.05, cap_s=10.0, first_free=first_free)
    delay = backoff.delay_s(attempt, random)
    assert delay == pytest.approx(random * backoff.delay_s(attempt, 1.0))
    assert 0 <= delay <= 10.0


def test_a_breaker_opens_at_the_limit_and_lets_a_trial_through_later() -> None:
    breaker = Breaker(limit=3, window_s=10.0, open_s=5.0)
    for now in (100.0, 101.0):
        breaker.failed(now)
        assert not breaker.is_open(now)
    breaker.failed(102.0)
    assert breaker.is_open(102.0)
    assert breaker.is_open(106.9)
    assert breaker.retry_at() == 107.0
    assert not breaker.is_open(107.0)


def test_a_failed_trial_opens_it_again_at_once() -> None:
    breaker = Breaker(limit=2, window_s=10.0, open_s=5.0)
    breaker.failed(0.0)
    breaker.failed(0.0)
    breaker.failed(5.0)
    assert breaker.is_open(9.9)
    assert not breaker.is_open(10.0)


def test_success_forgets_everything() -> None:
    breaker = Breaker(limit=2, window_s=10.0, open_s=5.0)
    breaker.failed(0.0)
    breaker.failed(0.0)
    breaker.succeeded()
    assert not breaker.is_open(0.1)
    breaker.failed(0.2)
    assert not breaker.is_open(0.2)


def test_only_failures_inside_the_window_count() -> None:
    breaker = Breaker(limit=2, window_s=10.0, open_s=5.0)
    breaker.failed(0.0)
    breaker.failed(10.0)  # the first has just left the window
    assert not breaker.is_open(10.0)
    breaker.failed(19.9)
    assert breaker.is_open(19.9)


@given(st.lists(st.floats(0, 100), max_size=40).map(sorted))
def test_open_exactly_when_limit_failures_lie_within_one_window(times: list[float]) -> None:
    breaker = Breaker(limit=3, window_s=10.0, open_s=5.0)
    for index, now in enumerate(times):
        breaker.failed(now)
        recent = [other for other in times[: index + 1] if other > now - 10.0]
        if len(recent) >= 3:
            assert breaker.is_open(now)
            assert breaker.retry_at() == now + 5.0


def test_breakers_do_not_share_their_failures() -> None:
    first, second = Breaker(limit=1), Breaker(limit=1)
    first.failed(0.0)
    assert first.is_open(0.0)
    assert not second.is_open(0.0)
