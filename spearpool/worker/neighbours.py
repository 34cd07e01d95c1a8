"""What a dispatcher knows of the other workers: what it gave them, and how much capacity they have to give.

The board is read, never waited for; being out of date costs a refused hop or a wait of 10 ms, never an execution.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from .executions import CLIENT, Execution, Place

__all__ = ["Board", "Neighbour", "Neighbours"]


class Board(Protocol):
    """The board, seen from one worker. The dispatcher touches it itself: the order of store and loads matters."""

    def publish(self, task: int, free: int, queued: int) -> None:
        """Store our own row's two words for a task."""
        ...

    def read(self, slot: int, task: int) -> tuple[int, int]:
        """Free capacity and queue length of the neighbour in `slot`."""
        ...

    def leaving(self, slot: int) -> bool:
        """Whether that neighbour is being emptied."""
        ...


@dataclass(slots=True, eq=False)
class Neighbour:
    """What one neighbour got from us, and how much free capacity we believe it has, by task.

    Its word on the board does not yet count what is on its way to it. So an increase adds to the estimate, a decrease
    only caps it, each forwarded execution takes one off, and every re-read of the board starts afresh.
    """

    slot: int
    board: Board
    forwarded: dict[str, Execution] = field(default_factory=dict)
    _words: dict[int, int] = field(default_factory=dict)
    _estimates: dict[int, int] = field(default_factory=dict)

    def free(self, task: int) -> int:
        word, _ = self.board.read(self.slot, task)
        before = self._words.get(task, 0)
        if word != before:
            self._words[task] = word
            estimate = self._estimates.get(task, 0)
            self._estimates[task] = estimate + word - before if word > before else min(estimate, word)
        return self._estimates.get(task, 0)

    def hand(self, execution: Execution, task: int) -> None:
        """The execution is there from now on, and takes one place of what we believed to be free."""
        execution.place, execution.agent, execution.who = Place.FORWARDED, None, None
        execution.neighbour = self.slot
        self.forwarded[execution.execution_id] = execution
        self._estimates[task] = max(0, self._estimates.get(task, 0) - 1)

    def credit(self, task: int) -> None:
        """It said that one place became free."""
        before = self._estimates.get(task, 0)
        self._estimates[task] = min(max(self.free(task), before + 1), self._words.get(task, 0))

    def refused(self, task: int) -> None:
        self._estimates[task] = 0

    def start_afresh(self) -> None:
        self._words.clear()
        self._estimates.clear()


class Neighbours:
    """All workers that `slot` has a link to. Of those with equal rows everybody takes the first after its own slot."""

    def __init__(self, slot: int, board: Board) -> None:
        self._slot = slot
        self._board = board
        self._by_slot: dict[int, Neighbour] = {}

    def __contains__(self, slot: object) -> bool:
        return slot in self._by_slot

    def __len__(self) -> int:
        return len(self._by_slot)

    def __getitem__(self, slot: int) -> Neighbour:
        return self._by_slot[slot]

    def get(self, slot: int) -> Neighbour | None:
        return self._by_slot.get(slot)

    def add(self, slot: int) -> None:
        self._by_slot[slot] = Neighbour(slot, self._board)
        self._by_slot = dict(sorted(self._by_slot.items(), key=lambda item: (item[0] < self._slot, item[0])))

    def remove(self, slot: int) -> list[Execution]:
        """The executions that were there."""
        neighbour = self._by_slot.pop(slot, None)
        return [] if neighbour is None else list(neighbour.forwarded.values())

    def freest(self, task: int, *, draining: bool) -> Neighbour | None:
        """The one with most free capacity. A worker that leaves gets work only from others that leave."""
        best, most = None, 0
        for neighbour in self._by_slot.values():
            free = neighbour.free(task)
            if free > most and (draining or not self._board.leaving(neighbour.slot)):
                best, most = neighbour, free
        return best

    def longest(self, task: int, preferred: int, *, draining: bool) -> tuple[int, int]:
        """Slot and length of the longest queue, `CLIENT` and 0 when there is none; `preferred` wins a tie."""
        slot, most = CLIENT, 0
        for neighbour in self._by_slot:
            _, queued = self._board.read(neighbour, task)
            if queued > most or (queued == most > 0 and neighbour == preferred):
                if draining and not self._board.leaving(neighbour):
                    continue  # it would not forward to a worker that leaves
                slot, most = neighbour, queued
        return slot, most

    def start_afresh(self) -> None:
        for neighbour in self._by_slot.values():
            neighbour.start_afresh()
