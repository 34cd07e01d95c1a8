"""Records keep their type and value through packing; anything else is an `UnpackError` with words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.packing import Packer, Record, Section, UnpackError, from_plain, replace, to_plain


class Moved(Record, frozen=True):
    slot: int
    name: str
    data: bytes = b""


class Stopped(Record, frozen=True):
    slot: int


class Size(Section, frozen=True):
    width: int
    height: int = 1


Either = Moved | Stopped
PACKER: Packer[Either] = Packer(Either)

records = st.builds(Moved, st.integers(-(2**63), 2**64 - 1), st.text(), st.binary()) | st.builds(
    Stopped, st.integers(0, 9)
)


@given(records)
def test_a_record_comes_back_as_itself(record: Either) -> None:
    packed = PACKER.pack(record)
    assert PACKER.unpack(packed) == record
    assert PACKER.unpack(memoryview(packed)) == record


def test_records_of_equal_fields_keep_their_class() -> None:
    class Started(Record, frozen=True):
        slot: int

    packer: Packer[Stopped | Started] = Packer(Stopped | Started)
    assert [type(packer.unpack(packer.pack(record))) for record in (Stopped(1), Started(1))] == [Stopped, Started]


@given(st.binary(max_size=200))
def test_garbage_is_an_unpack_error_or_a_record(data: bytes) -> None:
    try:
        record = PACKER.unpack(data)
    except UnpackError:
        return
    assert isinstance(record, Moved | Stopped)


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_cut_record_is_an_unpack_error(cut: int) -> None:
    with pytest.raises(UnpackError):
        PACKER.unpack(PACKER.pack(Moved(1, "a", b"b"))[:-cut])


def test_a_record_outside_the_union_is_refused() -> None:
    class Other(Record, frozen=True):
        slot: int

    other: Packer[Other] = Packer(Other)
    with pytest.raises(UnpackError, match="Other"):
        PACKER.unpack(other.pack(Other(1)))


def test_values_are_frozen_and_replaced_by_copies() -> None:
    record = Moved(1, "a")
    with pytest.raises(AttributeError):
        record.slot = 2  # type: ignore[misc]
    assert replace(record, slot=2) == Moved(2, "a")
    assert record == Moved(1, "a")


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ({"width": "1"}, "Expected `int`, got `str` - at `$.width`"),
        ({"width": 1.0}, "Expected `int`, got `float` - at `$.width`"),
        ({"width": True}, "Expected `int`, got `bool` - at `$.width`"),
        ({"width": 1, "depth": 2}, "unknown field `depth`"),
        ({}, "missing required field `width`"),
        ([1], "Expected `object`, got `array`"),
    ],
)
def test_plain_values_are_converted_strictly(plain: object, words: str) -> None:
    with pytest.raises(UnpackError) as caught:
        from_plain(plain, Size)
    assert words in str(caught.value)


def test_plain_and_back() -> None:
    assert from_plain({"width": 3}, Size) == Size(3, 1)
    assert to_plain({"sizes": [Size(3, 2)]}) == {"sizes": [{"width": 3, "height": 2}]}
