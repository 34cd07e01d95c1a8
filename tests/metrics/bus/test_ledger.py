from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.errors import PoolError
from spearpool.metrics.bus.ledger import Ledger, Missing

TOPIC = b"sp1.e.0.0."


def test_what_was_before_the_subscription_is_not_missing() -> None:
    ledger = Ledger()
    ledger.begin({TOPIC: (100, 7)})
    assert ledger.frame(TOPIC, 100, 5, 7) is None
    assert ledger.reached(TOPIC, 105, 7) is None


def test_a_topic_that_was_never_heard_of_begins_at_zero() -> None:
    ledger = Ledger()
    assert ledger.frame(TOPIC, 2, 1, 0) == Missing(TOPIC, first=0, ring=0, bus=2)


def test_the_ring_s_own_count_divides_the_loss() -> None:
    ledger = Ledger()
    ledger.begin({TOPIC: (10, 1)})
    assert ledger.frame(TOPIC, 30, 5, 13) == Missing(TOPIC, first=10, ring=12, bus=8)
    assert ledger.reached(TOPIC, 36, 14) == Missing(TOPIC, first=35, ring=1, bus=0)
    assert ledger.reached(TOPIC, 36, 14) is None


@pytest.mark.parametrize(
    ("sequence", "lost"), [(9, 1), (10, 0), (12, 4)], ids=["back", "found again", "more than gone"]
)
def test_a_contradiction_is_an_error(sequence: int, lost: int) -> None:
    ledger = Ledger()
    ledger.begin({TOPIC: (10, 1)})
    with pytest.raises(PoolError, match="contradicts itself"):
        ledger.frame(TOPIC, sequence, 1, lost)


Step = tuple[str, int]
STEPS = st.lists(st.tuples(st.sampled_from(["frame", "dropped frame", "overrun", "heartbeat"]), st.integers(1, 50)))


@given(begin=st.tuples(st.integers(0, 1000), st.integers(0, 10)), steps=STEPS)
def test_received_and_lost_are_all_that_was_written(begin: tuple[int, int], steps: list[Step]) -> None:
    """A model of ring and bus: what the ledger says is missing is what was taken away, each from its own place."""
    ledger = Ledger()
    ledger.begin({TOPIC: begin})
    position, lost = begin
    received = ring = bus = truly_ring = truly_bus = 0
    for what, count in [*steps, ("heartbeat", 1)]:
        missing = None
        match what:
            case "overrun":
                position, lost, truly_ring = position + count, lost + count, truly_ring + count
            case "dropped frame":
                position, truly_bus = position + count, truly_bus + count
            case "frame":
                missing = ledger.frame(TOPIC, position, count, lost)
                position, received = position + count, received + count
            case "heartbeat":
                missing = ledger.reached(TOPIC, position, lost)
        if missing:
            ring, bus = ring + missing.ring, bus + missing.bus
    assert (ring, bus) == (truly_ring, truly_bus)
    assert received + ring + bus == position - begin[0]
