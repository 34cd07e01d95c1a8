from __future__ import annotations

import dataclasses
import inspect
from typing import get_args

import pytest

from spearpool.supervisor import roster_moves

EVENTS = get_args(roster_moves.Event)
ACTIONS = get_args(roster_moves.Action)
MOVES = [
    kind for _, kind in inspect.getmembers(roster_moves, inspect.isclass) if kind.__module__ == roster_moves.__name__
]


def test_every_move_is_either_an_event_or_an_action() -> None:
    assert {*EVENTS, *ACTIONS} == set(MOVES)
    assert len(EVENTS) + len(ACTIONS) == len(MOVES)


@pytest.mark.parametrize("kind", MOVES)
def test_moves_are_frozen_values(kind: type) -> None:
    fields = dataclasses.fields(kind)
    first, second = kind(*range(len(fields))), kind(*range(len(fields)))
    assert first == second
    assert len({first, second}) == 1
    for field in fields:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(first, field.name, 99)


OF_WORKERS = [kind for kind in MOVES if "slot" in kind.__annotations__ and kind is not roster_moves.SlotRemoved]


@pytest.mark.parametrize("kind", OF_WORKERS)
def test_what_concerns_one_worker_names_its_incarnation(kind: type) -> None:
    assert "incarnation" in kind.__annotations__
