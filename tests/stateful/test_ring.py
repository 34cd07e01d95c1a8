"""A ring under a writer of random bursts and readers of random leisure, beside a model that keeps everything.

Whatever the order: what a reader accepts is exactly what was written at that position, and for each reader
`written = read + lost + unread`. Writers die between any two of their stores and have successors.
"""

from __future__ import annotations

import mmap
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from spearpool.metrics.ring import RingWriter
from spearpool.metrics.vocabulary import (
    RECORD_BYTES,
    EventKind,
)
from tests.metrics.segments import Record, RingReader


class Ring:
    """The three parts of a seat that make up a ring, as `RingReader` asks a segment for them."""

    def __init__(self, size: int) -> None:
        memory = memoryview(mmap.mmap(-1, size * RECORD_BYTES + 4096))
        self.layout = self
        self.ring_records = size
        self.parts = {
            "ring": memory[4096:],
            "ring_state": memory[:64].cast("q"),
            "counters": memory[64:128].cast("q"),
        }

    def seat_part(self, seat: int, name: str) -> memoryview:
        return self.parts[name]

    def writer(self, sealed: bool) -> RingWriter:
        return RingWriter(self.parts["ring"], self.parts["ring_state"], self.parts["counters"], sealed=sealed)


class Died(BaseException):
    """The writer was killed here."""


class Fuse:
    """A view that lets so many stores through and then kills its writer."""

    def __init__(self, view: memoryview, stores: int) -> None:
        self._view = view
        self._stores = stores

    def __getitem__(self, place: int) -> int:
        return int(self._view[place])

    def __setitem__(self, place: int, value: int) -> None:
        if not self._stores:
            raise Died
        self._stores -= 1
        self._view[place] = value


class RingMachine(RuleBasedStateMachine):
    readers: dict[str, RingReader]

    @initialize(size=st.sampled_from([64, 128]), sealed=st.booleans())
    def start(self, size: int, sealed: bool) -> None:
        self.ring = Ring(size)
        self.sealed = sealed
        self.model: list[tuple[int, int]] = []  # (kind, time) by position
        self.writer = self.ring.writer(sealed)
        self.writer.resume(0)
        self.readers = {name: RingReader(self.ring, 0) for name in ("keen", "lazy")}  # type: ignore[arg-type]
        self.copies: dict[str, list[Record]] = {}
        self.read = {"keen": 0, "lazy": 0}
        self.clock = 0

    @rule(burst=st.integers(1, 200))
    def write(self, burst: int) -> None:
        for _ in range(burst):
            self.clock += 1
            self.writer.write(self.clock, EventKind.MESSAGE_SENT, connection=self.clock)
            self.model.append((EventKind.MESSAGE_SENT, self.clock))

    @rule(view=st.sampled_from(["_state", "_tail"]))
    def die_in_the_middle(self, view: str) -> None:
        """Killed before the intent was stored, or before the tail was: in that case the record is torn."""
        self.clock += 1
        dying: Any = self.ring.writer(self.sealed)
        setattr(dying, view, Fuse(getattr(dying, view), 0))
        try:
            dying.write(self.clock, EventKind.MESSAGE_SENT)
        except Died:
            pass
        else:
            raise AssertionError("the writer made no such store")
        self.died_after_intent = view == "_tail"
        self.writer = self.ring.writer(self.sealed)
        self.writer.resume(-self.clock)
        if self.died_after_intent:
            self.model.append((EventKind.TORN, -self.clock))

    @rule(name=st.sampled_from(["keen", "lazy"]))
    def copy(self, name: str) -> None:
        self.copies[name] = self.readers[name].copy()

    @rule(name=st.sampled_from(["keen", "lazy"]))
    def accept(self, name: str) -> None:
        if name in self.copies:
            self._check(name, self.readers[name].accept(self.copies.pop(name)))

    @rule()
    def read_at_once(self) -> None:
        self.copies.pop("keen", None)
        self._check("keen", self.readers["keen"].read())

    def _check(self, name: str, records: list[Record]) -> None:
        self.read[name] += len(records)
        for record in records:
            assert (record.kind, record.time_ns) == self.model[record.sequence]
            assert record.check == (record.seal() if self.sealed else 0)
        positions = [record.sequence for record in records]
        assert positions == list(range(self.readers[name].next - len(records), self.readers[name].next))

    @invariant()
    def nothing_is_unaccounted_for(self) -> None:
        for name, reader in self.readers.items():
            assert reader.written == len(self.model)
            assert reader.written == self.read[name] + reader.lost + (reader.written - reader.next)

    @invariant()
    def a_reader_loses_no_more_than_it_must(self) -> None:
        keen = self.readers["keen"]
        assert keen.lost <= max(0, len(self.model) - keen.size)

    def teardown(self) -> None:
        for name, reader in getattr(self, "readers", {}).items():
            self._check(name, reader.read())
            assert reader.written == self.read[name] + reader.lost


RingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_ring = RingMachine.TestCase
