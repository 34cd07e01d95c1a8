from __future__ import annotations

import pytest

from spearpool.errors import ErrorCode
from spearpool.worker.books import Books
from spearpool.worker.executions import Action, Agent, Dispatch, Execution, Forward, Nudge, Place, Refuse, Unused
from spearpool.worker.lane import Lane
from spearpool.worker.neighbours import Neighbours
from spearpool.worker.placement import PATIENCE_S, REREAD_S, Placement

from .boards import ME, WHEN, PlainBoard, new_agent, new_execution

TASK = 0


class House:
    """A placement with its books, and two neighbours, in slots 1 and 2."""

    def __init__(self) -> None:
        self.board = PlainBoard()
        self.lane = Lane("a", TASK)
        self.neighbours = Neighbours(ME, self.board)
        for slot in (1, 2):
            self.neighbours.add(slot)
        lanes = {"a": self.lane}
        self.books = Books(lanes, self.neighbours)
        self.placement = Placement(lanes, self.books, self.neighbours, self.board)
        self.actions: list[Action] = []

    def agent(self, capacity: int = 1) -> Agent:
        agent = new_agent(capacity=capacity)
        self.lane.join(agent)
        return agent

    def busy_agent(self, capacity: int = 1) -> Agent:
        """One whose places are all in use."""
        agent = self.agent(capacity)
        for number in range(capacity):
            self.lane.hold(agent, f"held {number}", None)
        return agent

    def queue(self, received_at: float = WHEN) -> Execution:
        execution = new_execution(received_at=received_at)
        self.books.accept(execution)
        self.placement.wait(self.lane, execution, 0.0)
        self.placement.publish(self.lane)
        return execution

    def come(self, source: int = 1, now: float = 0.0) -> Execution:
        """A neighbour's execution arrives."""
        execution = new_execution(source=source)
        self.placement.take_in(self.lane, execution, now, self.actions)
        return execution

    def offer(self, told: int = 9) -> list[Action]:
        actions: list[Action] = []
        self.placement.offer(self.lane, actions, told)
        return actions

    def reread(self, now: float) -> list[Action]:
        actions: list[Action] = []
        self.placement.reread(now, actions)
        return actions


@pytest.fixture
def house() -> House:
    return House()


# ------------------------------------------------------------------------------------------------------ one execution


def test_an_agent_here(house: House) -> None:
    agent, execution = house.agent(), new_execution()
    assert house.placement.place_here(house.lane, execution, house.actions)
    assert house.actions == [Dispatch(execution, agent)]
    assert not house.placement.place_here(house.lane, new_execution(), house.actions)


def test_a_neighbour(house: House) -> None:
    house.board.rows[1, TASK] = (1, 0)
    execution = new_execution()
    assert house.placement.place_there(house.lane, execution, house.actions)
    assert house.actions == [Forward(execution, 1)]
    assert not house.placement.place_there(house.lane, new_execution(), house.actions)


def test_ours_are_announced_before_neighbours_are_looked_at(house: House) -> None:
    house.busy_agent(2)
    house.lane.release(next(iter(house.lane.agents)), "held 1")
    house.board.log.clear()
    house.placement.place_there(house.lane, new_execution(), house.actions)
    assert house.board.log == ["publish", "free"]


def test_a_neighbours_execution_takes_a_place(house: House) -> None:
    agent = house.agent(capacity=2)
    execution = house.come()
    assert house.actions == [Dispatch(execution, agent)]
    assert house.books.executions == {execution.execution_id: execution}
    assert house.board.rows[ME, TASK] == (1, 0)


def test_or_waits_as_a_guest_if_they_are_few(house: House) -> None:
    house.busy_agent(2)
    guests = [house.come() for _ in range(4)]
    assert house.actions == []
    assert list(house.lane.guests.values()) == guests
    assert house.board.rows[ME, TASK] == (0, 4)
    refused = house.come()
    assert house.actions == [Refuse(refused, ErrorCode.OVERLOADED, "no free capacity here")]
    assert refused.execution_id not in house.books.executions
    assert house.books.queued == 4


