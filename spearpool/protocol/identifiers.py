"""Numbers and names for connections, executions and instances.

A connection and an execution are named by where they began: slot, incarnation of the worker, and a counter. Packed into
one word for the metrics (slot 8 bits, incarnation 24, counter 32) and written as text for people and the wire.
Structs rather than dataclasses, like all values of this floor: each of those would cost every agent half a millisecond.
"""

from __future__ import annotations

import msgspec

__all__ = ["ConnectionId", "InstanceId", "execution_id", "execution_incarnation"]

_COUNTER = 0xFFFF_FFFF
_INCARNATION = 0xFF_FFFF


class ConnectionId(msgspec.Struct, frozen=True, gc=False):
    """A connection, kept across hand-over. Text form `c-SLOT-INCARNATION-COUNTER`."""

    slot: int
    incarnation: int
    counter: int

    def pack(self) -> int:
        return self.slot << 56 | (self.incarnation & _INCARNATION) << 32 | self.counter & _COUNTER

    @classmethod
    def unpack(cls, word: int) -> ConnectionId:
        return cls(word >> 56 & 0xFF, word >> 32 & _INCARNATION, word & _COUNTER)

    def __str__(self) -> str:
        return f"c-{self.slot}-{self.incarnation}-{self.counter}"


class InstanceId(msgspec.Struct, frozen=True, gc=False):
    """A row of the instances table and its generation. Packed: row 32 bits, generation 32 bits; 0 means none."""

    row: int
    generation: int

    def pack(self) -> int:
        return self.row << 32 | self.generation & _COUNTER

    @classmethod
    def unpack(cls, word: int) -> InstanceId:
        return cls(word >> 32 & _COUNTER, word & _COUNTER)

    def name(self, task: str) -> str:
        """`TASK-ROW-GENERATION`, the `instance_id` of a launched instance."""
        return f"{task}-{self.row}-{self.generation}"


def execution_id(epoch: int, slot: int, incarnation: int, counter: int) -> str:
    """`SLOT-EPOCH-INCARNATION-COUNTER`; the epoch (hex) keeps ids of different runs of one pool apart."""
    return f"{slot}-{epoch:x}-{incarnation}-{counter}"


def execution_incarnation(text: str) -> int | None:
    """The incarnation of the worker that accepted an execution; None when the id is not one of ours."""
    parts = text.split("-")
    if len(parts) != 4 or not text.isascii():
        return None
    slot, _, incarnation, _ = parts
    ours = slot.isdecimal() and len(slot) <= 3 and incarnation.isdecimal() and len(incarnation) <= 10
    return int(incarnation) if ours else None
