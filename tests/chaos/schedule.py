"""What happens when in a storm. Pure: the same seed and counts give the same storm."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

__all__ = ["OPERATIONS", "Blow", "Kind", "plan"]


class Kind(Enum):
    KILL = "kill"  # SIGKILL of a worker
    INSTANCE = "instance"  # SIGKILL of an instance
    ZYGOTE = "zygote"  # SIGKILL of a zygote
    HALT = "halt"  # SIGSTOP of a worker, for a while
    FREEZE = "freeze"  # SIGSTOP of the whole pool, for a while
    RELOAD = "reload"
    SCALE = "scale"


OPERATIONS = frozenset({Kind.RELOAD, Kind.SCALE})
"""What a command of the pool's does; its name is the kind's value."""

HOLD_S = {Kind.HALT: (0.02, 1.0), Kind.FREEZE: (0.2, 1.5)}
"""Shortest and longest stop. Short ones meet a worker in the middle of something more often."""

SCALES = (8, 2)
"""Numbers of workers, in turn."""


@dataclass(frozen=True, slots=True)
class Blow:
    """`at_s` counts from the storm's begin. `chance`, in [0, 1), picks the victim among those that can be hit then."""

    at_s: float
    kind: Kind
    chance: float = 0.0
    hold_s: float = 0.0
    workers: int = 0


def plan(seed: int, seconds: float, counts: Mapping[Kind, int]) -> list[Blow]:
    """As many blows of each kind, in random order; each has an equal part of the time, and comes somewhere in it."""
    chance = random.Random(seed)
    kinds = [kind for kind in Kind for _ in range(counts.get(kind, 0))]
    chance.shuffle(kinds)
    scales = 0
    blows = []
    for place, kind in enumerate(kinds):
        at_s = (place + chance.random()) * seconds / len(kinds)
        hold_s = chance.uniform(*HOLD_S[kind]) if kind in HOLD_S else 0.0
        workers = SCALES[scales % len(SCALES)] if kind is Kind.SCALE else 0
        scales += kind is Kind.SCALE
        blows.append(Blow(at_s, kind, chance.random(), hold_s, workers))
    return blows