def test_or_if_it_was_asked_for(house: House) -> None:
    house.busy_agent()
    house.neighbours[1].invited[TASK] = 3
    asked_for = [house.come() for _ in range(3)]
    house.come()
    assert list(house.lane.guests.values()) == asked_for
    assert len(house.actions) == 1


def test_nobody_waits_where_no_agent_is(house: House) -> None:
    house.neighbours[1].invited[TASK] = 1
    execution = house.come()
    assert house.actions == [Refuse(execution, ErrorCode.OVERLOADED, "no free capacity here")]
    assert house.neighbours[1].invited[TASK] == 0


def test_what_waits_is_looked_after(house: House) -> None:
    house.placement.wait(house.lane, new_execution(), 5.0)
    house.placement.wait(house.lane, new_execution(), 5.001)
    assert house.placement.reread_at == 5.0 + REREAD_S


# -------------------------------------------------------------------------------------------------------- what waits


def test_serve_leaves_neighbours_alone_and_pump_does_not(house: House) -> None:
    house.board.rows[1, TASK] = (1, 0)
    execution = house.queue()
    house.placement.serve(house.lane, house.actions)
    assert house.actions == []
    assert house.board.rows[ME, TASK] == (0, 1)
    house.placement.pump(house.lane, house.actions)
    assert house.actions == [Forward(execution, 1)]
    assert house.board.rows[ME, TASK] == (0, 0)


def test_guests_are_served_first_and_in_their_order(house: House) -> None:
    agent = house.busy_agent()
    ours = house.queue()
    first, second = house.come(1), house.come(2)
    house.lane.retire(agent)
    for execution in (first, second, ours):
        served = house.agent()
        house.placement.serve(house.lane, house.actions)
        assert house.actions.pop() == Dispatch(execution, served)


def test_guests_are_not_passed_on(house: House) -> None:
    house.busy_agent()
    guest = house.come(1)
    house.board.rows[2, TASK] = (5, 0)
    house.placement.pump(house.lane, house.actions)
    assert house.actions == []
    assert guest.place is Place.QUEUED


def test_an_invitation_is_accepted_though_the_board_shows_no_place(house: House) -> None:
    execution = house.queue()
    house.placement.accept_invitation(house.lane, house.neighbours[2], house.actions)
    assert house.actions == [Forward(execution, 2)]
    assert house.neighbours[2].coming(TASK) == 1
    assert house.board.rows[ME, TASK] == (0, 0)


@pytest.mark.parametrize("why", ["nothing waits", "it leaves", "it does not read"])
def test_or_said_to_be_of_no_use(house: House, why: str) -> None:
    if why != "nothing waits":
        house.queue()
    house.board.left |= {1} if why == "it leaves" else set()
    house.board.deaf |= {1} if why == "it does not read" else set()
    house.placement.accept_invitation(house.lane, house.neighbours[1], house.actions)
    assert house.actions == [Unused(1, "a")]


def test_who_leaves_sends_to_who_leaves(house: House) -> None:
    execution = house.queue()
    house.board.left.add(1)
    house.placement.draining = True
    house.placement.accept_invitation(house.lane, house.neighbours[1], house.actions)
    assert house.actions == [Forward(execution, 1)]


def test_the_board_is_read_again_while_something_waits(house: House) -> None:
    house.busy_agent()
    house.queue()
    house.neighbours[1].refusing.add(TASK)
    assert house.reread(5.0) == []
    assert house.placement.reread_at == 5.0 + REREAD_S
    assert not house.neighbours[1].refusing
    house.board.rows[1, TASK] = (1, 0)
    assert [type(action) for action in house.reread(6.0)] == [Forward]
    assert house.placement.reread_at == float("inf")


def test_nor_is_it_read_again_for_nobody(house: House) -> None:
    house.queue()
    for slot in (1, 2):
        house.neighbours.remove(slot)
    house.reread(5.0)
    assert house.placement.reread_at == float("inf")


