"""How many instances a task has work for: now, and at most within its idle time. Pure.

A queue counts only when it has stood for `PATIENCE_S`, unless nobody is there to serve it: most queues are gone before
another instance could be ready. What was needed once is kept for the task's idle time (a sliding maximum), so that a
load that comes and goes does not start and stop instances with every wave.
"""

from __future__ import annotations

import math
from collections import deque

__all__ = ["PATIENCE_S", "Demand"]

PATIENCE_S = 0.02
"""How long a queue must stand before another instance is started beside those that work on it."""


class Demand:
    """One task's. `idle_timeout_s` may be changed at any time."""

    def __init__(self, idle_timeout_s: float) -> None:
        self.idle_timeout_s = idle_timeout_s
        self._queued_since = math.inf
        self._peaks: deque[tuple[float, int]] = deque()  # times rise, heights fall

    def observe(self, now: float, queued: int, in_flight: int, concurrency: int, living: int) -> None:
        """What is queued and in flight at `living` instances, each of which runs `concurrency` at a time."""
        self._queued_since = min(self._queued_since, now) if queued else math.inf
        needed = -(-(queued + in_flight) // concurrency)
        grow = queued and (not living or now - self._queued_since >= PATIENCE_S)
        height = needed if grow else min(needed, living)
        while self._peaks and self._peaks[-1][1] <= height:
            self._peaks.pop()
        self._peaks.append((now, height))

    def worked(self, now: float, instances: int) -> None:
        """Between two looks, so many instances have run something."""
        if not self._peaks or self._peaks[-1][1] < instances:
            self.observe(now, 0, instances, 1, instances)

    def needed(self, now: float) -> int:
        """The most that was needed within the idle time."""
        while self._peaks and self._peaks[0][0] <= now - self.idle_timeout_s:
            self._peaks.popleft()
        return self._peaks[0][1] if self._peaks else 0
