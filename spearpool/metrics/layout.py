"""Where everything lies in the shared memory; what it is called stands in `vocabulary`.

The segment is a header page with the schema, the names of the task columns, the instances table, and one block per
*seat*: two per slot and a last one for the supervisor. Everything is an int64 word with a single writer, except names
(64 bytes, UTF-8, padded with NULs) and the records of the rings. `Layout.plan` computes every offset from four numbers
and the task names; `Layout.schema` writes the same down as JSON, with numpy's names for the types, so that a program
without spearpool can read a segment. A reader trusts no offset it finds: it plans the layout again and compares.

Derived values have no word of their own: open connections = opened − all closed; executions of a seat or a pool =
the sum over its task columns; open executions = received − all final ones; a value of a slot = both seats' words plus
what the supervisor booked for their dead occupants (`booked_…`); records ever written = the ring's tail = the counter
`ring_records`.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple

from spearpool.config import MAX_SLOTS, MAX_TASKS
from spearpool.errors import SegmentError
from spearpool.protocol.messages import MessageType

from .histogram import HISTOGRAM_WORDS, OVERFLOW, SUB_BUCKETS
from .vocabulary import (
    AGENT_FIELDS,
    BOARD,
    CLOSE_REASONS,
    CLOSED,
    COUNTER,
    COUNTERS,
    DIRECTIONS,
    FINAL_STAGES,
    GAUGE,
    GAUGES,
    HISTOGRAMS,
    LIMIT_FIELDS,
    LIMIT_SCALES,
    LIMITS,
    LIVENESS,
    NAME_BYTES,
    NAME_TABLE_HEAD,
    NO_MESSAGE_TYPE,
    NO_TASK,
    OTHER,
    RECORD_BYTES,
    RECORD_FIELDS,
    RECORD_FLAGS,
    RECORD_FORMAT,
    RING_RECORDS,
    ROW_FIELDS,
    ROW_LABEL_WORD,
    ROW_LIMITS_WORD,
    ROW_PAUSE_WORD,
    ROW_WORDS,
    TASK_COUNTERS,
    TASK_HISTOGRAMS,
    TASK_WORDS,
    EventKind,
    ExecutionStage,
    InstanceStage,
    LimitLevel,
    SeatState,
    WorkerStage,
)

__all__ = [
    "CACHE_LINE",
    "CLOSED",
    "CLOSE_REASONS",
    "COUNTER",
    "COUNTERS",
    "COUNTER_WORDS",
    "DIRECTIONS",
    "FINAL_STAGES",
    "GAUGE",
    "GAUGES",
    "HEADER_BYTES",
    "HEADER_WORDS",
    "HISTOGRAMS",
    "LAYOUT_VERSION",
    "LIMITS",
    "LIVENESS",
    "MAGIC",
    "NO_MESSAGE_TYPE",
    "NO_TASK",
    "OTHER",
    "PAGE",
    "RECORD_BYTES",
    "RECORD_FIELDS",
    "RECORD_FORMAT",
    "SCHEMA_OFFSET",
    "SEAT_NAMES",
    "SPARE_TASKS",
    "STORES_ARE_ORDERED",
    "TASK_COUNTERS",
    "TASK_HISTOGRAMS",
    "EventKind",
    "ExecutionStage",
    "InstanceStage",
    "Layout",
    "LimitLevel",
    "Part",
    "SeatState",
    "WorkerStage",
    "read_header",
]

MAGIC = int.from_bytes(b"SPEARSEG", "little")
LAYOUT_VERSION = 2
PAGE = 4096
CACHE_LINE = 64
STORES_ARE_ORDERED = platform.machine() in {"x86_64", "AMD64", "i686"}
"""Whether another process sees our stores in the order in which we made them."""

HEADER_WORDS: tuple[str, ...] = (
    "magic",
    "layout_version",
    "generation_front",
    "epoch",
    "owner_pid",
    "owner_ticks",
    "schema_bytes",
    "schema_hash",
    "total_bytes",
    "generation_back",
)
SCHEMA_OFFSET = 256
HEADER_BYTES = 8 * PAGE

SEAT_NAMES = 256
SPARE_TASKS = 8
COUNTER_WORDS = 128


class Part(NamedTuple):
    """An array inside a seat or the segment: where it begins, what one element is, and what its elements are called."""

    offset: int
    dtype: str
    shape: tuple[int, ...]
    fields: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]

    def schema(self) -> dict[str, Any]:
        return {"offset": self.offset, "dtype": self.dtype, "shape": list(self.shape), "fields": list(self.fields)}


_ITEM_BYTES = {"<i8": 8, f"|S{NAME_BYTES}": NAME_BYTES, "record": RECORD_BYTES}
_NAME = f"|S{NAME_BYTES}"


@dataclass(frozen=True)
class Layout:
    """Where everything lies in a segment for `slots` workers and these tasks. Make it with `plan`."""

    slots: int
    tasks: tuple[str, ...]
    ring_records: int
    rows: int
    sealed: bool

    @classmethod
    def plan(
        cls,
        slots: int,
        tasks: Sequence[str],
        ring_records: int,
        rows: int = 1024,
        sealed: bool = not STORES_ARE_ORDERED,
    ) -> Layout:
        """`sealed` records carry a check word. A task called `other` has no column of its own: it shares that one.

        Raises `SegmentError` when a number or a name is out of range.
        """
        _check(1 <= slots <= MAX_SLOTS, "slots", slots, f"1 to {MAX_SLOTS}")
        _check(len(tasks) <= MAX_TASKS, "tasks", len(tasks), f"at most {MAX_TASKS}")
        _check(len(set(tasks)) == len(tasks), "tasks", tasks, "names that differ")
        for name in tasks:
            _check(0 < len(name.encode()) < NAME_BYTES and "\0" not in name, "task", name, "1 to 63 bytes without NUL")
        power_of_two = ring_records > 0 and ring_records & (ring_records - 1) == 0
        low, high = RING_RECORDS
        fits = power_of_two and low <= ring_records <= high
        _check(fits, "ring_records", ring_records, f"a power of two from {low} to {high}")
        _check(1 <= rows <= 65_536, "rows", rows, "1 to 65536")
        return cls(slots, tuple(task for task in tasks if task != OTHER), ring_records, rows, sealed)

    @classmethod
    def from_header(cls, header: bytes | memoryview) -> Layout:
        """The layout that a segment's first `HEADER_BYTES` describe. Raises `SegmentError` when they do not.

        Nothing in the header is believed: the plan in its schema is computed again and must give the same schema.
        """
        words = read_header(header)
        length = words["schema_bytes"]
        _check(0 < length <= HEADER_BYTES - SCHEMA_OFFSET, "schema_bytes", length, "a length that fits the header")
        text = bytes(header[SCHEMA_OFFSET : SCHEMA_OFFSET + length])
        try:
            plan = json.loads(text)["plan"]
            layout = cls.plan(*_plan_arguments(plan))
        except (ValueError, TypeError, KeyError, RecursionError, UnicodeError):
            raise SegmentError("the segment's schema cannot be read: it is damaged or not a segment") from None
        _check(layout.schema_json == text, "schema", text[:40], "the schema that this version of spearpool writes")
        _check(layout.schema_hash == words["schema_hash"], "schema_hash", words["schema_hash"], "the schema's hash")
        _check(layout.total_bytes == words["total_bytes"], "total_bytes", words["total_bytes"], str(layout.total_bytes))
        return layout

    @property
    def columns(self) -> int:
        """Task columns: the configured tasks, the spare ones, and `other` as the last."""
        return len(self.tasks) + SPARE_TASKS + 1

    @property
    def seats(self) -> int:
        """Two per slot (`2 * slot + parity`) and the supervisor's as the last."""
        return 2 * self.slots + 1

    @property
    def supervisor_seat(self) -> int:
        return 2 * self.slots

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The arrays outside the seats, by name; offsets from the start of the segment."""
        return _lay_out(
            HEADER_BYTES,
            ("task_names_head", "<i8", (len(NAME_TABLE_HEAD),), NAME_TABLE_HEAD),
            ("task_names", _NAME, (self.columns,), ()),
            ("instances", "<i8", (self.rows, ROW_WORDS), ROW_FIELDS),
        )

    @cached_property
    def seat_parts(self) -> dict[str, Part]:
        """The arrays of one seat, by name; offsets from the start of the seat. The ring comes last, page-aligned."""
        head = _lay_out(
            0,
            ("liveness", "<i8", (CACHE_LINE // 8,), LIVENESS),
            ("counters", "<i8", (COUNTER_WORDS,), COUNTERS),
            ("gauges", "<i8", (16,), GAUGES),
            ("ring_state", "<i8", (CACHE_LINE // 8,), ("intent",)),
            ("tasks", "<i8", (self.columns, TASK_WORDS), TASK_COUNTERS),
            ("board", "<i8", (self.columns, len(BOARD)), BOARD),
            ("arrived", "<i8", (2 * self.slots,), ()),
            ("load", "<i8", (1,), ("settled",)),
            ("sent", "<i8", (2 * self.slots,), ()),
            ("received", "<i8", (2 * self.slots,), ()),
            ("handed", "<i8", (2 * self.slots,), ()),
            ("booked_counters", "<i8", (COUNTER_WORDS,), COUNTERS),
            ("booked_tasks", "<i8", (self.columns, TASK_WORDS), TASK_COUNTERS),
            ("agents", "<i8", (self.rows, len(AGENT_FIELDS)), AGENT_FIELDS),
            ("histograms", "<i8", (len(HISTOGRAMS), HISTOGRAM_WORDS), HISTOGRAMS),
            (
                "task_histograms",
                "<i8",
                (self.columns, len(TASK_HISTOGRAMS), HISTOGRAM_WORDS),
                TASK_HISTOGRAMS,
            ),
            ("names_head", "<i8", (len(NAME_TABLE_HEAD),), NAME_TABLE_HEAD),
            ("names", _NAME, (SEAT_NAMES,), ()),
        )
        ring = Part(_align(_end(head), PAGE), "record", (self.ring_records,))
        return {**head, "ring": ring}

    @cached_property
    def seats_offset(self) -> int:
        return _align(_end(self.parts), PAGE)

    @cached_property
    def seat_bytes(self) -> int:
        return _align(_end(self.seat_parts), PAGE)

    @cached_property
    def total_bytes(self) -> int:
        return self.seats_offset + self.seats * self.seat_bytes

    def seat_part(self, seat: int, name: str) -> Part:
        """The part `name` of a seat; its offset from the start of the segment."""
        part = self.seat_parts[name]
        return part._replace(offset=self.seats_offset + seat * self.seat_bytes + part.offset)

    def schema(self) -> dict[str, Any]:
        """Everything that a reader needs to decode the segment, in plain values."""
        return {
            "format": "spearpool-segment",
            "layout_version": LAYOUT_VERSION,
            "plan": {
                "slots": self.slots,
                "tasks": list(self.tasks),
                "ring_records": self.ring_records,
                "rows": self.rows,
                "sealed": self.sealed,
            },
            "total_bytes": self.total_bytes,
            "header": {"dtype": "<i8", "fields": list(HEADER_WORDS), "schema_offset": SCHEMA_OFFSET},
            "parts": {name: part.schema() for name, part in self.parts.items()},
            "seats": {
                "offset": self.seats_offset,
                "stride": self.seat_bytes,
                "count": self.seats,
                "supervisor": self.supervisor_seat,
                "parts": {name: part.schema() for name, part in self.seat_parts.items()},
            },
            "record": {"bytes": RECORD_BYTES, "fields": [[name, dtype] for name, _, dtype in RECORD_FIELDS]},
            "ring": {"intent": ["ring_state", "intent"], "tail": ["counters", "ring_records"]},
            "histogram": {"sum_word": 0, "first_bucket": 1, "sub_buckets": SUB_BUCKETS, "overflow": OVERFLOW},
            "instance_row": {
                "limits_word": ROW_LIMITS_WORD,
                "limits": list(LIMITS),
                "limit_fields": list(LIMIT_FIELDS),
                "limit_scales": LIMIT_SCALES,
                "label_word": ROW_LABEL_WORD,
                "pause_word": ROW_PAUSE_WORD,
                "label_bytes": NAME_BYTES,
            },
            "other_column": self.columns - 1,
            "no_task": NO_TASK,
            "no_message_type": NO_MESSAGE_TYPE,
            "message_types": [kind.value for kind in MessageType],
            "directions": list(DIRECTIONS),
            "record_flags": RECORD_FLAGS,
            "close_reasons": [reason.value for reason in CLOSE_REASONS],
            "final_stages": sorted(stage.name.lower() for stage in FINAL_STAGES),
            "event_kinds": _enum(EventKind),
            "seat_states": _enum(SeatState),
            "limit_levels": _enum(LimitLevel),
        }

    @cached_property
    def schema_json(self) -> bytes:
        return json.dumps(self.schema(), separators=(",", ":"), ensure_ascii=False).encode()

    @cached_property
    def schema_hash(self) -> int:
        """63 bits, so that it fits a signed word."""
        return int.from_bytes(hashlib.sha256(self.schema_json).digest()[:8], "little") >> 1


def read_header(header: bytes | memoryview) -> dict[str, int]:
    """The words of a segment's header, by name. Raises `SegmentError` when it is not one of this version."""
    _check(len(header) >= HEADER_BYTES, "header", len(header), f"at least {HEADER_BYTES} bytes")
    packed = bytes(header[: 8 * len(HEADER_WORDS)])
    words = dict(zip(HEADER_WORDS, memoryview(packed).cast("q").tolist(), strict=True))
    _check(words["magic"] == MAGIC, "magic", packed[:8], "SPEARSEG: not a segment, or one that is not complete")
    version = words["layout_version"]
    _check(version == LAYOUT_VERSION, "layout_version", version, f"{LAYOUT_VERSION}, the one this spearpool reads")
    _check(
        words["generation_front"] == words["generation_back"] != 0,
        "generation",
        (words["generation_front"], words["generation_back"]),
        "two equal stamps",
    )
    return words