def test_guests_go_home_when_somebody_else_has_places(house: House) -> None:
    house.busy_agent(2)
    early, late, later = house.come(now=1.0), house.come(now=1.0), house.come(now=1.0 + REREAD_S)
    house.board.rows[2, TASK] = (1, 0)
    assert house.reread(1.0 + REREAD_S / 2) == []
    assert house.reread(1.0 + REREAD_S) == [Refuse(early, ErrorCode.OVERLOADED, "no free capacity here")]
    house.board.rows[2, TASK] = (5, 0)
    assert house.reread(1.0 + REREAD_S) == [Refuse(late, ErrorCode.OVERLOADED, "no free capacity here")]
    assert list(house.lane.guests.values()) == [later]
    assert house.board.rows[ME, TASK] == (0, 1)
    assert list(house.books.executions.values()) == [later]


def test_guests_go_home_at_the_next_look_when_no_agent_is_left(house: House) -> None:
    agent = house.busy_agent()
    guests = [house.come(now=1.0), house.come(now=1.0)]
    house.lane.retire(agent)
    assert house.reread(1.0) == [Refuse(guest, ErrorCode.OVERLOADED, "no free capacity here") for guest in guests]
    assert house.books.queued == 0


# ------------------------------------------------------------------------------------------------------ what is free


def test_free_capacity_goes_to_the_longest_wait(house: House) -> None:
    house.agent()
    house.board.rows[1, TASK], house.board.rows[2, TASK] = (0, 9), (0, 1)
    house.board.heads[2, TASK] = WHEN - 1
    assert house.offer() == [Nudge(2, "a")]
    assert house.neighbours[2].invited == {TASK: 1}


def test_who_is_told_already_is_not_nudged_unless_the_place_is_gone_again(house: House) -> None:
    agent = house.agent()
    house.board.rows[1, TASK] = (0, 9)
    assert house.offer(told=1) == []
    assert house.offer(told=2) == [Nudge(1, "a")]
    house.lane.hold(agent, "a guest's", None)
    assert house.offer(told=1) == [Nudge(1, "a")]


def test_our_own_queue_comes_first_unless_another_waits_much_longer(house: House) -> None:
    house.busy_agent()
    house.queue(received_at=WHEN)
    house.board.rows[1, TASK] = (0, 1)
    house.board.heads[1, TASK] = WHEN - PATIENCE_S
    assert house.offer() == []
    house.lane.fair_until = 0.0
    house.board.heads[1, TASK] = WHEN - PATIENCE_S - 0.001
    assert house.offer() == [Nudge(1, "a")]


def test_the_board_is_not_looked_at_while_our_head_hardly_changes(house: House) -> None:
    house.busy_agent()
    house.queue(received_at=WHEN)
    house.offer()
    house.board.log.clear()
    house.offer()
    assert house.board.log == []
    house.books.dequeue(house.lane.queue)
    house.queue(received_at=WHEN + 0.002)
    house.board.log.clear()
    house.offer()
    assert house.board.log == ["waiting"]


def test_the_board_is_looked_at_each_time_while_nothing_waits_here(house: House) -> None:
    house.agent()
    assert house.offer() == []
    house.board.rows[1, TASK] = (0, 1)
    assert house.offer() == [Nudge(1, "a")]


def test_a_single_worker_does_not_look_at_the_board(house: House) -> None:
    for slot in (1, 2):
        house.neighbours.remove(slot)
    house.agent()
    house.board.log.clear()
    assert house.offer() == []
    house.queue()
    assert (house.board.log, house.board.heads[ME, TASK]) == (["publish"], 0.0)


def test_the_longest_wait_may_be_ours(house: House) -> None:
    house.queue(received_at=WHEN)
    house.board.rows[1, TASK] = (0, 1)
    assert house.placement.is_neediest(house.lane)
    house.board.heads[1, TASK] = WHEN - 1
    assert not house.placement.is_neediest(house.lane)


def test_an_unchanged_row_is_not_written_again(house: House) -> None:
    house.agent()
    house.board.log.clear()
    house.placement.publish(house.lane)
    house.placement.publish(house.lane)
    assert house.board.log == ["publish"]


def test_the_row_says_since_when_the_head_waits(house: House) -> None:
    house.queue(received_at=7.0)
    house.queue(received_at=8.0)
    assert house.board.heads[ME, TASK] == 7.0
    house.books.dequeue(house.lane.queue)
    house.placement.publish(house.lane)
    assert house.board.heads[ME, TASK] == 8.0
