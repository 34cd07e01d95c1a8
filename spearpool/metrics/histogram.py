"""Log-linear histograms of non-negative integers (nanoseconds or bytes): eight buckets per octave.

A bucket holds the values `lower < v <= upper`, and every power of two is the upper bound of one, so buckets fold
exactly into Prometheus' `le` octaves. A bucket is at most an eighth of its lower bound wide. Values above 2**42 (73
minutes in ns) share the overflow bucket. In memory a histogram is the sum of its values followed by its buckets; its
count is the sum of the buckets. Source of the technique: HdrHistogram (G. Tene), with a power of two of sub-buckets.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["BUCKETS", "HISTOGRAM_WORDS", "OVERFLOW", "SUB_BUCKETS", "bucket_of", "quantile", "upper_bound"]

SUB_BUCKETS = 8
OVERFLOW = 320
BUCKETS = OVERFLOW + 1
HISTOGRAM_WORDS = 1 + BUCKETS
_LARGEST = 2**42


def bucket_of(value: int) -> int:
    """The bucket of a value; what is below 1 counts as 1."""
    if SUB_BUCKETS < value <= _LARGEST:
        n = value - 1
        shift = n.bit_length() - 4
        return (shift << 3) + (n >> shift)
    if value > _LARGEST:
        return OVERFLOW
    return value - 1 if value > 1 else 0


def upper_bound(bucket: int) -> float:
    """The largest value that falls into a bucket; infinite for the overflow."""
    if bucket >= OVERFLOW:
        return float("inf")
    if bucket < SUB_BUCKETS:
        return bucket + 1
    shift, sub = (bucket >> 3) - 1, bucket & 7
    return (SUB_BUCKETS + sub + 1) << shift


def quantile(buckets: Sequence[int], q: float) -> float | None:
    """The upper bound of the bucket in which the `q`-quantile (0 … 1) lies; None when the histogram is empty."""
    total = sum(buckets)
    if not total:
        return None
    rank = max(1.0, q * total)
    seen = 0
    for bucket, count in enumerate(buckets):
        seen += count
        if seen >= rank:
            return upper_bound(bucket)
    return upper_bound(OVERFLOW)