def _check(ok: bool, what: str, found: object, expected: str) -> None:
    if not ok:
        raise SegmentError(f"{what} = {found!r}: expected {expected}")


def _plan_arguments(plan: Any) -> tuple[int, list[str], int, int, bool]:
    slots, ring_records, rows = plan["slots"], plan["ring_records"], plan["rows"]
    tasks, sealed = plan["tasks"], plan["sealed"]
    if not all(type(number) is int for number in (slots, ring_records, rows)) or type(sealed) is not bool:
        raise TypeError("three numbers and a switch")
    if type(tasks) is not list or not all(type(name) is str for name in tasks):
        raise TypeError("a list of names")
    return slots, tasks, ring_records, rows, sealed


def _lay_out(start: int, *parts: tuple[str, str, tuple[int, ...], tuple[str, ...]]) -> dict[str, Part]:
    """Place the parts one after the other, each on a cache line of its own."""
    placed: dict[str, Part] = {}
    offset = start
    for name, dtype, shape, fields in parts:
        placed[name] = Part(_align(offset, CACHE_LINE), dtype, shape, fields)
        offset = placed[name].offset + placed[name].nbytes
    return placed


def _end(parts: dict[str, Part]) -> int:
    return max(part.offset + part.nbytes for part in parts.values())


def _align(offset: int, to: int) -> int:
    return -(-offset // to) * to


def _enum(kind: type[IntEnum]) -> dict[str, int]:
    return {member.name.lower(): int(member) for member in kind}
