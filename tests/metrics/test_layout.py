from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.config import MAX_SLOTS, MAX_TASKS
from spearpool.errors import SegmentError
from spearpool.metrics.layout import (
    CACHE_LINE,
    HEADER_BYTES,
    HEADER_WORDS,
    LAYOUT_VERSION,
    MAGIC,
    PAGE,
    SCHEMA_OFFSET,
    SPARE_TASKS,
    Layout,
    Part,
    read_header,
)
from spearpool.metrics.vocabulary import (
    OTHER,
)

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15)
LAYOUTS = st.builds(
    Layout.plan,
    st.integers(1, MAX_SLOTS),
    st.lists(NAMES, max_size=MAX_TASKS, unique=True),
    st.sampled_from([2**power for power in range(6, 25)]),
    st.integers(1, 65_536),
    st.booleans(),
)


def header_of(layout: Layout, **changed: int) -> bytes:
    """The header page of a segment, with some words replaced."""
    words = {
        "magic": MAGIC,
        "layout_version": LAYOUT_VERSION,
        "generation_front": 7,
        "epoch": 1,
        "owner_pid": 2,
        "owner_ticks": 3,
        "schema_bytes": len(layout.schema_json),
        "schema_hash": layout.schema_hash,
        "total_bytes": layout.total_bytes,
        "generation_back": 7,
    } | changed
    packed = b"".join(words[name].to_bytes(8, "little", signed=True) for name in HEADER_WORDS)
    return (packed.ljust(SCHEMA_OFFSET, b"\0") + layout.schema_json).ljust(HEADER_BYTES, b"\0")


LAYOUT = Layout.plan(2, ["thumb", "sum"], 1024)
HEADER = header_of(LAYOUT)


def with_plan(**changed: Any) -> bytes:
    """A header whose schema has another plan, of whatever kind."""
    schema = LAYOUT.schema()
    schema["plan"] |= changed
    text = json.dumps(schema, separators=(",", ":")).encode()
    return (HEADER[:SCHEMA_OFFSET] + text).ljust(HEADER_BYTES, b"\0")


@given(LAYOUTS)
def test_parts_lie_apart_aligned_and_inside(layout: Layout) -> None:
    def in_order(parts: dict[str, Part], start: int, end: int) -> None:
        assert [part.offset % CACHE_LINE for part in parts.values()] == [0] * len(parts)
        edges = [start, *(edge for part in parts.values() for edge in (part.offset, part.offset + part.nbytes)), end]
        assert edges == sorted(edges)

    in_order(layout.parts, HEADER_BYTES, layout.seats_offset)
    in_order(layout.seat_parts, 0, layout.seat_bytes)
    assert layout.seats_offset % PAGE == layout.seat_bytes % PAGE == layout.seat_parts["ring"].offset % PAGE == 0
    assert layout.total_bytes == layout.seats_offset + (2 * layout.slots + 1) * layout.seat_bytes


@given(LAYOUTS)
def test_a_header_gives_its_layout_back(layout: Layout) -> None:
    assert Layout.from_header(header_of(layout)) == layout


def test_the_largest_schema_fits_the_header() -> None:
    tasks = [f"{number:02}".ljust(63, "x") for number in range(MAX_TASKS)]
    layout = Layout.plan(MAX_SLOTS, tasks, 2**24, 65_536)
    assert Layout.from_header(header_of(layout)) == layout


def test_seats_follow_each_other() -> None:
    offsets = [LAYOUT.seat_part(seat, "counters").offset for seat in range(LAYOUT.seats)]
    assert {b - a for a, b in pairwise(offsets)} == {LAYOUT.seat_bytes}
    assert offsets[-1] == LAYOUT.seat_part(LAYOUT.supervisor_seat, "counters").offset


def test_columns_are_the_tasks_the_spare_ones_and_other() -> None:
    assert LAYOUT.columns == 2 + SPARE_TASKS + 1
    assert Layout.plan(1, ["a", OTHER, "b"], 64).tasks == ("a", "b")


