"""What travels on `live`: topics and the header of a frame. Pure; no zmq.

A message has three frames: topic, header, body. A topic is `sp1.<kind>.<scope>.`, every part ended by a dot, because a
subscription is a byte prefix and `sp1.e.1` would match worker 10. A topic has a sequence of its own, so that a filter
never looks like loss. It counts *items*: records of a ring (`e`), names of a table (`n`), whole frames everywhere else.
The header holds the sequence of the frame's first item and how many items there are, so the next frame of the topic
begins at `sequence + count`, and what a lost frame held is known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum

from spearpool.errors import PoolError

__all__ = [
    "MAX_BODY_BYTES",
    "PROTOCOL",
    "SUPERVISOR",
    "Encoding",
    "Header",
    "Topic",
    "event_topic",
    "name_topic",
    "scope_of",
    "slot_of",
    "topic",
    "worker_prefixes",
]

PROTOCOL = 1
MAX_BODY_BYTES = 64 * 1024
"""Of frames that come in batches (events, names, instances); a snapshot is as large as it is."""

SUPERVISOR = "supervisor"
"""The scope of the supervisor's own seat, which belongs to no slot."""


class Topic(Enum):
    """The kinds of topics. Execution (`x`) and histogram (`h`) topics are reserved."""

    COUNTERS = "c"  # of a slot: raw int64, cumulative, in the order of the snapshot's `fields`
    EVENTS = "e"  # of a seat: raw 64-byte records
    NAMES = "n"  # of a seat: msgpack list of the names that were added
    WORKERS = "w"  # of a slot: msgpack map
    INSTANCES = "i"  # msgpack list of the rows that changed
    HEARTBEAT = "b"  # msgpack map of topic → [next sequence, records lost in the ring]
    SNAPSHOT = "s"  # answers the subscription to it; its scope is the subscriber's own choice


class Encoding(IntEnum):
    MSGPACK = 0
    RECORDS = 1
    INT64 = 2


_HEADER = struct.Struct("<BBHIQQQqQ")


@dataclass(frozen=True, slots=True)
class Header:
    """`lost` counts the records of an event topic that were overwritten in the ring before this frame; 0 elsewhere."""

    encoding: Encoding
    count: int
    schema_hash: int
    epoch: int
    sequence: int
    time_ns: int
    lost: int = 0

    def pack(self) -> bytes:
        return _HEADER.pack(
            PROTOCOL,
            self.encoding,
            0,
            self.count,
            self.schema_hash,
            self.epoch,
            self.sequence,
            self.time_ns,
            self.lost,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """Raises `PoolError` when the pool speaks another version."""
        if len(data) != _HEADER.size or data[0] != PROTOCOL:
            raise PoolError(f"the pool's bus speaks version {data[:1].hex() or '?'}; this spearpool reads {PROTOCOL}")
        _, encoding, _, *numbers = _HEADER.unpack(data)
        return cls(Encoding(encoding), *numbers)


def topic(kind: Topic, *scope: object) -> bytes:
    """`topic(Topic.COUNTERS, 3)` is `b"sp1.c.3."`; without scope, the prefix of all topics of the kind."""
    return "".join(f"{part}." for part in ("sp1", kind.value, *scope)).encode()


def scope_of(slot: int, slots: int) -> str:
    """A slot's place in a topic; the number behind the last slot is the supervisor's."""
    return str(slot) if slot < slots else SUPERVISOR


def slot_of(name: bytes) -> int | None:
    """The slot that a topic speaks of, None for the supervisor and for topics of the whole pool."""
    scope = name.split(b".")[2]
    return int(scope) if scope.isdigit() else None


def event_topic(seat: int, slots: int) -> bytes:
    """`sp1.e.<slot>.<0 or 1>.`: which of the slot's two seats."""
    return topic(Topic.EVENTS, scope_of(seat // 2, slots), seat % 2)


def name_topic(seat: int, slots: int) -> bytes:
    return topic(Topic.NAMES, scope_of(seat // 2, slots), seat % 2)


def worker_prefixes(kind: Topic, workers: Iterable[int]) -> list[bytes]:
    """What to subscribe to for these workers; for all, and the supervisor, when none is named."""
    return [topic(kind, worker) for worker in sorted(set(workers))] or [topic(kind)]
