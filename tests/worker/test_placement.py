from __future__ import annotations

import pytest

from spearpool.worker.books import Books
from spearpool.worker.executions import Action, Dispatch, Forward, Nudge
from spearpool.worker.lane import Lane
from spearpool.worker.neighbours import Neighbours
from spearpool.worker.placement import Placement

from .boards import ME, PlainBoard, new_agent, new_execution


class House:
    """A placement with its books, and one neighbour in slot 1."""

    def __init__(self) -> None:
        self.board = PlainBoard()
        self.lane = Lane("a", 0)
        self.neighbours = Neighbours(ME, self.board)
        self.neighbours.add(1)
        self.books = Books({"a": self.lane}, self.neighbours)
        self.placement = Placement(self.books, self.neighbours, self.board)
        self.actions: list[Action] = []


@pytest.fixture
def house() -> House:
    return House()


def test_an_agent_here_comes_before_any_neighbour(house: House) -> None:
    agent, execution = new_agent(), new_execution()
    house.lane.join(agent)
    house.board.rows[1, 0] = (9, 0)
    assert house.placement.find_place(house.lane, execution, house.actions)
    assert house.actions == [Dispatch(execution, agent)]


def test_a_neighbour_comes_before_waiting(house: House) -> None:
    house.board.rows[1, 0] = (1, 0)
    execution = new_execution()
    assert house.placement.find_place(house.lane, execution, house.actions)
    assert house.actions == [Forward(execution, 1)]
    assert not house.placement.find_place(house.lane, new_execution(), house.actions)


def test_what_was_forwarded_is_not_forwarded_again(house: House) -> None:
    house.board.rows[1, 0] = (1, 0)
    assert not house.placement.find_place(house.lane, new_execution(source=3), house.actions)


def test_serve_leaves_neighbours_alone_and_pump_does_not(house: House) -> None:
    house.board.rows[1, 0] = (1, 0)
    execution = new_execution()
    house.books.enqueue(house.lane, execution, 0.0)
    house.placement.serve(house.lane, house.actions)
    assert house.actions == []
    assert house.board.rows[ME, 0] == (0, 1)
    house.placement.pump(house.lane, house.actions)
    assert house.actions == [Forward(execution, 1)]
    assert house.board.rows[ME, 0] == (0, 0)


def test_nobody_is_nudged_without_something_to_offer(house: House) -> None:
    house.board.rows[1, 0] = (0, 3)
    house.placement.offer(house.lane, house.actions)
    assert house.actions == []
    house.lane.join(new_agent())
    house.placement.offer(house.lane, house.actions, told=1)
    assert house.actions == []
    house.placement.offer(house.lane, house.actions)
    assert house.actions == [Nudge(1, "a")]


def test_an_unchanged_row_is_not_written_again(house: House) -> None:
    house.lane.join(new_agent())
    house.placement.publish(house.lane)
    house.placement.publish(house.lane)
    assert house.board.log == [("write", ME)]


def test_the_longest_queue_may_be_ours(house: House) -> None:
    house.board.rows[1, 0] = (0, 1)
    assert not house.placement.is_longest(house.lane)
    house.books.enqueue(house.lane, new_execution(), 0.0)
    assert house.placement.is_longest(house.lane)
