"""Records and descriptors over a control channel: whole, in order, never blocking, and an end that is seen."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.channel import MAX_RECORD_BYTES, Channel, ChannelClosed
from spearpool.packing import Packer, Record, UnpackError


class Word(Record, frozen=True):
    text: str


class Blob(Record, frozen=True):
    data: bytes


Either = Word | Blob
PACKER: Packer[Either] = Packer(Either)
Ends = tuple[Channel[Either, Either], Channel[Either, Either]]


@pytest.fixture
def ends() -> Iterator[Ends]:
    left, right = (Channel(sock, PACKER, PACKER) for sock in Channel.pair())
    yield left, right
    left.close()
    right.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        os.close(fd)


def test_records_arrive_whole_and_in_order(ends: Ends) -> None:
    left, right = ends
    sent: list[Either] = [Word("a"), Blob(b"x" * 1000), Word("")]
    for record in sent:
        left.send(record)
    assert [right.receive() for _ in sent] == [(record, []) for record in sent]
    assert right.receive() is None


@given(st.lists(st.builds(Word, st.text()) | st.builds(Blob, st.binary(max_size=2000)), max_size=20))
def test_both_ways_at_once(records: list[Either]) -> None:
    left, right = (Channel(sock, PACKER, PACKER) for sock in Channel.pair())
    try:
        for record in records:
            left.send(record)
            right.send(record)
        for end in (left, right):
            assert [end.receive() for _ in records] == [(record, []) for record in records]
            assert end.receive() is None
    finally:
        left.close()
        right.close()


def test_the_largest_record_fits_and_a_larger_one_is_refused(ends: Ends) -> None:
    left, right = ends
    overhead = len(PACKER.pack(Blob(bytes(100_000)))) - 100_000
    largest = Blob(bytes(MAX_RECORD_BYTES - overhead))
    left.send(largest)
    assert not left.wants_write
    assert right.receive() == (largest, [])
    with pytest.raises(ValueError, match=f"at most {MAX_RECORD_BYTES} fit"):
        left.send(Blob(bytes(MAX_RECORD_BYTES)))
    assert right.receive() is None


def test_descriptors_travel_with_their_record_and_are_the_receivers(ends: Ends, pipe: tuple[int, int]) -> None:
    left, right = ends
    reader, writer = pipe
    left.send(Word("pipe"), [writer])
    received = right.receive()
    assert received is not None
    record, (copy,) = received
    assert record == Word("pipe")
    assert copy != writer
    assert not os.get_inheritable(copy)
    os.write(copy, b"through")
    os.close(copy)
    assert os.read(reader, 100) == b"through"
    os.write(writer, b"still the sender's")
    assert os.read(reader, 100) == b"still the sender's"


def test_sixteen_descriptors_are_the_most(ends: Ends, pipe: tuple[int, int]) -> None:
    left, right = ends
    left.send(Word("16"), [pipe[0]] * 16)
    received = right.receive()
    assert received is not None
    assert len(received[1]) == 16
    for fd in received[1]:
        os.close(fd)
    left.send(Word("17"), [pipe[0]] * 17)
    with pytest.raises(
        ChannelClosed, match="too many descriptors"
    ):  # and those that came are closed: see the leak check
        right.receive()


def fill(end: Channel[Either, Either]) -> int:
    """Send until the socket is full; how many were sent, the waiting one included."""
    count = 0
    while not end.wants_write:
        end.send(Blob(count.to_bytes(4) + bytes(4096)))
        count += 1
    return count


@pytest.mark.parametrize("may_lack_fds", [False, True])
def test_descriptors_for_which_there_is_no_room(pipe: tuple[int, int], may_lack_fds: bool) -> None:
    left, right = (Channel(sock, PACKER, PACKER, may_lack_fds=may_lack_fds) for sock in Channel.pair())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(pipe[0])
    os.close(free)
    left.send(Word("with"), [pipe[0]])
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        if may_lack_fds:
            assert right.receive() == (Word("with"), [])
        else:
            with pytest.raises(ChannelClosed, match="cut off"):
                right.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        left.close()
        right.close()


def test_that_the_other_end_hung_up_is_seen_before_its_last_words_are_read(ends: Ends) -> None:
    left, right = ends
    left.send(Word("last"))
    seen = [right.hung_up]
    left.close()
    seen.append(right.hung_up)
    assert seen == [False, True]
    assert right.receive() == (Word("last"), [])


def test_a_full_socket_queues_and_flush_goes_on(ends: Ends, pipe: tuple[int, int]) -> None:
    left, right = ends
    count = fill(left)
    left.send(Word("behind"), [pipe[1]])
    numbers: list[int] = []
    while len(numbers) < count:
        received = right.receive()
        if received is None:
            left.flush()
            continue
        assert isinstance(received[0], Blob)
        numbers.append(int.from_bytes(received[0].data[:4]))
    assert numbers == list(range(count))
    left.flush()
    assert not left.wants_write
    last = right.receive()
    assert last is not None
    record, (copy,) = last
    assert record == Word("behind")
    os.write(copy, b"x")
    os.close(copy)


def test_a_waiting_descriptor_may_be_closed_by_the_sender(ends: Ends) -> None:
    left, right = ends
    count = fill(left)
    reader, writer = os.pipe()
    left.send(Word("fd"), [writer])
    os.close(writer)
    for _ in range(count):
        while right.receive() is None:
            left.flush()
    left.flush()
    received = right.receive()
    assert received is not None
    assert os.write(received[1][0], b"alive") == 5
    for fd in (reader, *received[1]):
        os.close(fd)


def test_closing_with_records_waiting_closes_their_descriptors(ends: Ends, pipe: tuple[int, int]) -> None:
    fill(ends[0])
    ends[0].send(Word("fd"), [pipe[0], pipe[1]])
    ends[0].close()  # the leak check looks for the duplicates
    assert not ends[0].wants_write


def test_the_other_end_reads_what_was_sent_and_then_the_end(ends: Ends) -> None:
    left, right = ends
    left.send(Word("last"))
    left.close()
    assert right.receive() == (Word("last"), [])
    with pytest.raises(ChannelClosed, match="end of file"):
        right.receive()


def test_sending_to_nobody_is_told(ends: Ends) -> None:
    left, right = ends
    fill(left)
    right.close()
    with pytest.raises(ChannelClosed):
        left.flush()


def test_sending_to_nobody_is_told_at_once_when_nothing_waits(ends: Ends) -> None:
    ends[1].close()
    with pytest.raises(ChannelClosed):
        ends[0].send(Word("anyone?"))


def test_a_record_of_another_kind_is_an_unpack_error() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel: Channel[Either, Either] = Channel(near, PACKER, PACKER)
    far.send(b"\x93garbage")
    with pytest.raises(UnpackError):
        channel.receive()
    channel.close()
    far.close()


def test_both_ends_are_close_on_exec_and_pollable() -> None:
    left, right = Channel.pair()
    channel: Channel[Either, Either] = Channel(left, PACKER, PACKER)
    assert channel.fileno() == left.fileno()
    assert not os.get_inheritable(left.fileno())
    assert not os.get_inheritable(right.fileno())
    assert not left.getblocking()
    channel.close()
    right.close()
