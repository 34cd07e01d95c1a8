"""When each of many things wants attention: a heap from which nothing is ever taken out of the middle.

A deadline that was moved or discarded leaves its old entry behind, which is skipped when its time comes; when such
entries are in the majority the heap is made anew.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from math import inf
from typing import Generic, TypeVar

__all__ = ["Deadlines"]

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
