"""The instances table: one row per instance, written by the supervisor alone, read by anyone.

A row is named by its place and its generation, together an `InstanceId`. Opening a row raises the generation first and
sets `alive` last; closing clears `alive` first. A reader copies the row between two reads of the generation, so what it
has seen belongs to one instance. A closed row keeps its content until it is opened again, the oldest first.
What workers know of an instance (its connections, what it has in flight) stands in their own seats: `Seat.agent`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from spearpool.errors import SegmentError
from spearpool.protocol.identifiers import InstanceId

from .names import read_name, write_name
from .segment import Segment
from .vocabulary import (
    LIMIT_FIELDS,
    LIMIT_SCALES,
    LIMITS,
    NAME_BYTES,
    ROW_FIELDS,
    ROW_LABEL_WORD,
    ROW_LIMITS_WORD,
    ROW_PAUSE_WORD,
    ROW_STAGES,
    ROW_WORDS,
    InstanceStage,
    LimitLevel,
    Pause,
)

__all__ = ["InstanceRow", "InstancesTable", "LimitState"]

_FIELD = {name: place for place, name in enumerate(ROW_FIELDS)}
_GENERATION, _ALIVE = _FIELD["generation"], _FIELD["alive"]
_STAGES = _FIELD["requested_ns"]
_LEVEL, _VALUE, _USAGE, _BREACHES = map(LIMIT_FIELDS.index, ("level", "value", "usage", "breaches"))


@dataclass(frozen=True, slots=True)
class LimitState:
    """One limit of an instance as it was last seen in force (-1: no limit any more), and what is used of it, in the
    limit's own unit."""

    name: str
    level: LimitLevel
    value: float
    usage: float
    breaches: int


@dataclass(frozen=True, slots=True)
class InstanceRow:
    """A row as it was at one moment. `owner` is the packed id of the agent's connection, 0 for none; `restarts` is how
    often the instance's place was filled again after an end that nobody had asked for, this time included; times are
    monotonic ns, 0 for stages that were not reached, in the order of `vocabulary.ROW_STAGES`."""

    instance: InstanceId
    instance_id: str
    alive: bool
    external: bool
    task_index: int
    task: str
    owner: int
    pid: int
    start_ticks: int
    restarts: int
    stages_ns: tuple[int, ...]
    limits: tuple[LimitState, ...]
    pause: Pause = Pause.NONE

    @property
    def stage(self) -> InstanceStage:
        """The last stage that was reached."""
        return max((stage for stage in ROW_STAGES if self.stages_ns[stage]), default=InstanceStage.REQUESTED)


