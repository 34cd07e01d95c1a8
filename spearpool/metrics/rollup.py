"""Reads a whole segment at once: sums over seats, totals, quantiles, the records of the rings. The only door of numpy.

A slot's value is the sum of its two seats and of what the supervisor booked for their dead occupants; the place behind
the last slot means the supervisor's own seat. Counters are read in an order that keeps their laws: what ends something
is read before what begins it, so that open connections and open executions are never seen negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .histogram import quantile
from .names import NameTable
from .segment import Segment
from .vocabulary import (
    BOARD,
    CLOSED,
    COUNTER,
    COUNTERS,
    EXECUTION_COUNTERS,
    FINAL_STAGES,
    GAUGE,
    GAUGES,
    HISTOGRAMS,
    LIVENESS,
    RECORD_FIELDS,
    TASK_COUNTERS,
    TASK_HISTOGRAMS,
    SeatState,
)

__all__ = ["AgentSums", "Latency", "Rollup", "SeatLife"]

Words = npt.NDArray[np.int64]

_RECORD = np.dtype([(name, dtype) for name, _, dtype in RECORD_FIELDS])
_FINAL = sorted(FINAL_STAGES)
_STATE = LIVENESS.index("state")
_RING_RECORDS = COUNTER["ring_records"]
_SUMMED = ("authenticated", "auth_failed", "bytes_in", "bytes_out", "heartbeat_timeouts", "ring_records")


@dataclass(frozen=True, slots=True)
class SeatLife:
    """Who sits in a seat. `heartbeat_ns` and `occupied_ns` are monotonic."""

    seat: int
    state: SeatState
    incarnation: int
    pid: int
    heartbeat_ns: int
    occupied_ns: int


@dataclass(frozen=True, slots=True)
class Latency:
    """A histogram in short, in the unit of its name (ns or bytes).

    Quantiles are upper bounds of buckets, at most 1/8 too high; None where they lie beyond the last bucket.
    """

    count: int
    mean: float
    p50: float | None
    p90: float | None
    p99: float | None


class AgentSums(NamedTuple):
    """Instances as `Seat.agent` tells of them, over all seats: a list each, an element per instance."""

    in_flight: Sequence[int]
    executions: Sequence[int]
    bytes: Sequence[int]
    throttled: Sequence[int]


class Rollup:
    """The reader of one segment. Remembers how far it has read each ring, and what of it came too late."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.layout = segment.layout
        self._counters: Words = self._seats("counters")[:, : len(COUNTERS)]
        self._booked_counters: Words = self._seats("booked_counters")[:, : len(COUNTERS)]
        self._gauges: Words = self._seats("gauges")[:, : len(GAUGES)]
        self._tasks: Words = self._seats("tasks")[:, :, : len(TASK_COUNTERS)]
        self._booked_tasks: Words = self._seats("booked_tasks")[:, :, : len(TASK_COUNTERS)]
        self._liveness = self._seats("liveness")[:, : len(LIVENESS)]
        self._handed = self._seats("handed")
        self._board = self._seats("board")
        self._agents = self._seats("agents")
        self._histograms = self._seats("histograms")
        self._task_histograms = self._seats("task_histograms")
        self._intents = self._seats("ring_state")[:, 0]
        self._tails = self._counters[:, _RING_RECORDS]
        self._rings = self._seats("ring")
        self._names = [
            NameTable(segment.seat_part(seat, "names_head"), segment.seat_part(seat, "names"))
            for seat in range(self.layout.seats)
        ]
        self._read = [0] * self.layout.seats
        self._lost = [0] * self.layout.seats

    def _seats(self, name: str) -> npt.NDArray[Any]:
        """One part of all seats as an array whose first axis is the seat."""
        part = self.layout.seat_part(0, name)
        dtype = _RECORD if part.dtype == "record" else np.dtype(part.dtype)
        inner = np.empty(part.shape, dtype).strides
        return np.ndarray(
            (self.layout.seats, *part.shape),
            dtype,
            buffer=self.segment.memory,
            offset=part.offset,
            strides=(self.layout.seat_bytes, *inner),
        )

    # Counters

    def slot_counters(self, slot: int) -> Words:
        """The slot's counters, in the order of `layout.COUNTERS`."""
        return _over_seats(self._read_counters(self._seats_of(slot)))

    def slot_gauges(self, slot: int) -> Words:
        """The slot's gauges, in the order of `layout.GAUGES`."""
        return _over_seats(self._gauges[self._seats_of(slot)])

    def slot_tasks(self, slot: int) -> Words:
        """The slot's executions and instances: a row per task column, in the order of `layout.TASK_COUNTERS`."""
        return _over_seats(self._read_tasks(self._seats_of(slot)))

    def slot_words(self, slot: int) -> Words:
        """Counters, gauges and tasks of a slot, one after the other: what the bus publishes."""
        return np.concatenate((self.slot_counters(slot), self.slot_gauges(slot), self.slot_tasks(slot).ravel()))

    def open_connections(self, slot: int) -> int:
        """Those that the slot's workers opened or took in, and have neither closed nor handed over."""
        seats = self._seats_of(slot)
        gone = self._counters[seats][:, CLOSED].sum() + self._booked_counters[seats][:, CLOSED].sum()
        gone += self._handed[seats].sum()
        come = self._handed[:, seats].sum()
        come += self._counters[seats, COUNTER["connections_opened"]].sum()
        return int(come - gone)

    def handed_over(self) -> int:
        """How many connections have ever been moved from one worker to another."""
        return int(self._handed.sum())

    def authenticated_now(self, slot: int) -> int:
        return int(self.slot_gauges(slot)[GAUGE["authenticated_now"]])

    def totals(self) -> dict[str, int]:
        """The whole pool: the `totals` of `status`."""
        counters = _over_seats(self._read_counters(slice(None)))
        stages = _over_seats(self._read_tasks(slice(None))).sum(axis=0)
        opened, closed = int(counters[COUNTER["connections_opened"]]), int(counters[list(CLOSED)].sum())
        return {
            "connections_opened": opened,
            "connections_closed": closed,
            "connections_open": opened - closed,
            "connections_handed_over": self.handed_over(),
            **{name: int(counters[COUNTER[name]]) for name in _SUMMED},
            **{name: _sum_of(counters, f"{name}_") for name in ("messages_in", "messages_out", "errors")},
            **{_total_name(name): int(count) for name, count in zip(TASK_COUNTERS, stages, strict=True)},
            "ring_lost": sum(self._lost),
        }

    def task_totals(self) -> dict[str, dict[str, int]]:
        """`TASK_COUNTERS` of the whole pool by task. What was run under names without a column is `other`."""
        columns = _over_seats(self._read_tasks(slice(None)))
        names = self.task_names()
        return {name: dict(zip(TASK_COUNTERS, columns[i].tolist(), strict=True)) for i, name in names.items()}

    def task_names(self) -> dict[int, str]:
        """The task columns in use, and the last one, `other`."""
        return dict(enumerate(self.segment.tasks.names())) | {
            self.layout.columns - 1: self.segment.task_name(self.layout.columns - 1)
        }

    def queued(self) -> dict[str, int]:
        """How many executions wait for an instance of each task, at all workers."""
        waiting = self._board[:, :, BOARD.index("queued")].sum(axis=0)
        return {name: int(waiting[column]) for column, name in self.task_names().items()}

    def agents(self, rows: Sequence[int], generations: Sequence[int]) -> AgentSums:
        """What all workers together say of these instances, in the order of `rows`."""
        words = self._agents[:, rows]
        words = words * (words[:, :, :1] == np.asarray(generations, np.int64)[None, :, None])
        _, _, in_flight, executions, size, throttled = _over_seats(words).T.tolist() if rows else [()] * 6
        return AgentSums(in_flight, executions, size, throttled)

    def latencies(self) -> dict[str, Latency]:
        """Histograms of the whole pool that are not empty, and those of each task as `NAME{TASK}`."""
        used = self._liveness[:, _STATE] != SeatState.EMPTY
        pool = zip(HISTOGRAMS, _over_seats(self._histograms[used]), strict=True)
        found = {name: _latency(words) for name, words in pool}
        columns = _over_seats(self._task_histograms[used])
        for column, task in self.task_names().items():
            for name, words in zip(TASK_HISTOGRAMS, columns[column], strict=True):
                found[f"{name}{{{task}}}"] = _latency(words)
        return {name: latency for name, latency in found.items() if latency is not None}

    def seat_states(self) -> list[SeatLife]:
        """Who sits where, for all seats; the last one is the supervisor's."""
        lives = []
        for seat, words in enumerate(self._liveness.tolist()):
            life = dict(zip(LIVENESS, words, strict=True))
            lives.append(SeatLife(seat, SeatState(life.pop("state")), **life))
        return lives

    def slots_in_use(self) -> list[int]:
        """Slots in which somebody sits or has sat; the last one is the supervisor's, if it has taken its seat."""
        used = np.flatnonzero(self._liveness[:, _STATE] != SeatState.EMPTY)
        return sorted({int(seat) // 2 for seat in used})

    def _seats_of(self, slot: int) -> slice:
        return slice(2 * slot, 2 * slot + 2)  # of the place behind the last slot, only the supervisor's seat is there

    def _read_counters(self, seats: slice) -> Words:
        """A copy, booked values included, in which no more connections are closed than were opened.

        Booked values come first: while we look, a seat may get a next occupant that opens some and dies with them.
        """
        booked = self._booked_counters[seats].copy()
        closed = self._counters[seats][:, CLOSED]
        counters = self._counters[seats].copy()
        counters[:, CLOSED] = closed
        return counters + booked

    def _read_tasks(self, seats: slice) -> Words:
        """A copy, booked values included, in which no more executions have ended than were received."""
        booked = self._booked_tasks[seats].copy()
        final = self._tasks[seats][:, :, _FINAL]
        tasks = self._tasks[seats].copy()
        tasks[:, :, _FINAL] = final
        return tasks + booked

    # Rings

    def new_records(self, seat: int) -> tuple[int, npt.NDArray[Any], int]:
        """What was written since the last call: position of the first record, the records, and the total ever lost.

        The next call begins behind the last record given. See `ring` for the order of the reads.
        """
        ring, size = self._rings[seat], self.layout.ring_records
        tail = int(self._tails[seat])
        if tail == self._read[seat]:
            return tail, ring[:0], self._lost[seat]
        first = max(self._read[seat], tail - size)
        begin, end = first % size, first % size + tail - first
        records = ring[begin:end].copy() if end <= size else np.concatenate((ring[begin:], ring[: end - size]))
        intact_from = min(max(first, int(self._intents[seat]) - size), tail)
        records = records[intact_from - first :]
        if self.layout.sealed:
            records = _sealed_run(records, intact_from)
        self._lost[seat] += intact_from - self._read[seat]
        self._read[seat] = intact_from + len(records)
        return intact_from, records, self._lost[seat]

    def skip_records(self, seat: int) -> None:
        """Nobody wants what was written until now: go on from here. It is neither read nor lost."""
        self._read[seat] = int(self._tails[seat])

    def position(self, seat: int) -> tuple[int, int]:
        """How far the seat's ring was read, and how many of its records were lost."""
        return self._read[seat], self._lost[seat]

    def names(self, seat: int, first: int = 0) -> list[str]:
        """The seat's interned names from place `first` on."""
        table = self._names[seat]
        return table.names()[first:] if len(table) > first else []


def _over_seats(words: Words) -> Words:
    total: Words = words.sum(axis=0)
    return total


def _sum_of(counters: Words, prefix: str) -> int:
    return sum(int(counters[place]) for name, place in COUNTER.items() if name.startswith(prefix))


def _total_name(task_counter: str) -> str:
    """A task's counter among those of the whole pool."""
    return f"executions_{task_counter}" if task_counter in EXECUTION_COUNTERS else task_counter


def _latency(words: Words) -> Latency | None:
    total, *buckets = words.tolist()
    count = sum(buckets)
    if not count:
        return None
    bounds = (quantile(buckets, q) for q in (0.5, 0.9, 0.99))
    p50, p90, p99 = (bound if bound is not None and math.isfinite(bound) else None for bound in bounds)
    return Latency(count, total / count, p50, p90, p99)


def _sealed_run(records: npt.NDArray[Any], first: int) -> npt.NDArray[Any]:
    """The records up to the first one whose check word or position is not right (yet)."""
    words = records.view(np.uint64).reshape(len(records), -1)
    sequence = np.arange(first, first + len(records), dtype=np.uint64)
    good = (np.bitwise_xor.reduce(words, axis=1) == 0) & (records["sequence"] == sequence)
    return records if good.all() else records[: int(good.argmin())]
