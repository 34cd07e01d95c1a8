"""Loads stay exact while connections move, whoever has got how far."""

from __future__ import annotations

from pathlib import Path

from spearpool.metrics.loads import Loads
from spearpool.metrics.seat import Seat

from .segments import new_segment


def test_what_is_on_its_way_counts_for_whoever_gets_it(tmp_path: Path) -> None:
    with new_segment(tmp_path) as segment:
        giver, taker, onlooker = (Loads(segment, seat) for seat in (0, 2, 3))
        giver.hold(5)
        taker.hold(1)
        assert onlooker.of([0, 2, 3]) == {0: 5, 2: 1, 3: 0}
        giver.send(2)
        giver.hold(-1)
        assert onlooker.of([0, 2]) == {0: 4, 2: 2}
        taker.hold(1)
        taker.receive(0)
        assert onlooker.of([0, 2]) == {0: 4, 2: 2}
        giver.send(2)
        giver.hold(-1)
        giver.hold(1)
        giver.send(2, -1)  # it came back
        assert onlooker.of([0, 2]) == {0: 4, 2: 2}


def test_both_directions_are_kept_apart(tmp_path: Path) -> None:
    with new_segment(tmp_path) as segment:
        one, other = Loads(segment, 0), Loads(segment, 2)
        one.send(2, 3)
        other.send(0, 2)
        other.receive(0)
        assert one.of([0, 2]) == {0: 2, 2: 2}


def test_a_new_occupant_begins_from_zero(tmp_path: Path) -> None:
    with new_segment(tmp_path) as segment:
        seat = Seat(segment, 2)
        seat.occupy(1, 1000)
        one, other = Loads(segment, 0), Loads(segment, 2)
        one.hold(4)
        one.send(2, 2)
        one.receive(2)
        other.hold(7)
        other.send(0, 3)
        seat.vacate()
        assert one.of([0, 2]) == {0: 4, 2: 2}  # until the other one knows of it
        one.meet(2)
        seat.occupy(2, 1001)
        assert one.of([0, 2]) == {0: 4, 2: 0}
        other.send(0)
        assert one.of([0]) == {0: 5}
