from __future__ import annotations

from math import inf

import pytest

from spearpool.worker.books import REATTACH_GRACE_S, Books
from spearpool.worker.executions import Place
from spearpool.worker.lane import Lane
from spearpool.worker.neighbours import Neighbours

from .boards import ME, PlainBoard, new_agent, new_execution


@pytest.fixture
def lane() -> Lane:
    return Lane("a", 0)


@pytest.fixture
def neighbours() -> Neighbours:
    return Neighbours(ME, PlainBoard())


@pytest.fixture
def books(lane: Lane, neighbours: Neighbours) -> Books:
    return Books({"a": lane}, neighbours)


def test_counts_what_waits(books: Books, lane: Lane) -> None:
    first, second = new_execution(size_bytes=3), new_execution(size_bytes=4)
    books.enqueue(lane, second, 1.0)
    books.enqueue(lane, first, 1.0, first=True)
    assert (books.queued, books.queued_bytes) == (2, 7)
    assert books.dequeue(lane.queue) is first
    books.detach(second)
    assert (books.queued, books.queued_bytes, len(lane.queue)) == (0, 0, 0)


def test_detaching_leaves_the_agents_place_in_use(books: Books, lane: Lane) -> None:
    agent, execution = new_agent(), new_execution()
    lane.join(agent)
    books.accept(execution)
    books.start(lane, execution, agent)
    books.detach(execution)
    books.end(execution)
    assert agent.running == {execution.execution_id: None}
    assert (lane.free, execution.place, execution.agent) == (0, Place.ENDED, None)


def test_lost_ones_are_due_soon_and_found_ones_at_their_deadline(books: Books, lane: Lane) -> None:
    agent, execution = new_agent(), new_execution(deadline=100.0)
    lane.join(agent)
    books.accept(execution)
    books.lose(execution, 1.0)
    assert books.due.next() == 1.0 + REATTACH_GRACE_S
    books.detach(execution)
    books.start(lane, execution, agent)
    assert not books.lost
    assert list(books.due.due(99.0)) == []
    assert list(books.due.due(100.0)) == [execution.execution_id]


def test_a_deadline_before_the_grace_counts(books: Books) -> None:
    execution = new_execution(deadline=1.5)
    books.accept(execution)
    books.lose(execution, 1.0)
    assert list(books.due.due(1.5)) == [execution.execution_id]


def test_leaves_a_neighbour(books: Books, neighbours: Neighbours) -> None:
    neighbours.add(1)
    execution = new_execution()
    books.accept(execution)
    neighbours[1].send(execution, 0)
    books.detach(execution)
    assert (neighbours[1].forwarded, neighbours[1].on_its_way) == ({}, {})


def test_guests_wait_apart(books: Books, lane: Lane) -> None:
    ours, first, second = new_execution(), new_execution(source=1), new_execution(source=2)
    for execution in (ours, first, second):
        books.enqueue(lane, execution, 1.0)
    assert list(lane.queue.values()) == [ours]
    assert list(lane.guests.values()) == [first, second]
    assert (books.queued, books.queued_bytes) == (3, 30)
    assert books.snapshot(draining=False).tasks["a"].queued == 3
    books.detach(second)
    assert list(lane.guests.values()) == [first]
    assert books.queued == 2


def test_snapshot_tells_all_of_it(books: Books, lane: Lane) -> None:
    waiting, lost = new_execution(), new_execution()
    for execution in (waiting, lost):
        books.accept(execution)
    books.enqueue(lane, waiting, 0.0)
    books.lose(lost, 0.0)
    lane.join(new_agent(capacity=4))
    snapshot = books.snapshot(draining=True)
    assert (snapshot.live, snapshot.queued, snapshot.queued_bytes, snapshot.lost) == (2, 1, 10, 1)
    assert snapshot.draining
    task = snapshot.tasks["a"]
    assert (task.agents, task.free, task.queued, task.available) == (1, 4, 1, True)


def test_what_has_ended_is_nowhere(books: Books) -> None:
    execution = new_execution(deadline=5.0)
    books.accept(execution)
    books.end(execution)
    assert not books.executions
    assert list(books.due.due(inf)) == []