def test_the_schema_tells_types_that_numpy_knows() -> None:
    np = pytest.importorskip("numpy")
    schema = json.loads(LAYOUT.schema_json)
    record = np.dtype([tuple(field) for field in schema["record"]["fields"]])
    assert record.itemsize == schema["record"]["bytes"]
    for part in (*schema["parts"].values(), *schema["seats"]["parts"].values()):
        item = record if part["dtype"] == "record" else np.dtype(part["dtype"])
        assert item.itemsize in {8, 64}
    assert schema["record"]["fields"][0] == ["sequence", "<u8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, [], 64), "slots = 0: expected 1 to 128"),
        ((129, [], 64), "slots = 129"),
        ((1, [str(n) for n in range(57)], 64), "tasks = 57: expected at most 56"),
        ((1, ["a", "a"], 64), "expected names that differ"),
        ((1, [""], 64), "task = ''"),
        ((1, ["é" * 32], 64), "1 to 63 bytes"),
        ((1, ["a\0b"], 64), "without NUL"),
        ((1, [], 100), "ring_records = 100: expected a power of two from 64 to 16777216"),
        ((1, [], 32), "ring_records = 32"),
        ((1, [], 2**25), "ring_records = 33554432"),
        ((1, [], 0), "ring_records = 0"),
        ((1, [], 64, 0), "rows = 0: expected 1 to 65536"),
    ],
)
def test_a_plan_that_cannot_be(arguments: Any, message: str) -> None:
    with pytest.raises(SegmentError, match=message):
        Layout.plan(*arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"magic": 0}, "magic .* not a segment, or one that is not complete"),
        ({"layout_version": 1}, "layout_version = 1: expected 2"),
        ({"generation_front": 8}, "generation = .8, 7.: expected two equal stamps"),
        ({"generation_front": 0, "generation_back": 0}, "generation"),
        ({"schema_bytes": 0}, "schema_bytes = 0"),
        ({"schema_bytes": -1}, "schema_bytes = -1"),
        ({"schema_bytes": HEADER_BYTES}, "schema_bytes"),
        ({"schema_bytes": 20}, "schema cannot be read"),
        ({"schema_hash": 5}, "schema_hash = 5"),
        ({"total_bytes": 5}, "total_bytes = 5"),
    ],
)
def test_a_header_that_is_not_ours(changed: dict[str, int], message: str) -> None:
    with pytest.raises(SegmentError, match=message):
        Layout.from_header(header_of(LAYOUT, **changed))


@pytest.mark.parametrize(
    "plan",
    [
        {"slots": 2.0},
        {"slots": True},
        {"slots": 10**30},
        {"rows": "8"},
        {"ring_records": None},
        {"tasks": "thumb"},
        {"tasks": [1]},
        {"tasks": ["\ud800"]},
        {"sealed": 1},
        {"slots": 3},  # a plan that could be, in a schema that is not its own
    ],
)
def test_a_schema_is_not_believed(plan: dict[str, Any]) -> None:
    text = with_plan(**plan)
    length = len(text[SCHEMA_OFFSET:].rstrip(b"\0"))
    at = 8 * HEADER_WORDS.index("schema_bytes")
    header = text[:at] + length.to_bytes(8, "little") + text[at + 8 :]
    with pytest.raises(SegmentError):
        Layout.from_header(header)


def test_a_schema_that_is_too_deep() -> None:
    deep = b"[" * 20_000
    header = header_of(LAYOUT, schema_bytes=len(deep))[:SCHEMA_OFFSET] + deep
    with pytest.raises(SegmentError, match="cannot be read"):
        Layout.from_header(header.ljust(HEADER_BYTES, b"\0"))


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    for header in (data, data.ljust(HEADER_BYTES, b"\0"), HEADER[:SCHEMA_OFFSET] + data):
        with pytest.raises(SegmentError):
            Layout.from_header(header)


@given(st.integers(0, 8 * HEADER_BYTES - 1))
def test_a_flipped_bit_is_seen_or_does_not_matter(bit: int) -> None:
    damaged = bytearray(HEADER)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        assert Layout.from_header(bytes(damaged)) == LAYOUT
    except SegmentError:
        return
    words = read_header(HEADER)
    free = {"epoch", "owner_pid", "owner_ticks"}  # any number will do there
    touched = HEADER_WORDS[bit // 64] if bit // 64 < len(HEADER_WORDS) else "padding"
    assert touched in free | {"padding"}
    assert bit // 8 < SCHEMA_OFFSET or bit // 8 >= SCHEMA_OFFSET + words["schema_bytes"]
