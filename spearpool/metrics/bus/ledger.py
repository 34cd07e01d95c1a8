"""The account of a subscriber: what it received, and what was lost where. Pure.

Of each topic the ledger knows the sequence that must come next and how many records the ring had lost by then. A frame
or a heartbeat that is further on tells what is missing; the ring's own count tells which part of it was overwritten
before the bus could read it, and the rest was lost on the bus. So for every event topic, at any moment,
`received + lost_ring + lost_bus + not yet delivered` is exactly what was written since the subscription began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spearpool.errors import PoolError

__all__ = ["Ledger", "Missing"]


@dataclass(frozen=True, slots=True)
class Missing:
    """Items of one topic that will not come any more: positions `first` to `first + ring + bus - 1`."""

    topic: bytes
    first: int
    ring: int
    bus: int


class Ledger:
    """Positions of the topics that one subscriber follows. A topic that it has not heard of begins at 0."""

    def __init__(self) -> None:
        self._positions: dict[bytes, tuple[int, int]] = {}

    def begin(self, positions: Mapping[bytes, Sequence[int]]) -> None:
        """What was before the subscription is not missing."""
        self._positions = {topic: (next_sequence, lost) for topic, (next_sequence, lost) in positions.items()}

    def frame(self, topic: bytes, sequence: int, count: int, lost: int) -> Missing | None:
        """A frame came with `count` items from `sequence` on."""
        missing = self.reached(topic, sequence, lost)
        self._positions[topic] = (sequence + count, lost)
        return missing

    def reached(self, topic: bytes, sequence: int, lost: int) -> Missing | None:
        """A heartbeat says what comes next on a topic. Raises `PoolError` when that contradicts what came before."""
        expected, lost_before = self._positions.get(topic, (0, 0))
        ring, gap = lost - lost_before, sequence - expected
        if not 0 <= ring <= gap:
            raise PoolError(
                f"the bus contradicts itself on {topic.decode()}: expected item {expected} with {lost_before} lost, "
                f"found {sequence} with {lost}; it is not the pool that was subscribed to"
            )
        if not gap:
            return None
        self._positions[topic] = (sequence, lost)
        return Missing(topic, expected, ring, gap - ring)
