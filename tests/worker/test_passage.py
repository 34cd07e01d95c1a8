"""What follows what between two workers, word by word. `tests/stateful/test_handover.py` has them die in between."""

from __future__ import annotations

import os
from typing import Any

import pytest

from spearpool.channel import ChannelClosed
from spearpool.worker.control import SupervisorEnd
from spearpool.worker.passage import (
    MAX_UNANSWERED,
    MAX_UNANSWERED_BYTES,
    OFFER_TIMEOUT_S,
    Abandon,
    Accepted,
    Commit,
    Count,
    Discard,
    Keep,
    Offer,
    Passage,
    Ready,
    Reclaim,
    Refused,
    Release,
    Send,
    TakeIn,
    Withdrawn,
    passage_end,
)


def offered(passage: Passage, *connections: Any, state: bytes = b"state") -> None:
    for connection in connections:
        (send,) = passage.offer(connection, state, 0.0)
        assert isinstance(send, Send)
        assert isinstance(send.word, Offer)
        assert (send.word.state, send.connection) == (state, connection)


def busy(passage: Passage) -> bool:
    return passage.busy


def has_room(passage: Passage) -> bool:
    return passage.has_room


def test_given_and_taken() -> None:
    giver, taker = Passage(), Passage()
    assert giver.offer("c", b"state", 0.0) == [Send(Offer(1, b"state"), "c")]
    assert busy(giver)
    assert taker.heard(Offer(1, b"state"), 7) == [Send(Accepted(1))]
    assert busy(taker)
    assert giver.heard(Accepted(1), None) == [Ready("c")]
    assert giver.commit("c") == [Count("c"), Send(Commit(1), "c"), Release("c")]
    assert taker.heard(Commit(1), None) == [TakeIn(b"state", 7, counted=True)]
    assert not busy(giver)
    assert not busy(taker)


def test_refused_when_it_is_not_welcome_or_the_descriptor_did_not_arrive() -> None:
    taker, giver = Passage(), Passage()
    assert taker.heard(Offer(1, b""), 7, welcome=False) == [Discard(7), Send(Refused(1))]
    assert taker.heard(Offer(2, b""), None) == [Send(Refused(2))]
    offered(giver, "c")
    assert giver.heard(Refused(1), None) == [Keep("c")]
    assert not busy(giver)


def test_withdrawn_before_and_after_the_answer() -> None:
    giver, taker = Passage(), Passage()
    offered(giver, "a", "b")
    assert giver.withdraw("a") == [Send(Withdrawn(1), "a"), Keep("a")]
    assert giver.heard(Accepted(1), None) == []
    assert giver.heard(Accepted(2), None) == [Ready("b")]
    assert giver.withdraw("b") == [Send(Withdrawn(2), "b"), Keep("b")]
    taker.heard(Offer(1, b""), 7)
    assert taker.heard(Withdrawn(1), None) == [Discard(7)]
    taker.heard(Offer(2, b""), 8, welcome=False)
    assert taker.heard(Withdrawn(2), None) == []


def test_an_offer_that_is_not_answered_in_time_is_withdrawn() -> None:
    giver = Passage()
    offered(giver, "a")
    giver.offer("b", b"", 0.1)
    assert giver.late(OFFER_TIMEOUT_S - 0.01) == []
    assert giver.late(OFFER_TIMEOUT_S) == ["a"]
    giver.withdraw("a")
    assert not has_room(giver)  # it hangs: nobody else shall wait for it
    giver.heard(Accepted(1), None)
    assert has_room(giver)
    assert busy(giver)


def test_a_neighbour_that_does_not_answer_is_offered_only_so_many() -> None:
    giver = Passage()
    for number in range(1, MAX_UNANSWERED + 1):
        assert has_room(giver)
        offered(giver, number)
    assert not has_room(giver)
    giver.heard(Refused(1), None)
    assert has_room(giver)
    offered(giver, "large", state=bytes(MAX_UNANSWERED_BYTES))
    giver.heard(Refused(2), None)
    assert not has_room(giver)
    giver.heard(Refused(MAX_UNANSWERED + 1), None)
    assert has_room(giver)


def test_what_cannot_be_said() -> None:
    giver = Passage()
    (send,) = giver.offer("a", b"", 0.0)
    assert isinstance(send, Send)
    assert giver.unsent(send) == [Keep("a")]
    assert not busy(giver)
    assert has_room(giver)
    assert giver.unsent(Send(Commit(1), "a")) == [Reclaim("a")]
    assert giver.unsent(Send(Withdrawn(1), "a")) == [Keep("a")]
    assert giver.unsent(Send(Accepted(1))) == []


def test_who_survives_the_giver_inherits_what_it_was_offered() -> None:
    taker = Passage(counted=5)
    for number in (1, 2, 3):
        taker.heard(Offer(number, b"%d" % number), 10 + number)
    taker.heard(Commit(1), None)
    # two were counted as ours since, and only one Commit has arrived
    assert taker.ended(counted=7) == [TakeIn(b"2", 12, counted=True), TakeIn(b"3", 13, counted=False)]
    assert taker.ended(counted=7) == []


def test_who_survives_the_taker_keeps_what_it_offered() -> None:
    giver = Passage()
    offered(giver, "a", "b")
    giver.heard(Accepted(1), None)
    giver.commit("a")
    assert giver.ended(counted=0) == [Keep("b")]


def test_who_ends_the_channel_leaves_its_offers_to_the_other() -> None:
    passage = Passage()
    offered(passage, "a")
    passage.heard(Offer(1, b""), 9)
    assert passage.close() == [Discard(9), Abandon("a")]
    assert passage.close() == []
    assert not busy(passage)


def test_words_and_descriptors_travel() -> None:
    ours, theirs = SupervisorEnd.pair()
    one, other = passage_end(ours), passage_end(theirs)
    reader, writer = os.pipe()
    one.send(Offer(1, b"state"), [writer])
    os.close(writer)
    received = other.receive()
    assert received is not None
    word, (fd,) = received
    assert word == Offer(1, b"state")
    os.close(fd)
    assert os.read(reader, 1) == b""
    os.close(reader)
    for said in (Accepted(1), Refused(2), Commit(3), Withdrawn(4)):
        other.send(said)
        assert one.receive() == (said, [])
    before = one.hung_up
    other.send(Accepted(5))
    other.close()
    assert (before, one.hung_up) == (False, True)
    assert one.receive() == (Accepted(5), [])
    with pytest.raises(ChannelClosed):
        one.receive()
    one.close()
