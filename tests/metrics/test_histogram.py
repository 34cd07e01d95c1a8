from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.metrics.histogram import BUCKETS, OVERFLOW, bucket_of, quantile, upper_bound

VALUES = st.integers(min_value=0, max_value=2**43)


@given(VALUES)
def test_a_value_lies_between_the_bounds_of_its_bucket(value: int) -> None:
    bucket = bucket_of(value)
    assert value <= upper_bound(bucket)
    assert bucket == 0 or value > upper_bound(bucket - 1)


@given(st.integers(min_value=8, max_value=2**42))
def test_a_bucket_is_at_most_an_eighth_of_its_lower_bound_wide(value: int) -> None:
    bucket = bucket_of(value)
    lower = upper_bound(bucket - 1)
    assert upper_bound(bucket) - lower <= max(1, lower / 8)


@pytest.mark.parametrize("exponent", range(43))
def test_powers_of_two_are_bounds_so_that_octaves_fold_exactly(exponent: int) -> None:
    bound = 2**exponent
    assert upper_bound(bucket_of(bound)) == bound
    assert bucket_of(bound + 1) == bucket_of(bound) + 1


def test_what_is_out_of_range_goes_to_the_ends() -> None:
    assert bucket_of(-5) == bucket_of(0) == bucket_of(1) == 0
    assert bucket_of(2**42 + 1) == bucket_of(2**200) == OVERFLOW == BUCKETS - 1
    assert upper_bound(OVERFLOW) == math.inf


def test_bounds_grow() -> None:
    bounds = [upper_bound(bucket) for bucket in range(BUCKETS)]
    assert all(low < high for low, high in pairwise(bounds))


@given(st.lists(VALUES, min_size=1, max_size=200), st.floats(min_value=0, max_value=1))
def test_a_quantile_is_the_bound_above_the_true_one(values: list[int], q: float) -> None:
    buckets = [0] * BUCKETS
    for value in values:
        buckets[bucket_of(value)] += 1
    true = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    assert quantile(buckets, q) == upper_bound(bucket_of(true))


def test_no_quantile_of_nothing() -> None:
    assert quantile([0] * BUCKETS, 0.5) is None
