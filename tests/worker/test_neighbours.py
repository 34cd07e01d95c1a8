from __future__ import annotations

from math import inf

import pytest

from spearpool.worker.executions import Execution, Place
from spearpool.worker.neighbours import MAX_INVITATIONS, Neighbour, Neighbours

from .boards import WHEN, PlainBoard, new_execution

TASK, OTHER_TASK = 0, 1


@pytest.fixture
def board() -> PlainBoard:
    return PlainBoard()


@pytest.fixture
def neighbours(board: PlainBoard) -> Neighbours:
    """Slot 2's view of slots 1 and 3."""
    found = Neighbours(2, board)
    for slot in (1, 3):
        found.add(slot)
    return found


def send(neighbour: Neighbour, count: int = 1, task: int = TASK) -> list[Execution]:
    sent = [new_execution() for _ in range(count)]
    for execution in sent:
        neighbour.send(execution, task)
    return sent


def freest(neighbours: Neighbours, task: int = TASK, *, draining: bool = False) -> tuple[int, int] | None:
    """Slot and free capacity."""
    neighbour, free = neighbours.freest(task, draining=draining)
    return None if neighbour is None else (neighbour.incarnation, free)


def neediest(neighbours: Neighbours, board: PlainBoard, *, before: float = inf, draining: bool = False) -> int | None:
    neighbour = neighbours.neediest(TASK, board.waiting(TASK, before), draining=draining)
    return None if neighbour is None else neighbour.incarnation


# ------------------------------------------------------------------------------------------------------ what is there


def test_handing_over_moves_the_execution() -> None:
    neighbour, execution = Neighbour(1), new_execution()
    neighbour.hand(execution)
    assert (execution.place, execution.neighbour) == (Place.FORWARDED, 1)
    assert neighbour.forwarded == {execution.execution_id: execution}
    assert not neighbour.on_its_way
    assert neighbour.give_back(execution.execution_id) is execution
    assert neighbour.give_back(execution.execution_id) is None


def test_removal_returns_what_was_there(neighbours: Neighbours) -> None:
    sent = send(neighbours[1])
    assert neighbours.remove(1) == sent
    assert 1 not in neighbours
    assert neighbours.remove(1) == []


def test_what_came_is_counted_anew_on_each_link(neighbours: Neighbours, board: PlainBoard) -> None:
    neighbours.count_in(1)
    neighbours.count_in(1)
    neighbours.count_in(7)  # no such link
    assert board.counted_in == {1: 2, 3: 0}
    neighbours.remove(1)
    neighbours.add(1)
    assert board.counted_in == {1: 0, 3: 0}
    neighbours.count_in(1)
    assert board.counted_in == {1: 1, 3: 0}


# ----------------------------------------------------------------------------------------------- what it has to give


def test_what_is_on_its_way_counts_until_it_has_been_taken_in(neighbours: Neighbours, board: PlainBoard) -> None:
    board.rows[1, TASK] = (3, 0)
    send(neighbours[1], 2)
    assert freest(neighbours) == (1, 1)
    board.rows[1, TASK], board.took[1] = (2, 0), 1
    assert freest(neighbours) == (1, 1)
    board.rows[1, TASK], board.took[1] = (1, 0), 2
    assert freest(neighbours) == (1, 1)
    board.rows[1, TASK] = (2, 0)  # a place became free
    assert freest(neighbours) == (1, 2)


def test_one_look_after_the_other_changes_nothing(neighbours: Neighbours, board: PlainBoard) -> None:
    """A large payload takes long: nothing more is sent after it because time passes."""
    board.rows[1, TASK] = (1, 0)
    send(neighbours[1])
    for _ in range(3):
        neighbours.reconsider()
        assert freest(neighbours) is None


def test_what_is_on_its_way_for_another_task_takes_nothing(neighbours: Neighbours, board: PlainBoard) -> None:
    board.rows[1, TASK] = board.rows[1, OTHER_TASK] = (1, 0)
    send(neighbours[1], task=OTHER_TASK)
    assert freest(neighbours) == (1, 1)
    assert freest(neighbours, OTHER_TASK) is None


def test_what_was_given_back_is_not_on_its_way(neighbours: Neighbours, board: PlainBoard) -> None:
    board.rows[1, TASK] = (2, 0)
    first, second = send(neighbours[1], 2)
    neighbours[1].give_back(first.execution_id)
    assert freest(neighbours) == (1, 1)
    board.took[1] = 1  # the first, although it was given up on the way
    assert freest(neighbours) == (1, 1)
    board.took[1] = 2
    assert freest(neighbours) == (1, 2)
    assert list(neighbours[1].forwarded) == [second.execution_id]


