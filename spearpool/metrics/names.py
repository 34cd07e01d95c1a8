"""An append-only table of names in shared memory: one writer, any readers, bounded.

A name is written before the count that makes it visible, and is never changed, so a reader needs no check.
"""

from __future__ import annotations

from .vocabulary import (
    NAME_BYTES,
)

__all__ = ["NameTable", "fit", "read_name", "write_name"]

_USED, _REFUSED = 0, 1


class NameTable:
    """The names in `entries` (64 bytes each); `head` holds how many there are and how many were refused."""

    def __init__(self, head: memoryview, entries: memoryview, capacity: int | None = None) -> None:
        self._head = head
        self._entries = entries
        self._capacity = len(entries) // NAME_BYTES if capacity is None else capacity
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return min(max(self._head[_USED], 0), self._capacity)

    @property
    def refused(self) -> int:
        """How often a name found no place."""
        return self._head[_REFUSED]

    def names(self) -> list[str]:
        return [read_name(self._entries, place) for place in range(len(self))]

    def find(self, name: str) -> int | None:
        """The place of a name, or None."""
        self._catch_up()
        return self._places.get(fit(name))

    def add(self, name: str) -> int | None:
        """The place of a name, appended when it is new; None (and one more `refused`) when the table is full."""
        place = self.find(name)
        if place is not None:
            return place
        place = len(self)
        if place >= self._capacity:
            self._head[_REFUSED] += 1
            return None
        write_name(self._entries, place, name)
        self._head[_USED] = place + 1
        self._places[fit(name)] = place
        return place

    def _catch_up(self) -> None:
        """Learn what was added since; the table is append-only, so what is known stays true."""
        for place in range(len(self._places), len(self)):
            self._places[read_name(self._entries, place)] = place


def fit(name: str) -> str:
    """The name as the table keeps it: at most 63 bytes of UTF-8, without NUL."""
    encoded = name.replace("\0", "?").encode("utf-8", "replace")
    return encoded[: NAME_BYTES - 1].decode("utf-8", "ignore")


def write_name(entries: memoryview, place: int, name: str) -> None:
    entries[place * NAME_BYTES : (place + 1) * NAME_BYTES] = fit(name).encode().ljust(NAME_BYTES, b"\0")


def read_name(entries: bytes | memoryview, place: int) -> str:
    packed = bytes(entries[place * NAME_BYTES : (place + 1) * NAME_BYTES])
    return packed.rstrip(b"\0").decode("utf-8", "replace")
