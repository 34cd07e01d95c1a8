"""Which workers hang: the rule that finds a worker whose loop no longer turns. Pure: time and heartbeats are arguments.

A worker writes the time into its seat's heartbeat word every 0.1 s. What is compared here is only whether the word has
*changed* since the last look, and what is added up is the time that we have watched it stand still. So nobody's clock
counts but ours, and our own lag is discounted: a look that comes late counts for `LOOK_S` at most. A whole pool that
was stopped with SIGSTOP, swapped out or starved finds out as if the pause had not been, and nobody is killed for it.
(The age of the word was rejected: after a pause all of them are old, and the one to look first would kill the others.)

    beats ─ still for limit_s ─► Dump: have it write its stacks ─ still for DUMP_S more ─► End: kill it
          ◄────────────── its word has changed: all is forgiven ──────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DUMP_S", "LOOK_S", "Dump", "End", "HangWatch"]

LOOK_S = 0.25
"""What one look counts for at most; several times the pause between two looks of an idle supervisor."""

DUMP_S = 0.5
"""How long a worker may take to write its stacks: a signal handler does it at once, in a process that runs at all."""


@dataclass(frozen=True, slots=True)
class Dump:
    """The worker stands still: ask for its stacks."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class End:
    """The worker still stands still: end it. Said once."""

    incarnation: int


@dataclass(slots=True)
class _Pulse:
    """The word as last seen, how long it has been seen standing, and what was said of that."""

    beat_ns: int
    still_s: float = 0.0
    dumped: bool = False
    given_up: bool = False


class HangWatch:
    """Watches the workers of a pool; one that stands still for `limit_s` hangs."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._pulses: dict[int, _Pulse] = {}
        self._looked_at: float | None = None

    def look(self, beats: Mapping[int, int], now: float) -> list[Dump | End]:
        """`beats`: incarnation → heartbeat word, of all workers that should beat now; any other one is forgotten."""
        passed_s = 0.0 if self._looked_at is None else min(now - self._looked_at, LOOK_S)
        self._looked_at = now
        known, self._pulses = self._pulses, {}
        found: list[Dump | End] = []
        for incarnation, beat_ns in beats.items():
            pulse = known.get(incarnation)
            if pulse is None or pulse.beat_ns != beat_ns:
                pulse = _Pulse(beat_ns)
            else:
                pulse.still_s += passed_s
            self._pulses[incarnation] = pulse
            if pulse.still_s >= self._limit_s and not pulse.dumped:
                pulse.dumped = True
                found.append(Dump(incarnation))
            elif pulse.still_s >= self._limit_s + DUMP_S and not pulse.given_up:
                pulse.given_up = True
                found.append(End(incarnation))
        return found
