"""Retry delays: capped exponential back-off with full jitter, and a breaker that counts quick failures.

Both are pure: time and randomness are arguments. Used wherever something is tried again: a slot's worker, a task's
instances, an agent's connection. Source of the technique: M. Brooker, "Exponential Backoff And Jitter" (AWS, 2015).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

__all__ = ["Backoff", "Breaker"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delay in seconds before attempt `attempt` (0, 1, 2 …); attempt 0 goes at once when `first_free`."""

    base_s: float = 0.05
    cap_s: float = 10.0
    first_free: bool = True

    def delay_s(self, attempt: int, random: float) -> float:
        """`random` is uniform in [0, 1)."""
        if self.first_free:
            if attempt == 0:
                return 0.0
            attempt -= 1
        return random * min(self.cap_s, self.base_s * 2.0 ** min(attempt, 60))


@dataclass(slots=True)
class Breaker:
    """Opens for `open_s` after `limit` failures within `window_s`; then lets one trial through at a time."""

    limit: int = 5
    window_s: float = 30.0
    open_s: float = 10.0
    _failures: deque[float] = field(default_factory=deque)
    _open_until: float = 0.0

    def failed(self, now: float) -> None:
        """Count one failure at `now` (monotonic seconds)."""
        self._failures.append(now)
        while self._failures and self._failures[0] <= now - self.window_s:
            self._failures.popleft()
        if len(self._failures) >= self.limit:
            self._open_until = now + self.open_s

    def succeeded(self) -> None:
        """Forget all failures and close."""
        self._failures.clear()
        self._open_until = 0.0

    def is_open(self, now: float) -> bool:
        """Whether nothing should be tried now."""
        return now < self._open_until

    def retry_at(self) -> float:
        """Monotonic time of the next allowed trial; in the past when the breaker is closed."""
        return self._open_until
