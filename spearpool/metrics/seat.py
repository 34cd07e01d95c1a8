"""A seat: the part of the segment that one worker (or the supervisor) writes, and how others read it.

Each slot has two seats, so that a worker and its heir can live side by side; the last seat is the supervisor's. Every
word has one writer: the occupant. Two exceptions prove the rule: `booked_…` words belong to the supervisor, which books
there what died with an occupant, and a seat whose occupant is known dead is tidied by the supervisor (`vacate`).
A seat that is occupied again goes on counting where it stood; only what describes the present (gauges, board, agents)
starts from zero.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from spearpool.errors import SegmentError

from .histogram import HISTOGRAM_WORDS, bucket_of
from .names import NameTable
from .ring import RingWriter
from .segment import Segment
from .vocabulary import (
    AGENT_FIELDS,
    BOARD,
    CLOSED,
    COUNTER,
    FINAL_STAGES,
    LIVENESS,
    TASK_HISTOGRAMS,
    TASK_WORDS,
    ExecutionStage,
    SeatState,
)

__all__ = ["OTHER_NAME", "AgentState", "Board", "Loss", "Seat"]

_HEARTBEAT, _STATE, _INCARNATION, _PID, _OCCUPIED = range(len(LIVENESS))
_OPENED = COUNTER["connections_opened"]
_CLOSED_BY_CRASH = COUNTER["connections_closed_crash"]
OTHER_NAME = 1


class Loss(NamedTuple):
    """What an occupant had open when it died."""

    connections: int
    executions: int


class AgentState(NamedTuple):
    """What a worker says of an instance in `vocabulary.AGENT_FIELDS`; generation 0: nothing. Executions that it was
    given, bytes both ways, and how often these had to wait for its rate, are counted per worker and generation."""

    generation: int
    connections: int
    in_flight: int
    executions: int
    bytes: int
    throttled: int


class Seat:
    """One seat of a segment. Making one stores nothing; the occupant calls `occupy` before it writes.

    `counters` and `gauges` are views of int64 words, indexed by `COUNTER` and `GAUGE` of `vocabulary`; `task_counters`
    holds `TASK_WORDS` words per task column, `histograms` holds `HISTOGRAM_WORDS` for each of `HISTOGRAMS`.
    """

    def __init__(self, segment: Segment, index: int) -> None:
        if not 0 <= index < segment.layout.seats:
            raise SegmentError(f"seat {index}: expected 0 to {segment.layout.seats - 1}")
        self.index = index
        self.segment = segment
        self.counters = segment.seat_part(index, "counters")
        self.gauges = segment.seat_part(index, "gauges")
        self.task_counters = segment.seat_part(index, "tasks")
        self.names = NameTable(segment.seat_part(index, "names_head"), segment.seat_part(index, "names"))
        self.ring = RingWriter(
            segment.seat_part(index, "ring"),
            segment.seat_part(index, "ring_state"),
            self.counters,
            sealed=segment.layout.sealed,
        )
        self._liveness = segment.seat_part(index, "liveness")
        self._board = segment.seat_part(index, "board")
        self._arrived = segment.seat_part(index, "arrived")
        self._loads = [segment.seat_part(index, name) for name in ("load", "sent", "received")]
        self._agents = segment.seat_part(index, "agents")
        self._handed = segment.seat_part(index, "handed")
        self._booked_counters = segment.seat_part(index, "booked_counters")
        self._booked_tasks = segment.seat_part(index, "booked_tasks")
        self.histograms = segment.seat_part(index, "histograms")
        self._task_histograms = segment.seat_part(index, "task_histograms")

    # Life of the occupant

    def occupy(self, incarnation: int, pid: int) -> None:
        """Take the seat; the state becomes STARTING. Raises `SegmentError` while somebody sits there.

        Two writers on one word lose counts, so a dead occupant's seat must be vacated for it first.
        """
        if self.state not in (SeatState.EMPTY, SeatState.GONE):
            raise SegmentError(f"seat {self.index} is {self.state.name} under pid {self.pid}: expected EMPTY or GONE")
        self._clear()
        self.ring.resume(time.time_ns())
        now_ns = time.monotonic_ns()
        self._liveness[_INCARNATION] = incarnation
        self._liveness[_PID] = pid
        self._liveness[_OCCUPIED] = now_ns
        self._liveness[_HEARTBEAT] = now_ns
        self._liveness[_STATE] = SeatState.STARTING

    def vacate(self) -> None:
        """Leave the seat; the supervisor does it for an occupant that is known dead. Counters and names stay."""
        self._liveness[_STATE] = SeatState.GONE
        self._clear()

    def beat(self, now_ns: int) -> None:
        """The occupant lives and its loop turns; monotonic ns."""
        self._liveness[_HEARTBEAT] = now_ns

    @property
    def heartbeat_ns(self) -> int:
        return self._liveness[_HEARTBEAT]

    @property
    def state(self) -> SeatState:
        return SeatState(self._liveness[_STATE])

    @state.setter
    def state(self, state: SeatState) -> None:
        self._liveness[_STATE] = state

    @property
    def incarnation(self) -> int:
        return self._liveness[_INCARNATION]

    @property
    def pid(self) -> int:
        return self._liveness[_PID]

    # What the occupant counts

    def add(self, counter: int, n: int = 1) -> None:
        """Raise a counter; `counter` is a place in `vocabulary.COUNTERS`."""
        self.counters[counter] += n

    def add_task(self, column: int, stage: ExecutionStage, n: int = 1) -> None:
        """Raise a counter of a task's block."""
        self.task_counters[column * TASK_WORDS + stage] += n

    def hand_over(self, seat: int) -> None:
        """A connection is that seat's from now on and not ours: a single word, so that no book ever has it twice."""
        self._handed[seat] += 1

    def handed_over(self, seat: int) -> int:
        """How many connections the occupants of this seat have ever handed over to that one."""
        return self._handed[seat]

    def observe(self, histogram: int, value: int) -> None:
        """Add a value (ns or bytes) to one of `vocabulary.HISTOGRAMS`."""
        _observe(self.histograms, histogram, value)

    def observe_task(self, column: int, histogram: int, value: int) -> None:
        """Add a value to one of a task's `vocabulary.TASK_HISTOGRAMS`."""
        _observe(self._task_histograms, column * len(TASK_HISTOGRAMS) + histogram, value)

    def intern(self, name: str) -> int:
        """The number of a name in this seat's table; that of `other` when the table is full."""
        place = self.names.add(name)
        return OTHER_NAME if place is None else place

    # What the occupant tells about now

    def publish_capacity(self, column: int, free: int, queued: int, since_ns: int = 0) -> None:
        """Write this seat's row of the board for a task; `since_ns` is when the head of its queue came (monotonic)."""
        first = column * len(BOARD)
        self._board[first] = free
        self._board[first + 1] = queued
        self._board[first + 2] = since_ns

    def publish_arrived(self, seat: int, count: int) -> None:
        """Tell the worker in `seat` how many of the executions that it forwarded have been taken in here."""
        self._arrived[seat] = count

    def set_agent(self, row: int, generation: int, connections: int, in_flight: int) -> None:
        """What this worker has of an instance: agent connections, and executions in flight on them."""
        first = row * len(AGENT_FIELDS)
        if self._agents[first] != generation:
            for word in range(first, first + len(AGENT_FIELDS)):
                self._agents[word] = 0
        self._agents[first + 1] = connections
        self._agents[first + 2] = in_flight
        self._agents[first] = generation

    def set_in_flight(self, row: int, generation: int, in_flight: int) -> None:
        """The same for an instance that was set here; of one whose row has been given away, nothing is shown."""
        first = row * len(AGENT_FIELDS)
        if self._agents[first] == generation:
            self._agents[first + 2] = in_flight

    def count_execution(self, row: int, generation: int) -> None:
        """The instance was given one more execution here."""
        first = row * len(AGENT_FIELDS)
        if self._agents[first] == generation:
            self._agents[first + 3] += 1

    def count_traffic(self, row: int, generation: int, size_bytes: int, throttled: int) -> None:
        """So many bytes went to and came from the instance here, which had to wait for its rate so many times."""
        first = row * len(AGENT_FIELDS)
        if self._agents[first] == generation:
            self._agents[first + 4] += size_bytes
            self._agents[first + 5] += throttled

    def agent(self, row: int) -> AgentState:
        first = row * len(AGENT_FIELDS)
        return AgentState(*self._agents[first : first + len(AGENT_FIELDS)].tolist())

    # What the supervisor books for a dead occupant

    def book_crash(self) -> Loss:
        """Book what the dead occupant had open: connections as closed by crash, executions as lost.

        To be called by the supervisor, before the seat is occupied again. Doing it twice books nothing more.
        """
        connections = self.open_connections()
        self._booked_counters[_CLOSED_BY_CRASH] += connections
        executions = 0
        for column in range(self.segment.layout.columns):
            lost = self.open_executions(column)
            self._booked_tasks[column * TASK_WORDS + ExecutionStage.LOST] += lost
            executions += lost
        return Loss(connections, executions)

    def open_connections(self) -> int:
        """Opened − closed, with what was booked, and with what was handed over by others and to others."""
        own, booked = self.counters, self._booked_counters
        closed = sum(own[closed] + booked[closed] for closed in CLOSED)
        return own[_OPENED] - closed + self.taken_in() - sum(self._handed)

    def taken_in(self) -> int:
        """How many connections others have ever handed over to this seat; some may still be on their way."""
        layout = self.segment.layout
        if self.index == layout.supervisor_seat:
            return 0
        first = layout.seat_part(0, "handed").offset // 8 + self.index
        return sum(self.segment.words[first :: layout.seat_bytes // 8].tolist())

    def open_executions(self, column: int) -> int:
        """Received − ended, with what was booked."""
        own, booked, first = self.task_counters, self._booked_tasks, column * TASK_WORDS
        ended = sum(own[first + stage] + booked[first + stage] for stage in FINAL_STAGES)
        return own[first + ExecutionStage.RECEIVED] - ended

    def _clear(self) -> None:
        for view in (self.gauges, self._board, self._arrived, *self._loads, self._agents):
            view[:] = memoryview(bytes(view.nbytes)).cast("q")


class Board:
    """Reads what any seat published about its free capacity and its queues."""

    def __init__(self, segment: Segment) -> None:
        self._words = segment.words
        self._first = segment.layout.seat_part(0, "board").offset // 8
        self._first_arrived = segment.layout.seat_part(0, "arrived").offset // 8
        self._stride = segment.layout.seat_bytes // 8

    def capacity(self, seat: int, column: int) -> tuple[int, int]:
        """Free capacity and queue length of a seat for a task. A moment old by nature."""
        first = self._first + seat * self._stride + column * len(BOARD)
        return self._words[first], self._words[first + 1]

    def free(self, column: int) -> list[int]:
        """Free capacity for a task, by seat."""
        return self._words[self._first + column * len(BOARD) :: self._stride].tolist()

    def since_ns(self, column: int) -> list[int]:
        """When the head of the queue for a task came, by seat; 0 where there is no queue."""
        return self._words[self._first + column * len(BOARD) + 2 :: self._stride].tolist()

    def arrived(self, seat: int, sender: int) -> int:
        """How many of the executions that seat `sender` forwarded to this seat have been taken in there."""
        return self._words[self._first_arrived + seat * self._stride + sender]


def _observe(words: memoryview, histogram: int, value: int) -> None:
    first = histogram * HISTOGRAM_WORDS
    words[first] += value
    words[first + 1 + bucket_of(value)] += 1