class InstancesTable:
    """Reads the table of a segment, and writes it where the caller is the supervisor."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._words = segment.part("instances")
        self._offset = segment.layout.parts["instances"].offset
        self._count = segment.layout.rows
        self._free = deque(row for row in range(self._count) if not self._words[row * ROW_WORDS + _ALIVE])

    def open_row(self, task_index: int, external: bool = False, label: str = "", restarts: int = 0) -> InstanceId:
        """A row for a new instance. `label` is the name of an external one; ours are `TASK-ROW-GENERATION`.

        Raises `SegmentError` when all rows are in use.
        """
        if not self._free:
            raise SegmentError(f"all {self._count} rows of the instances table are in use")
        row = self._free.popleft()
        first = row * ROW_WORDS
        generation = self._words[first + _GENERATION] + 1
        self._words[first + _GENERATION] = generation
        for word in range(first + _ALIVE, first + ROW_WORDS):
            self._words[word] = 0
        self._set(row, "external", int(external))
        self._set(row, "task", task_index)
        self._set(row, "restarts", restarts)
        with self._label(row) as place:
            write_name(place, 0, label)
        self._set(row, "alive", 1)
        return InstanceId(row, generation)

    def mark(self, row: int, stage: InstanceStage, time_ns: int) -> None:
        """The instance reached one of `ROW_STAGES`; monotonic ns."""
        self._words[row * ROW_WORDS + _STAGES + stage] = time_ns

    def set_process(self, row: int, pid: int, start_ticks: int) -> None:
        self._set(row, "start_ticks", start_ticks)
        self._set(row, "pid", pid)

    def set_owner(self, row: int, connection: int) -> None:
        """The packed id of the connection that serves the instance's agent; 0 for none."""
        self._set(row, "owner", connection)

    def set_limit(self, row: int, limit: int, value: int, level: LimitLevel) -> None:
        """`limit` is a place in `LIMITS`, `value` scaled by `LIMIT_SCALES`. The level, stored last, shows it."""
        first = row * ROW_WORDS + _limit_word(limit)
        self._words[first + _VALUE] = value
        self._words[first + _LEVEL] = level

    def set_usage(self, row: int, limit: int, usage: int, breaches: int) -> None:
        """What was sampled last, and how often the limit was met since the row was opened."""
        first = row * ROW_WORDS + _limit_word(limit)
        self._words[first + _USAGE] = usage
        self._words[first + _BREACHES] = breaches

    def set_pause(self, row: int, pause: Pause) -> None:
        """Whether the instance rests; whoever has its agent, or gets it, looks here."""
        self._words[row * ROW_WORDS + ROW_PAUSE_WORD] = pause

    def pause(self, row: int) -> Pause:
        return Pause(self._words[row * ROW_WORDS + ROW_PAUSE_WORD])

    def close_row(self, row: int) -> None:
        """The instance is gone: its secret is void from here on. Closing a closed row changes nothing."""
        if self._get(row, "alive"):
            self._set(row, "alive", 0)
            self._free.append(row)

    def is_alive(self, row: int, generation: int) -> bool:
        """Whether this very instance has its row."""
        if not 0 <= row < self._count:
            return False
        first = row * ROW_WORDS
        return self._words[first + _ALIVE] == 1 and self._words[first + _GENERATION] == generation

    def snapshot(self, row: int) -> InstanceRow | None:
        """What the row says of its last instance; None for a row that was never used."""
        first = row * ROW_WORDS
        while True:
            words = self._words[first : first + ROW_WORDS].tolist()
            if self._words[first + _GENERATION] == words[_GENERATION]:
                break
        return self._decode(row, words) if words[_GENERATION] else None

    def snapshots(self) -> list[InstanceRow]:
        """All rows in use, by place."""
        alive = (row for row in range(self._count) if self._get(row, "alive"))
        return [state for state in map(self.snapshot, alive) if state is not None and state.alive]

    def _decode(self, row: int, words: list[int]) -> InstanceRow:
        value = dict(zip(ROW_FIELDS, words, strict=False))
        instance = InstanceId(row, value["generation"])
        task = self._segment.task_name(value["task"])
        label = b"".join(word.to_bytes(8, "little", signed=True) for word in words[ROW_LABEL_WORD:ROW_PAUSE_WORD])
        return InstanceRow(
            instance=instance,
            instance_id=read_name(label, 0) or instance.name(task),
            alive=bool(value["alive"]),
            external=bool(value["external"]),
            task_index=value["task"],
            task=task,
            owner=value["owner"],
            pid=value["pid"],
            start_ticks=value["start_ticks"],
            restarts=value["restarts"],
            stages_ns=tuple(words[_STAGES : _STAGES + len(ROW_STAGES)]),
            limits=tuple(_limits(words)),
            pause=Pause(words[ROW_PAUSE_WORD]),
        )

    def _get(self, row: int, field: str) -> int:
        return self._words[row * ROW_WORDS + _FIELD[field]]

    def _set(self, row: int, field: str, value: int) -> None:
        self._words[row * ROW_WORDS + _FIELD[field]] = value

    def _label(self, row: int) -> memoryview:
        first = self._offset + 8 * (row * ROW_WORDS + ROW_LABEL_WORD)
        return self._segment.memory[first : first + NAME_BYTES]


def _limit_word(limit: int) -> int:
    return ROW_LIMITS_WORD + limit * len(LIMIT_FIELDS)


def _limits(words: list[int]) -> Iterator[LimitState]:
    for limit, name in enumerate(LIMITS):
        first = _limit_word(limit)
        level, value, usage, breaches = words[first : first + len(LIMIT_FIELDS)]
        if level:
            scale = LIMIT_SCALES.get(name)
            yield LimitState(
                name,
                LimitLevel(level),
                value if scale is None else value / scale,
                usage if scale is None else usage / scale,
                breaches,
            )
