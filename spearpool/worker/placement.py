"""Where an execution can go now: to an agent here, to a neighbour, or nowhere yet.

The board is touched here and nowhere else, our own row always before the others' are read.
"""

from __future__ import annotations

from .books import Books
from .executions import CLIENT, Action, Dispatch, Execution, Forward, Nudge
from .lane import Lane
from .neighbours import Board, Neighbours

__all__ = ["Placement"]


class Placement:
    """Finds places. While `draining`, neighbours that leave too are as good as any: nobody else may be left."""

    def __init__(self, books: Books, neighbours: Neighbours, board: Board) -> None:
        self._books = books
        self._neighbours = neighbours
        self._board = board
        self.draining = False

    def find_place(self, lane: Lane, execution: Execution, actions: list[Action]) -> bool:
        """Give it to an agent here, or, unless it has made its hop, to the neighbour with most free capacity."""
        agent = lane.idlest()
        if agent is not None:
            self._books.start(lane, execution, agent)
            actions.append(Dispatch(execution, agent))
            return True
        if execution.source != CLIENT or not self._neighbours:
            return False
        self.publish(lane)
        neighbour = self._neighbours.freest(lane.index, draining=self.draining)
        if neighbour is None:
            return False
        neighbour.hand(execution, lane.index)
        actions.append(Forward(execution, neighbour.slot))
        return True

    def serve(self, lane: Lane, actions: list[Action]) -> None:
        """Give the head of the queue to agents here while any has a place."""
        while lane.queue and (agent := lane.idlest()) is not None:
            execution = self._books.dequeue(lane)
            self._books.start(lane, execution, agent)
            actions.append(Dispatch(execution, agent))
        self.publish(lane)

    def pump(self, lane: Lane, actions: list[Action]) -> None:
        """The same, and then to neighbours."""
        self.serve(lane, actions)
        while lane.queue and (neighbour := self._neighbours.freest(lane.index, draining=self.draining)) is not None:
            execution = self._books.dequeue(lane)
            neighbour.hand(execution, lane.index)
            actions.append(Forward(execution, neighbour.slot))
            self.publish(lane)

    def offer(self, lane: Lane, actions: list[Action], told: int = CLIENT) -> None:
        """Nudge the neighbour with the longest queue, unless the answer to `told` says as much already."""
        if lane.free and self._neighbours and not lane.queue:
            slot, _ = self._neighbours.longest(lane.index, told, draining=self.draining)
            if slot not in {CLIENT, told}:
                actions.append(Nudge(slot, lane.name))

    def is_longest(self, lane: Lane) -> bool:
        """Whether no neighbour has a longer queue: then a place that becomes free is ours to use."""
        _, length = self._neighbours.longest(lane.index, CLIENT, draining=self.draining)
        return length <= len(lane.queue)

    def publish(self, lane: Lane) -> None:
        row = (lane.free, len(lane.queue))
        if row != lane.published:
            lane.published = row
            self._board.publish(lane.index, *row)
