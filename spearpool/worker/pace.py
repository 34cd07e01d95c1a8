"""A token bucket: how many bytes may pass now, at a rate of so many a second.

What has arrived cannot be sent back, so the level may fall below zero; the debt is paid by waiting. Over any time t no
more than `rate × (t + BURST_S)` bytes pass, and what the last step took beyond its allowance.
"""

from __future__ import annotations

__all__ = ["BURST_S", "Pace"]

BURST_S = 1.0
"""Who was quiet for this long may send as much at once as the rate allows in it."""

_STEP_S = 0.02  # who waits does so for at least the bytes of this time: fewer wake-ups, larger writes


class Pace:
    """Times are monotonic seconds, sizes bytes; the bucket is full to begin with."""

    __slots__ = ("_burst", "_level", "_rate", "_seen_s")

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._burst = rate * BURST_S
        self._level = self._burst
        self._seen_s = now

    def take(self, size: int, now: float) -> None:
        """So many bytes pass, allowed or not."""
        self._refill(now)
        self._level -= size

    def allowance(self, now: float) -> int:
        """How many bytes may pass now; below zero what is owed."""
        self._refill(now)
        return int(self._level)

    def wait_s(self, wanted: int, now: float) -> float:
        """How long until `wanted` bytes may pass, or a step's worth of them, whichever is sooner; at least a step."""
        self._refill(now)
        missing = min(wanted, self._rate * _STEP_S) - self._level
        return max(_STEP_S, missing / self._rate)

    def _refill(self, now: float) -> None:
        if now > self._seen_s:
            self._level = min(self._burst, self._level + (now - self._seen_s) * self._rate)
            self._seen_s = now
