"""How many connections a worker gives away, and to whom: each decides for itself, from words that all can see.

Long-lived connections are spread by chance when they are accepted, and stay where they are. Each worker looks at the
loads of all (`Standing`) from time to time. All reckon the same from the same loads: what everybody should have, and
who gives how many to whom; each carries out its own part. So the parts of workers that look at once fit together, and
those of one that looks later are what is left. Every move is one that the whole needs: it brings the sum of what is too
much somewhere down by one, and a load that all share as evenly as can be (most − least ≤ 1) moves nobody.

Connections younger than `SETTLED_S` do not count and are not moved: most connections live for less. Neither is anything
moved while the number of those that count still changes, because it would be moved again; but no longer than
`PATIENCE_S`, because where connections come and go without end it always changes.

A worker that leaves gives away all that it has, as soon as it can, each to whoever has least then.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["PATIENCE_S", "SETTLED_S", "STEADY_S", "Balance", "Standing", "farewells", "shares"]

SETTLED_S = 1.0
"""From this age on a connection counts as long-lived."""

STEADY_S = 0.25
PATIENCE_S = 3.0


class Standing(NamedTuple):
    """One worker's load, as it shows: connections that count, here or on their way to it."""

    seat: int
    load: int


class Balance:
    """The decisions of the worker in `seat`. Those that it is shown are itself and all that may be given something."""

    def __init__(self, seat: int) -> None:
        self._seat = seat
        self._total = -1
        self._changed_at = -math.inf
        self._patient_since = -math.inf

    def look(self, standings: Sequence[Standing], now: float) -> dict[int, int]:
        """How many to give now, by seat. `now` is monotonic seconds; to be called every `STEADY_S` / 2 or so."""
        loads = dict(standings)
        total = sum(loads.values())
        if total != self._total:
            if now - self._changed_at >= STEADY_S:  # it was steady until now
                self._patient_since = now
            self._total, self._changed_at = total, now
        steady = now - self._changed_at >= STEADY_S
        if not steady and now - self._patient_since < PATIENCE_S:
            return {}
        if not steady:
            self._patient_since = now
        return shares(loads, self._seat)

    def leave(self, standings: Sequence[Standing], count: int) -> list[int]:
        """To whom each of `count` connections goes, when this worker keeps none; nothing when nobody else is there."""
        return farewells({seat: load for seat, load in standings if seat != self._seat}, self._seat, count)


def shares(loads: Mapping[int, int], giver: int) -> dict[int, int]:
    """What one worker has to give to the others, so that with the fewest moves all have as much as each other.

    Those that have most keep what does not divide evenly. Who gives to whom is settled by the order of seats.
    """
    if giver not in loads or max(loads.values()) - min(loads.values()) < 2:
        return {}
    least, rest = divmod(sum(loads.values()), len(loads))
    ranked = sorted(loads, key=lambda seat: (-loads[seat], seat))
    due = {seat: least + (rank < rest) for rank, seat in enumerate(ranked)}
    before = sum(max(0, loads[seat] - due[seat]) for seat in loads if seat < giver)  # given by those before us
    left = max(0, loads[giver] - due[giver])
    given: dict[int, int] = {}
    for seat in sorted(loads):
        lack = max(0, due[seat] - loads[seat])
        filled = min(lack, before)
        before -= filled
        count = min(lack - filled, left)
        if count:
            given[seat] = count
            left -= count
    return given


def farewells(loads: Mapping[int, int], giver: int, count: int) -> list[int]:
    """The seats that `count` connections go to, each to the one with least; of several the first after the giver's."""
    heap = [(load, seat < giver, seat) for seat, load in loads.items()]
    heapq.heapify(heap)
    chosen = []
    for _ in range(count if heap else 0):
        load, before, seat = heap[0]
        chosen.append(seat)
        heapq.heapreplace(heap, (load + 1, before, seat))
    return chosen
