from __future__ import annotations

import pytest

from spearpool.errors import PoolError
from spearpool.metrics.bus.frames import (
    Encoding,
    Header,
    Topic,
    event_topic,
    name_topic,
    scope_of,
    slot_of,
    topic,
    worker_prefixes,
)

HEADER = Header(Encoding.RECORDS, 1024, 2**63 - 1, 2**60, 2**64 - 1, 1_700_000_000_000_000_000, 5)


def test_a_header_is_fixed_and_comes_back() -> None:
    packed = HEADER.pack()
    assert len(packed) == 48
    assert Header.unpack(packed) == HEADER


@pytest.mark.parametrize("data", [b"", b"\x02" + HEADER.pack()[1:], HEADER.pack() + b"\0", HEADER.pack()[:-1]])
def test_a_foreign_header_is_refused(data: bytes) -> None:
    with pytest.raises(PoolError, match="this spearpool reads 1"):
        Header.unpack(data)


def test_a_subscription_to_worker_1_is_none_to_worker_10() -> None:
    one = topic(Topic.COUNTERS, 1)
    assert one == b"sp1.c.1."
    assert not topic(Topic.COUNTERS, 10).startswith(one)
    assert event_topic(2, slots=16).startswith(topic(Topic.EVENTS, 1))
    assert not event_topic(20, slots=16).startswith(topic(Topic.EVENTS, 1))


def test_each_seat_has_topics_of_its_own() -> None:
    assert [event_topic(seat, slots=2) for seat in range(5)] == [
        b"sp1.e.0.0.",
        b"sp1.e.0.1.",
        b"sp1.e.1.0.",
        b"sp1.e.1.1.",
        b"sp1.e.supervisor.0.",
    ]
    assert name_topic(3, slots=2) == b"sp1.n.1.1."
    assert scope_of(2, slots=2) == "supervisor"


@pytest.mark.parametrize(
    ("name", "slot"),
    [(b"sp1.e.12.1.", 12), (b"sp1.c.0.", 0), (b"sp1.e.supervisor.0.", None), (b"sp1.i.pool.", None)],
)
def test_a_topic_names_its_slot(name: bytes, slot: int | None) -> None:
    assert slot_of(name) == slot


def test_prefixes_of_chosen_workers_and_of_all() -> None:
    assert worker_prefixes(Topic.WORKERS, [3, 1, 3]) == [b"sp1.w.1.", b"sp1.w.3."]
    assert worker_prefixes(Topic.WORKERS, []) == [b"sp1.w."]
