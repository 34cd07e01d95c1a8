from __future__ import annotations

import pytest

from spearpool.worker.executions import CLIENT, Place
from spearpool.worker.neighbours import Neighbour, Neighbours

from .boards import PlainBoard, new_execution


@pytest.fixture
def board() -> PlainBoard:
    return PlainBoard()


@pytest.fixture
def neighbour(board: PlainBoard) -> Neighbour:
    return Neighbour(1, board)


def test_the_first_look_believes_the_board(board: PlainBoard, neighbour: Neighbour) -> None:
    board.rows[1, 0] = (3, 0)
    assert neighbour.free(0) == 3


def test_what_is_on_its_way_counts_until_the_board_shows_it(board: PlainBoard, neighbour: Neighbour) -> None:
    board.rows[1, 0] = (3, 0)
    neighbour.free(0)
    neighbour.hand(new_execution(), 0)
    neighbour.hand(new_execution(), 0)
    assert neighbour.free(0) == 1
    board.rows[1, 0] = (2, 0)  # the first has arrived
    assert neighbour.free(0) == 1
    board.rows[1, 0] = (1, 0)  # and the second
    assert neighbour.free(0) == 1


def test_an_increase_adds_and_a_decrease_caps(board: PlainBoard, neighbour: Neighbour) -> None:
    board.rows[1, 0] = (1, 0)
    neighbour.free(0)
    neighbour.hand(new_execution(), 0)
    board.rows[1, 0] = (2, 0)  # somebody's place became free; ours has not arrived
    assert neighbour.free(0) == 1
    board.rows[1, 0] = (0, 0)
    assert neighbour.free(0) == 0


def test_credit_adds_one_but_not_more_than_the_board_shows(board: PlainBoard, neighbour: Neighbour) -> None:
    board.rows[1, 0] = (1, 0)
    neighbour.free(0)
    neighbour.hand(new_execution(), 0)
    neighbour.credit(0)
    assert neighbour.free(0) == 1
    neighbour.credit(0)
    assert neighbour.free(0) == 1
    board.rows[1, 0] = (0, 0)
    neighbour.credit(0)
    assert neighbour.free(0) == 0


def test_a_refusal_is_believed_until_the_next_look(board: PlainBoard, neighbour: Neighbour) -> None:
    board.rows[1, 0] = (5, 0)
    neighbour.free(0)
    neighbour.refused(0)
    assert neighbour.free(0) == 0
    neighbour.start_afresh()
    assert neighbour.free(0) == 5


def test_handing_over_moves_the_execution(neighbour: Neighbour) -> None:
    execution = new_execution()
    neighbour.hand(execution, 0)
    assert (execution.place, execution.neighbour) == (Place.FORWARDED, 1)
    assert neighbour.forwarded == {execution.execution_id: execution}


def test_equals_are_taken_from_the_next_slot_on(board: PlainBoard) -> None:
    neighbours = Neighbours(2, board)
    for slot in (0, 1, 3, 4):
        board.rows[slot, 0] = (1, 0)
        neighbours.add(slot)
    order = []
    for _ in range(4):
        freest = neighbours.freest(0, draining=False)
        assert freest is not None
        order.append(freest.slot)
        freest.hand(new_execution(), 0)
    assert order == [3, 4, 0, 1]
    assert neighbours.freest(0, draining=False) is None


def test_the_longest_queue_and_ties(board: PlainBoard) -> None:
    neighbours = Neighbours(0, board)
    for slot, queued in ((1, 2), (2, 4), (3, 4)):
        board.rows[slot, 0] = (0, queued)
        neighbours.add(slot)
    assert neighbours.longest(0, CLIENT, draining=False) == (2, 4)
    assert neighbours.longest(0, 3, draining=False) == (3, 4)
    assert neighbours.longest(0, 1, draining=False) == (2, 4)
    assert neighbours.longest(1, 1, draining=False) == (CLIENT, 0)


def test_who_leaves_gets_work_only_from_who_leaves(board: PlainBoard) -> None:
    neighbours = Neighbours(0, board)
    board.rows[1, 0] = (1, 3)
    board.left.add(1)
    neighbours.add(1)
    assert neighbours.freest(0, draining=False) is None
    assert neighbours.freest(0, draining=True) is not None
    board.left.clear()
    assert neighbours.longest(0, CLIENT, draining=True) == (CLIENT, 0)


def test_removal_returns_what_was_there(board: PlainBoard) -> None:
    neighbours = Neighbours(0, board)
    neighbours.add(1)
    execution = new_execution()
    neighbours[1].hand(execution, 0)
    assert neighbours.remove(1) == [execution]
    assert 1 not in neighbours
    assert neighbours.remove(1) == []
