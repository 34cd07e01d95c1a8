"""A segment of our own for a test, and a plain reader of its rings."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import xor
from pathlib import Path
from typing import NamedTuple

from spearpool.metrics.layout import (
    Layout,
)
from spearpool.metrics.segment import Segment
from spearpool.metrics.vocabulary import (
    RECORD_BYTES,
    RECORD_FIELDS,
    RECORD_FORMAT,
)
from spearpool.processes import ProcessIdentity

__all__ = ["Record", "RingReader", "new_segment"]

EPOCH = 0x1234_5678_9ABC_DEF0 >> 1


@contextmanager
def new_segment(
    directory: Path, layout: Layout | None = None, pool: str = "test", epoch: int = EPOCH
) -> Iterator[Segment]:
    """A segment of this process, gone at the end."""
    me = ProcessIdentity.of(os.getpid())
    layout = layout or Layout.plan(2, ["thumb", "sum"], 64, rows=8)
    segment = Segment.create(directory, pool, layout, epoch, me.pid, me.start_ticks)
    try:
        yield segment
    finally:
        segment.close()
        segment.unlink()


class Record(NamedTuple):
    """One record as plain numbers, in the order of `RECORD_FIELDS`."""

    sequence: int
    time_ns: int
    connection: int
    instance: int
    duration_ns: int
    size: int
    name: int
    code: int
    task: int
    kind: int
    message_type: int
    direction: int
    flags: int
    check: int

    def seal(self) -> int:
        """What `check` is in a sealed ring."""
        words: tuple[int, ...] = struct.unpack("<7Q", struct.pack(RECORD_FORMAT, *self)[:56])
        return reduce(xor, words)


assert Record._fields == tuple(name for name, _, _ in RECORD_FIELDS)


class RingReader:
    """The protocol of `ring` from the other side, record by record and without numpy; the model for faster ones.

    `read` may be split in two, `copy` and `accept`, so that a test can let the writer go on in between.
    """

    def __init__(self, segment: Segment, seat: int) -> None:
        self._records = segment.seat_part(seat, "ring")
        self._state = segment.seat_part(seat, "ring_state")
        self._counters = segment.seat_part(seat, "counters")
        self.size = segment.layout.ring_records
        self.next = 0
        self.lost = 0

    def copy(self) -> list[Record]:
        """What lies at the positions that were not read yet, whole or not; those surely overwritten are left out."""
        tail = self._counters[0]
        first = max(self.next, tail - self.size)
        starts = (position % self.size * RECORD_BYTES for position in range(first, tail))
        self._copied_to = tail
        return [Record(*struct.unpack_from(RECORD_FORMAT, self._records, start)) for start in starts]

    def accept(self, copied: list[Record]) -> list[Record]:
        """Those of the copied records that cannot have been overwritten meanwhile; counts the others as lost."""
        oldest = self._state[0] - self.size
        first = self._copied_to - len(copied)
        intact = copied[max(0, oldest - first) :]
        self.lost += self._copied_to - self.next - len(intact)
        self.next = self._copied_to
        return intact

    def read(self) -> list[Record]:
        return self.accept(self.copy())

    @property
    def written(self) -> int:
        return int(self._counters[0])
