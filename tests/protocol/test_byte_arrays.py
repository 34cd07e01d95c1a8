"""Arrays of integers 0…255 as bytes: exact, strict, and in pieces where they are large."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.protocol.byte_arrays import read_bytes, write_bytes

PIECE = 64 * 1024


def test_every_byte_has_its_number() -> None:
    text = b"[" + b",".join(b"%d" % number for number in range(256)) + b"]"
    assert write_bytes(bytes(range(256))) == text
    assert read_bytes(text) == bytes(range(256))


@given(st.binary(max_size=300))
def test_what_is_written_is_json_and_is_read_back(data: bytes) -> None:
    text = write_bytes(data)
    assert json.loads(text) == list(data)
    assert b" " not in text
    assert read_bytes(text) == data


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 17])
def test_large_arrays_are_the_same_in_pieces(size: int) -> None:
    data = bytes(index * 7 % 256 for index in range(size))
    text = write_bytes(data)
    assert text == json.dumps(list(data), separators=(",", ":")).encode()
    assert read_bytes(text) == data
    assert read_bytes(json.dumps(list(data), indent=1).encode()) == data


def test_an_array_inside_a_text() -> None:
    assert read_bytes(b'{"payload":[104,105]}', 11, 20) == b"hi"


@pytest.mark.parametrize("text", [b"[]", b"[ \t\r\n]", b" [ ] ", b"[" + b" " * PIECE * 2 + b"]"])
def test_an_empty_array(text: bytes) -> None:
    assert read_bytes(text) == b""


WRONG = [
    b"",
    b"[",
    b"]",
    b"null",
    b'"aGk="',
    b"{}",
    b"7",
    b"[256]",
    b"[-1]",
    b"[-0]",
    b"[1.0]",
    b"[1e0]",
    b"[true]",
    b"[null]",
    b'["1"]',
    b"[[1]]",
    b"[1 2]",
    b"[1,]",
    b"[,1]",
    b"[1,,2]",
    b"[01]",
    b"[0x1]",
    b"[NaN]",
    b"[1]]",
    b"[1][2]",
    b"[1] x",
    b"[99999999999999999999999999]",
    b"[" * 100_000,
]


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:12].decode())
def test_anything_else_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="array of integers from 0 to 255"):
        read_bytes(text)


FILL = b"7," * (PIECE // 2 + 10)


@pytest.mark.parametrize("inner", [b"256", b"-0", b"1.0", b"[1]", b'"a,b"', b"", b" ", b"],[", b"1 2"])
@pytest.mark.parametrize("where", ["begin", "middle", "end"])
def test_one_wrong_element_in_a_large_array_is_refused(inner: bytes, where: str) -> None:
    parts = {"begin": inner + b"," + FILL + b"1", "middle": FILL + inner + b"," + FILL + b"1", "end": FILL + inner}
    with pytest.raises(ValueError, match="array of integers"):
        read_bytes(b"[" + parts[where] + b"]")


@pytest.mark.parametrize(
    "count", range(PIECE // 2 - 2, PIECE // 2 + 4)
)  # the comma where the pieces are cut is among them
@pytest.mark.parametrize("end", [b"", b"  ", b","])
def test_a_trailing_comma_in_a_large_array_is_refused(count: int, end: bytes) -> None:
    with pytest.raises(ValueError, match="array of integers"):
        read_bytes(b"[" + b"7," * count + end + b"]")


def test_a_large_array_needs_its_brackets() -> None:
    for text in (FILL + b"1", b"[" + FILL + b"1", FILL + b"1]"):
        with pytest.raises(ValueError, match="array of integers"):
            read_bytes(text)


@pytest.mark.parametrize("number", [b"7", b"70000"])
def test_reading_takes_a_small_multiple_of_the_data(number: bytes) -> None:
    text = b"[" + b",".join([number] * 1_000_000) + b"]"
    tracemalloc.start()
    try:
        try:
            assert len(read_bytes(text)) == 1_000_000
        except ValueError:
            assert number == b"70000"
        assert tracemalloc.get_traced_memory()[1] < 4_000_000  # a list of it takes 8 MB, one of large numbers 36
    finally:
        tracemalloc.stop()


def test_writing_takes_a_small_multiple_of_the_text() -> None:
    data = b"x" * 1_000_000
    tracemalloc.start()
    try:
        size = len(write_bytes(data))
        assert tracemalloc.get_traced_memory()[1] < 2.5 * size + 1_000_000
    finally:
        tracemalloc.stop()
