"""When each of many things wants attention: a heap from which nothing is ever taken out of the middle.

A deadline that was moved or discarded leaves its old entry behind, which is skipped when its time comes; when such
entries are in the majority the heap is made anew.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Iterator
from math import inf
from typing import Generic, TypeVar

__all__ = ["Alarm", "Deadlines"]

K = TypeVar("K", int, str)

_SPARE = 64


class Deadlines(Generic[K]):
    """At most one deadline per key, in monotonic seconds."""

    __slots__ = ("_heap", "_when")

    def __init__(self) -> None:
        self._heap: list[tuple[float, K]] = []
        self._when: dict[K, float] = {}

    def __len__(self) -> int:
        return len(self._when)

    def set(self, key: K, when: float) -> None:
        """Replace the key's deadline; `inf` for none."""
        if when == inf:
            self._when.pop(key, None)
            return
        self._when[key] = when
        heapq.heappush(self._heap, (when, key))
        if len(self._heap) > _SPARE + 2 * len(self._when):
            self._heap = [(when, key) for key, when in self._when.items()]
            heapq.heapify(self._heap)

    def advance(self, key: K, when: float) -> None:
        """Set the key's deadline, unless it has an earlier one."""
        if when < self._when.get(key, inf):
            self.set(key, when)

    def discard(self, key: K) -> None:
        self._when.pop(key, None)

    def next(self) -> float:
        """When to look again: not later than the first deadline, `inf` when there is nothing."""
        return self._heap[0][0] if self._heap else inf

    def due(self, now: float) -> Iterator[K]:
        """Take out the keys whose deadline is not later than `now`, the earliest first."""
        while self._heap and self._heap[0][0] <= now:
            when, key = heapq.heappop(self._heap)
            if self._when.get(key) == when:
                del self._when[key]
                yield key


class Alarm(Generic[K]):
    """One timer for many deadlines, all kept to within `grain_s`: a wake-up serves whatever is due in that time.

    `due(key, now)` is called for each, and returns when it wants to be called next.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, grain_s: float, due: Callable[[K, float], float]) -> None:
        self._loop = loop
        self._grain_s = grain_s
        self._due: Callable[[K, float], float] = due
        self._deadlines: Deadlines[K] = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = inf

    def advance(self, key: K, when: float) -> None:
        """Call for the key at that time, unless it is due earlier."""
        self._deadlines.advance(key, when)
        if when < self._wake_at - self._grain_s:
            self._wake(when)

    def discard(self, key: K) -> None:
        self._deadlines.discard(key)

    def cancel(self) -> None:
        """Call for nobody any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self, when: float) -> None:
        self.cancel()
        self._wake_at = when
        self._timer = self._loop.call_later(max(self._grain_s, when - time.monotonic()), self._ring)

    def _ring(self) -> None:
        now = time.monotonic()
        for key in self._deadlines.due(now):
            self._deadlines.set(key, self._due(key, now))
        self._timer = None
        self._wake_at = inf
        if len(self._deadlines):
            self._wake(self._deadlines.next())
