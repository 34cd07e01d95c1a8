"""The writing side of a seat's event ring: one writer, any number of readers, no lock.

A position counts records since the segment was made; record `p` lies at place `p % size`. To write, the writer first
stores `intent = p + 1` ("from now on record `p - size` is gone"), then the record, then `tail = p + 1` ("record `p` is
there"). A reader reads `tail`, copies the records before it that it has not seen, *then* reads `intent` once, and drops
those at positions below `intent - size`: only they may have been overwritten while it copied. So every record is read
whole or counted as lost, and `written = read + lost + unread` holds exactly. Committing without announcing the intent
first lets torn records through.

The stores must become visible in the order in which they are made, which x86-64 guarantees; elsewhere the layout is
`sealed` and a record carries the xor of its own words, which a reader checks together with its position.

A writer that is killed leaves `intent` at most one ahead of `tail`. Its successor gives the unfinished position a
record of kind `TORN` and goes on from there.
"""

from __future__ import annotations

from struct import Struct

from spearpool.errors import SegmentError

from .vocabulary import (
    NO_MESSAGE_TYPE,
    NO_TASK,
    RECORD_BYTES,
    RECORD_FORMAT,
    EventKind,
)

__all__ = ["RingWriter"]

_pack_into = Struct(RECORD_FORMAT).pack_into
_INTENT = 0
_CHECKED, _CHECK = Struct("<7Q"), Struct("<Q")


class RingWriter:
    """Writes records into `records` (bytes, a power of two of places).

    `state` holds the intent, `tail` is the view of words whose first one is the tail (the seat's counters).
    Making a writer stores nothing; call `resume` once before the first `write`.
    """

    __slots__ = ("_mask", "_position", "_records", "_sealed", "_state", "_tail")

    def __init__(self, records: memoryview, state: memoryview, tail: memoryview, *, sealed: bool) -> None:
        self._records = records
        self._state = state
        self._tail = tail
        self._mask = len(records) // RECORD_BYTES - 1
        self._sealed = sealed
        self._position = tail[0]

    @property
    def position(self) -> int:
        """How many records were ever written."""
        return self._position

    def resume(self, now_ns: int) -> None:
        """Go on where the last writer stopped. Raises `SegmentError` when it cannot have stopped there."""
        intent, tail = self._state[_INTENT], self._tail[0]
        if tail < 0 or not 0 <= intent - tail <= 1:
            raise SegmentError(f"ring with intent {intent} and tail {tail}: expected an intent at most one ahead")
        self._position = tail
        if intent > tail:
            self.write(now_ns, EventKind.TORN)

    def write(
        self,
        time_ns: int,
        kind: int,
        connection: int = 0,
        instance: int = 0,
        duration_ns: int = 0,
        size: int = 0,
        name: int = 0,
        code: int = 0,
        task: int = NO_TASK,
        message_type: int = NO_MESSAGE_TYPE,
        direction: int = 0,
        flags: int = 0,
    ) -> None:
        """Append one record. Raises `struct.error` when a value does not fit its field; nothing is appended then."""
        position = self._position
        start = (position & self._mask) * RECORD_BYTES
        end = position + 1
        self._state[_INTENT] = end
        _pack_into(
            self._records,
            start,
            position,
            time_ns,
            connection,
            instance,
            duration_ns,
            size,
            name,
            code,
            task,
            kind,
            message_type,
            direction,
            flags,
            0,
        )
        if self._sealed:
            self._seal(start)
        self._position = end
        self._tail[0] = end

    def _seal(self, start: int) -> None:
        check = 0
        for word in _CHECKED.unpack_from(self._records, start):
            check ^= word
        _CHECK.pack_into(self._records, start + _CHECKED.size, check)
