"""Rescue: who accepts the connections of a slot whose worker is not there. Pure: time is an argument.

Steering keeps new connections away from a slot without a worker. Those that were in its queue already, and all new
ones where the kernel refuses to be steered, would wait for the heir: a moment mostly, but seconds while a slot backs
off or its heir starts slowly. So after `PATIENCE_S` without a worker the slot's listener is lent to a ready neighbour,
one with the fewest of such loans, which accepts there besides its own until the slot has a worker again. Should the
neighbour end or leave, the next one gets it at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PATIENCE_S", "Lend", "Rescues", "TakeBack"]

PATIENCE_S = 0.03
"""An heir is mostly ready within this time, and then nobody needs to be bothered."""


@dataclass(frozen=True, slots=True)
class Lend:
    """Give the worker the slot's listener."""

    slot: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Have the worker close it."""

    slot: int
    incarnation: int


class Rescues:
    """Which slots wait since when, and which are lent to whom (incarnation)."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._lent: dict[int, int] = {}
        self._anybody_ready = False

    def look(self, attendants: Mapping[int, int | None], now: float) -> list[Lend | TakeBack]:
        """`attendants`: each slot, and its worker that accepts connections, if there is one."""
        ready = [incarnation for incarnation in attendants.values() if incarnation is not None]
        orphans = [slot for slot, incarnation in attendants.items() if incarnation is None]
        self._anybody_ready = bool(ready)
        changes: list[Lend | TakeBack] = []
        for slot, neighbour in list(self._lent.items()):
            if neighbour in ready and slot in orphans:
                continue
            del self._lent[slot]
            if neighbour in ready:
                changes.append(TakeBack(slot, neighbour))
        self._since = {slot: self._since.get(slot, now) for slot in orphans}
        for slot, since in self._since.items():
            if slot not in self._lent and ready and now >= since + PATIENCE_S:
                loans = list(self._lent.values())
                self._lent[slot] = min(ready, key=loans.count)
                changes.append(Lend(slot, self._lent[slot]))
        return changes

    def next_deadline(self) -> float:
        """When `look` would lend; infinity when nobody waits or there is nobody to lend to."""
        if not self._anybody_ready:
            return math.inf
        waiting = (since for slot, since in self._since.items() if slot not in self._lent)
        return min(waiting, default=math.inf) + PATIENCE_S