def test_how_much_arrived_is_read_before_the_row_that_counts_it(neighbours: Neighbours, board: PlainBoard) -> None:
    send(neighbours[1])
    board.log.clear()
    freest(neighbours)
    assert board.log == ["arrived", "free"]


def test_who_refused_is_not_asked_until_the_next_look(neighbours: Neighbours, board: PlainBoard) -> None:
    board.rows[1, TASK] = board.rows[1, OTHER_TASK] = (5, 0)
    neighbours[1].refusing.add(TASK)
    assert freest(neighbours) is None
    assert freest(neighbours, OTHER_TASK) == (1, 5)
    neighbours.reconsider()
    assert freest(neighbours) == (1, 5)


def test_the_one_with_most_is_taken_though_another_comes_first(neighbours: Neighbours, board: PlainBoard) -> None:
    board.rows[1, TASK], board.rows[3, TASK] = (4, 0), (2, 0)
    assert freest(neighbours) == (1, 4)
    send(neighbours[1], 3)
    assert freest(neighbours) == (3, 2)


def test_equals_are_taken_from_the_next_slot_on(board: PlainBoard) -> None:
    neighbours = Neighbours(3, board)
    for slot in (1, 2, 4, 5):
        board.rows[slot, TASK] = (1, 0)
        neighbours.add(slot)
    order = []
    while (neighbour := neighbours.freest(TASK, draining=False)[0]) is not None:
        order.append(neighbour.incarnation)
        neighbour.send(new_execution(), TASK)
    assert order == [4, 5, 1, 2]


def test_rows_without_a_link_are_not_believed(neighbours: Neighbours, board: PlainBoard) -> None:
    board.rows[7, TASK] = (9, 9)
    assert freest(neighbours) is None
    assert neediest(neighbours, board) is None


def test_who_leaves_gets_work_only_from_who_leaves(neighbours: Neighbours, board: PlainBoard) -> None:
    board.rows[1, TASK] = (1, 3)
    board.left.add(1)
    assert freest(neighbours) is None
    assert freest(neighbours, draining=True) == (1, 1)
    assert neediest(neighbours, board, draining=True) == 1
    board.left.clear()
    assert neediest(neighbours, board, draining=True) is None


# --------------------------------------------------------------------------------------------------- what it waits for


def test_the_longest_wait_counts_and_not_the_longest_queue(neighbours: Neighbours, board: PlainBoard) -> None:
    board.rows[1, TASK], board.rows[3, TASK] = (0, 1), (0, 9)
    board.heads[1, TASK], board.heads[3, TASK] = WHEN - 2, WHEN - 1
    assert neediest(neighbours, board) == 1
    board.heads[3, TASK] = WHEN - 3
    assert neediest(neighbours, board) == 3
    assert neediest(neighbours, board, before=WHEN - 3) is None


def test_nobody_is_invited_for_more_than_waits(neighbours: Neighbours, board: PlainBoard) -> None:
    board.rows[1, TASK], board.rows[3, TASK] = (0, 2), (0, 2)
    board.heads[1, TASK] = WHEN - 1
    invited = []
    while (slot := neediest(neighbours, board)) is not None:
        neighbours[slot].invited[TASK] += 1
        invited.append(slot)
    assert invited == [1, 1, 3, 3]
    assert neighbours[1].comes(TASK)
    assert neediest(neighbours, board) == 1


def test_nobody_owes_more_than_so_many(neighbours: Neighbours, board: PlainBoard) -> None:
    board.rows[1, TASK] = (0, 1000)
    neighbours[1].invited[TASK] = MAX_INVITATIONS - 1
    assert neediest(neighbours, board) == 1
    neighbours[1].invited[TASK] += 1
    assert neediest(neighbours, board) is None


def test_who_comes_may_have_been_invited_or_not(neighbours: Neighbours) -> None:
    neighbours[1].invited[TASK] += 1
    assert not neighbours[1].comes(OTHER_TASK)
    assert neighbours[1].comes(TASK)
    assert not neighbours[1].comes(TASK)
    assert neighbours[1].invited == {TASK: 0, OTHER_TASK: 0}
