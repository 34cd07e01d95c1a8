"""Whose place an instance takes: how often that place was filled again, and since when it has been empty. Pure.

A task wants so many instances; each stands in a *place*. When one ends that nobody had asked to end, its place is empty
until the next instance of the task is requested, and that one inherits the count: a program that crashes again and
again shows it by its instances' `restarts`, beside others of the task that never did. A place whose instance was asked
to end is given up.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

__all__ = ["Place", "Places"]


@dataclass(frozen=True, slots=True)
class Place:
    """`restarts` is 0 for a new one; `empty_since_ns` (monotonic) says nothing then."""

    restarts: int = 0
    empty_since_ns: int = 0

    def left(self, now_ns: int) -> Place:
        """The place as its next occupant finds it."""
        return Place(self.restarts + 1, now_ns)


class Places:
    """The empty places of each task, the one that has been empty longest first."""

    def __init__(self) -> None:
        self._empty: defaultdict[str, deque[Place]] = defaultdict(deque)

    def take(self, task: str) -> Place:
        """A place for one more instance of the task, a new one when none is empty."""
        empty = self._empty[task]
        return empty.popleft() if empty else Place()

    def leave(self, task: str, place: Place) -> None:
        """The place waits for the task's next instance."""
        self._empty[task].append(place)
