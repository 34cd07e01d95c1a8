"""What a dispatcher knows of the other workers: what it gave them, what it promised them, and what they have to give.

Workers are named by their incarnation, because a slot can have two: one that leaves, and its heir.

The board is read, never waited for; being out of date costs a refused hop or a wait of 10 ms, never an execution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from spearpool.protocol.identifiers import execution_incarnation

from .executions import Execution, Place

__all__ = ["MAX_INVITATIONS", "Board", "Neighbour", "Neighbours"]

MAX_INVITATIONS = 16
"""How many nudges a neighbour may owe us an execution for: what a link's delay keeps on its way, and no more, so that a
worker that hung for a while does not come back with its whole queue."""


class Board(Protocol):
    """The board, seen from one worker. The dispatcher touches it itself: the order of store and loads matters."""

    def publish(self, task: int, free: int, queued: int, since: float) -> None:
        """Store our own row for a task. `since` is when the head of our queue was received, 0 without a queue."""
        ...

    def free(self, task: int) -> Mapping[int, int]:
        """Free capacity by worker, of the neighbours that have some and read what is written to them."""
        ...

    def waiting(self, task: int, before: float) -> Mapping[int, float]:
        """Since when the head of its queue has waited, by worker, of the neighbours where that is before then."""
        ...

    def queued(self, incarnation: int, task: int) -> int:
        """How many executions wait at that neighbour."""
        ...

    def publish_arrived(self, incarnation: int, count: int) -> None:
        """Store how many executions of that neighbour we have taken in (or refused) since there is a link to it."""
        ...

    def arrived(self, incarnation: int) -> int:
        """How many of ours that neighbour has taken in."""
        ...

    def leaving(self, incarnation: int) -> bool:
        """Whether that neighbour is being emptied."""
        ...

    def congested(self, incarnation: int) -> bool:
        """Whether it does not read what we write to it."""
        ...


@dataclass(slots=True, eq=False)
class Neighbour:
    """What one neighbour got from us, and we from it.

    Its row does not count yet what is on its way to it. How much that is, is known exactly: a link keeps the order, we
    number what we send, and the neighbour publishes how many it has taken in, always after the row that counts them.
    """

    incarnation: int
    forwarded: dict[str, Execution] = field(default_factory=dict)
    came: int = 0
    invited: Counter[int] = field(default_factory=Counter)
    refusing: set[int] = field(default_factory=set)
    on_its_way: dict[str, tuple[int, int]] = field(default_factory=dict)  # the number of each, and its task
    _sent: int = 0

    def hand(self, execution: Execution) -> None:
        """The execution is there from now on."""
        execution.place, execution.agent, execution.who = Place.FORWARDED, None, None
        execution.neighbour = self.incarnation
        self.forwarded[execution.execution_id] = execution

    def send(self, execution: Execution, task: int) -> None:
        """The same, and it has to get there first."""
        self.hand(execution)
        self._sent += 1
        self.on_its_way[execution.execution_id] = (self._sent, task)

    def give_back(self, execution_id: str) -> Execution | None:
        """It is not there any more; None when it was not."""
        self.on_its_way.pop(execution_id, None)
        return self.forwarded.pop(execution_id, None)

    def settle(self, count: int) -> None:
        """The neighbour has taken in the first `count` of what we sent."""
        while self.on_its_way:
            first = next(iter(self.on_its_way))
            if self.on_its_way[first][0] > count:
                break
            del self.on_its_way[first]

    def coming(self, task: int) -> int:
        """How many executions of a task are on their way to it."""
        return sum(theirs == task for _, theirs in self.on_its_way.values())

    def comes(self, task: int) -> bool:
        """It sent an execution, or word that it has none: whether that answers a nudge of ours."""
        invited = self.invited[task] > 0
        self.invited[task] -= invited
        return invited


class Neighbours:
    """All workers with a link to `incarnation`. Of those with equal rows everybody takes the first that is younger."""

    def __init__(self, incarnation: int, board: Board) -> None:
        self._incarnation = incarnation
        self._board = board
        self.by_incarnation: dict[int, Neighbour] = {}

    def __contains__(self, incarnation: object) -> bool:
        return incarnation in self.by_incarnation

    def __len__(self) -> int:
        return len(self.by_incarnation)

    def __iter__(self) -> Iterator[Neighbour]:
        return iter(self.by_incarnation.values())

    def __getitem__(self, incarnation: int) -> Neighbour:
        return self.by_incarnation[incarnation]

    def get(self, incarnation: int) -> Neighbour | None:
        return self.by_incarnation.get(incarnation)

    def acceptor_of(self, execution_id: str) -> int | None:
        """The worker that accepted an execution, if we have a link to it."""
        incarnation = execution_incarnation(execution_id)
        return incarnation if incarnation is not None and incarnation in self else None

    def add(self, incarnation: int) -> None:
        self._board.publish_arrived(incarnation, 0)
        self.by_incarnation[incarnation] = Neighbour(incarnation)
        self.by_incarnation = dict(
            sorted(self.by_incarnation.items(), key=lambda item: (item[0] < self._incarnation, item[0]))
        )

    def count_in(self, incarnation: int) -> None:
        """We have taken in (or refused) an execution from there. To be called when our row counts it."""
        neighbour = self.by_incarnation.get(incarnation)
        if neighbour is not None:
            neighbour.came += 1
            self._board.publish_arrived(incarnation, neighbour.came)

    def remove(self, incarnation: int) -> list[Execution]:
        """The executions that were there."""
        neighbour = self.by_incarnation.pop(incarnation, None)
        return [] if neighbour is None else list(neighbour.forwarded.values())

    def freest(self, task: int, *, draining: bool) -> tuple[Neighbour | None, int]:
        """The one with most free capacity, and how much. A worker that leaves gets work only from others that leave."""
        for neighbour in self.by_incarnation.values():
            if neighbour.on_its_way:  # this word first: the row that is read after it counts all that have arrived
                neighbour.settle(self._board.arrived(neighbour.incarnation))
        rows = self._board.free(task)
        best, most = None, 0
        if rows:
            for incarnation, neighbour in self.by_incarnation.items():
                free = rows.get(incarnation, 0) - neighbour.coming(task)
                if (
                    free > most
                    and task not in neighbour.refusing
                    and (draining or not self._board.leaving(incarnation))
                ):
                    best, most = neighbour, free
        return best, most

    def neediest(self, task: int, waiting: Mapping[int, float], *, draining: bool) -> Neighbour | None:
        """Of those that the board says wait, the one that waits longest and may be invited once more."""
        best, since = None, inf
        for incarnation, theirs in waiting.items():
            neighbour = self.by_incarnation.get(incarnation)
            if neighbour is None or theirs >= since:
                continue
            if draining and not self._board.leaving(incarnation):
                continue  # it would not forward to a worker that leaves
            if neighbour.invited[task] < min(MAX_INVITATIONS, self._board.queued(incarnation, task)):
                best, since = neighbour, theirs
        return best

    def reconsider(self) -> None:
        """What was refused may be tried again."""
        for neighbour in self.by_incarnation.values():
            neighbour.refusing.clear()
