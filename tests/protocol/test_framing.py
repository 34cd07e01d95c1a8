"""Frames: the prefix, its limits, and bodies cut out of a stream however its pieces fall."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from spearpool.protocol.framing import PREFIX_BYTES, FrameReader, frame

LIMIT = 1000


def read_all(reader: FrameReader) -> list[bytes]:
    bodies = []
    while (body := reader.next_frame()) is not None:
        bodies.append(body)
    return bodies


def test_the_prefix_is_big_endian_and_counts_the_body() -> None:
    assert frame(b"x" * 258, LIMIT) == b"\x00\x00\x01\x02" + b"x" * 258
    assert PREFIX_BYTES == 4


def test_a_body_may_be_as_large_as_the_limit_and_no_larger() -> None:
    assert len(frame(b"x" * LIMIT, LIMIT)) == PREFIX_BYTES + LIMIT
    with pytest.raises(LocalProtocolError, match="1001 bytes, the limit is 1000") as caught:
        frame(b"x" * (LIMIT + 1), LIMIT)
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_an_empty_body_is_not_written() -> None:
    with pytest.raises(LocalProtocolError, match="needs a body"):
        frame(b"", LIMIT)


@given(st.lists(st.binary(min_size=1, max_size=80)), st.lists(st.integers(1, 60)), st.booleans())
def test_bodies_come_out_however_the_stream_is_cut(bodies: list[bytes], cuts: list[int], eager: bool) -> None:
    stream = b"".join(frame(body, LIMIT) for body in bodies)
    reader = FrameReader(LIMIT)
    out = []
    fed = 0
    for cut in [*cuts, len(stream) + 1]:
        reader.feed(stream[fed : fed + cut])
        fed = min(fed + cut, len(stream))
        if eager:
            out += read_all(reader)
        assert reader.buffered == fed - sum(PREFIX_BYTES + len(body) for body in out)
    assert out + read_all(reader) == bodies
    assert reader.buffered == 0


def test_what_is_not_read_yet_can_be_looked_at() -> None:
    reader = FrameReader(LIMIT)
    assert reader.rest() == b""
    reader.feed(frame(b"one", LIMIT) + b"\0\0")
    assert reader.rest() == frame(b"one", LIMIT) + b"\0\0"
    assert reader.next_frame() == b"one"
    assert reader.rest() == b"\0\0"
    reader.feed(b"\0\3tw")
    assert (reader.next_frame(), reader.rest()) == (None, b"\0\0\0\3tw")


def test_byte_by_byte() -> None:
    reader = FrameReader(LIMIT)
    stream = frame(b"one", LIMIT) + frame(b"two", LIMIT)
    seen = []
    for index in range(len(stream)):
        reader.feed(stream[index : index + 1])
        seen.append(reader.next_frame())
    assert [(index, body) for index, body in enumerate(seen) if body] == [(6, b"one"), (13, b"two")]


def test_two_frames_in_one_piece_and_a_third_begun() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(frame(b"one", LIMIT) + frame(b"two", LIMIT) + frame(b"three", LIMIT)[:-1])
    assert read_all(reader) == [b"one", b"two"]
    assert reader.buffered == PREFIX_BYTES + 4
    reader.feed(b"e")
    assert read_all(reader) == [b"three"]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_piece_may_be_reused_by_its_owner(kind: type) -> None:
    source = bytearray(frame(b"mine", LIMIT) + b"\x00\x00\x00\x04yo")
    reader = FrameReader(LIMIT)
    reader.feed(bytes(source) if kind is bytes else kind(source))
    source[:] = b"#" * len(source)
    assert reader.next_frame() == b"mine"
    rest = bytearray(b"ur")
    reader.feed(kind(rest))
    rest[:] = b"##"
    assert reader.next_frame() == b"your"


def test_bodies_are_bytes_of_their_own() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(frame(b"one", LIMIT))
    assert type(reader.next_frame()) is bytes


@pytest.mark.parametrize("size", [LIMIT + 1, 2**31, 2**32 - 1])
def test_too_large_is_known_from_the_prefix(size: int) -> None:
    reader = FrameReader(LIMIT)
    reader.feed(size.to_bytes(4, "big"))
    for _ in range(2):  # and there is no way on
        with pytest.raises(RemoteProtocolError, match=f"{size} bytes was announced, the limit here is 1000") as caught:
            reader.next_frame()
        assert caught.value.code is ErrorCode.TOO_LARGE


def test_length_zero_is_malformed() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(b"\0\0\0\0" + frame(b"fine", LIMIT))
    with pytest.raises(RemoteProtocolError, match="0 bytes") as caught:
        reader.next_frame()
    assert caught.value.code is ErrorCode.MALFORMED


def test_frames_before_a_bad_one_are_still_good() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(frame(b"good", LIMIT) + b"\xff\xff\xff\xff")
    assert reader.next_frame() == b"good"
    with pytest.raises(RemoteProtocolError):
        reader.next_frame()


def test_the_limit_can_be_raised_between_two_frames() -> None:
    reader = FrameReader(8)
    reader.feed(frame(b"small", LIMIT) + frame(b"rather large", LIMIT))
    assert reader.next_frame() == b"small"
    reader.max_bytes = LIMIT
    assert reader.next_frame() == b"rather large"


def test_an_announced_body_takes_no_memory_before_it_arrives() -> None:
    reader = FrameReader(2**31)
    tracemalloc.start()
    try:
        reader.feed((2**30).to_bytes(4, "big") + b"x" * 100)
        assert reader.next_frame() is None
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


def moved_bytes(pieces: list[bytes], limit: int) -> int:
    """Peak of what one `feed` or `next_frame` allocates, summed: what the reader copies in all."""
    reader = FrameReader(limit)
    total = 0
    tracemalloc.start()
    try:
        for piece in pieces:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            reader.feed(piece)
            read_all(reader)
            total += max(0, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return total


def test_a_large_frame_in_small_pieces_is_not_copied_again_and_again() -> None:
    stream = frame(b"x" * 1_000_000, 2**20)
    pieces = [stream[at : at + 500] for at in range(0, len(stream), 500)]
    assert moved_bytes(pieces, 2**20) < 30 * len(stream)  # quadratic would be 1,000 times


def test_many_small_frames_in_one_piece_are_not_copied_again_and_again() -> None:
    stream = frame(b"x" * 50, LIMIT) * 20_000
    reader = FrameReader(LIMIT)
    reader.feed(stream[:-1])
    tracemalloc.start()
    try:
        for _ in range(19_999):
            assert reader.next_frame()
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


def test_bodies_are_bytes_however_they_came() -> None:
    data = frame(b"one", 10) + frame(b"two", 10)
    for pieces in ([data], [bytearray(data)], [memoryview(data)], [data[:2], data[2:9], data[9:]]):
        reader = FrameReader(10)
        for piece in pieces:
            reader.feed(piece)
        bodies = [reader.next_frame(), reader.next_frame()]
        assert bodies == [b"one", b"two"]
        assert {type(body) for body in bodies} == {bytes}
