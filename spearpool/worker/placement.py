"""Where an execution goes: to an agent here, to a neighbour, to wait, or back to where it came from.

The board is touched here and in `neighbours`, our own row always before the others' are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from spearpool.errors import ErrorCode

from .books import Books
from .executions import (
    CLIENT,
    Action,
    Dispatch,
    Ending,
    Execution,
    Finish,
    Forward,
    Nudge,
    Place,
    Refuse,
    Terminate,
    TerminateRemote,
    Unused,
)
from .lane import Lane
from .neighbours import Board, Neighbour, Neighbours

__all__ = ["PATIENCE_S", "REREAD_S", "Placement"]

REREAD_S = 0.010
"""How often the board is read again while something waits here."""

PATIENCE_S = 0.010
"""How much longer than the head of our queue a neighbour's must have waited before it gets a place of ours: less than
what the scheduler of a busy machine moves by itself is not worth a hop."""

_GLANCE_S = 0.001
"""How much later than at the last look, which found nobody in need, the head of our queue must have come before we look
again. Heads of queues only become younger: so that is all the fairness that is lost, and most looks are spared."""

_GUESTS_PER_PLACE = 2
"""How many executions may come to wait for each place uninvited, because several neighbours saw the same one free."""


class Placement:
    """Moves executions. While `draining`, neighbours that leave too are as good as any: nobody else may be left."""

    def __init__(self, lanes: Mapping[str, Lane], books: Books, neighbours: Neighbours, board: Board) -> None:
        self._lanes = lanes
        self._books = books
        self._neighbours = neighbours
        self._board = board
        self.draining = False
        self.reread_at = inf

    # -------------------------------------------------------------------------------------------------- one execution

    def place_here(self, lane: Lane, execution: Execution, actions: list[Action]) -> bool:
        """Give it to an agent here."""
        agent = lane.idlest()
        if agent is None:
            return False
        self._books.start(lane, execution, agent)
        actions.append(Dispatch(execution, agent))
        return True

    def place_there(self, lane: Lane, execution: Execution, actions: list[Action]) -> bool:
        """Give it to the neighbour with most free capacity."""
        self.publish(lane)
        neighbour, _ = self._neighbours.freest(lane.index, draining=self.draining)
        if neighbour is None:
            return False
        neighbour.send(execution, lane.index)
        actions.append(Forward(execution, neighbour.incarnation))
        return True

    def take_in(self, lane: Lane, execution: Execution, now: float, actions: list[Action]) -> None:
        """A neighbour's goes to an agent, or to the guests when we asked for it or they are few; or back at once."""
        neighbour = self._neighbours.get(execution.source)
        invited = neighbour is not None and neighbour.comes(lane.index)
        if self.place_here(lane, execution, actions):
            self._books.accept(execution)
        elif lane.places and (invited or len(lane.guests) < _GUESTS_PER_PLACE * lane.places):
            self.wait(lane, execution, now)
            self._books.accept(execution)
        else:
            actions.append(Refuse(execution, ErrorCode.OVERLOADED, "no free capacity here"))
        self.publish(lane)

    def wait(self, lane: Lane, execution: Execution, now: float, *, first: bool = False) -> None:
        self._books.enqueue(lane, execution, now, first=first)
        if self._neighbours:
            self.reread_at = min(self.reread_at, now + REREAD_S)

    def give_up(self, execution: Execution, ending: Ending) -> list[Action]:
        """End it without an answer, and tell whoever works on it that nobody waits any more."""
        actions: list[Action] = []
        if execution.place is Place.FORWARDED:
            actions.append(TerminateRemote(execution.neighbour, execution.execution_id))
        elif execution.agent is not None:
            actions.append(Terminate(execution.agent, execution.execution_id))
        self._books.detach(execution)
        self._books.end(execution)
        actions.append(Finish(execution, ending))
        self.publish(self._lanes[execution.task])
        return actions

    def turn_away(self, execution: Execution, code: ErrorCode, message: str) -> Refuse:
        """It was accepted and not started: end it with an error after all."""
        if execution.place is Place.QUEUED:
            self._books.detach(execution)
            self.publish(self._lanes[execution.task])
        self._books.end(execution)
        return Refuse(execution, code, message)

    def send_home(self, execution: Execution) -> Refuse:
        """The same, for a neighbour's, which waits there then."""
        return self.turn_away(execution, ErrorCode.OVERLOADED, "no free capacity here")

    # ---------------------------------------------------------------------------------------------------- what waits

    def serve(self, lane: Lane, actions: list[Action]) -> None:
        """Give what waits to agents here while any has a place; guests first: they have waited longer elsewhere."""
        while (queue := lane.guests or lane.queue) and (agent := lane.idlest()) is not None:
            execution = self._books.dequeue(queue)
            self._books.start(lane, execution, agent)
            actions.append(Dispatch(execution, agent))
        self.publish(lane)

    def pump(self, lane: Lane, actions: list[Action]) -> None:
        """The same, and then give our own queue to neighbours that have free capacity."""
        self.serve(lane, actions)
        while lane.queue:
            neighbour, _ = self._neighbours.freest(lane.index, draining=self.draining)
            if neighbour is None:
                break
            self._send_head(lane, neighbour, actions)

    def accept_invitation(self, lane: Lane, neighbour: Neighbour, actions: list[Action]) -> None:
        """Send what a nudge asks for, whatever the board says, or say that there is nothing that could be sent."""
        stranded = self._board.leaving(neighbour.incarnation) and not self.draining
        if not lane.queue or stranded or self._board.congested(neighbour.incarnation):
            actions.append(Unused(neighbour.incarnation, lane.name))
        else:
            self._send_head(lane, neighbour, actions)

    def _send_head(self, lane: Lane, neighbour: Neighbour, actions: list[Action]) -> None:
        execution = self._books.dequeue(lane.queue)
        neighbour.send(execution, lane.index)
        actions.append(Forward(execution, neighbour.incarnation))
        self.publish(lane)

    def reread(self, now: float, actions: list[Action]) -> None:
        """Look at the board again, and see to the next look while something waits."""
        self._neighbours.reconsider()
        for lane in self._lanes.values():
            self.pump(lane, actions)
            self._send_guests_home(lane, now - REREAD_S, actions)
        self.reread_at = now + REREAD_S if self._books.queued and self._neighbours else inf

    def _send_guests_home(self, lane: Lane, before: float, actions: list[Action]) -> None:
        """Guests wait in vain when no agent is left, or when they wait since `before` and somebody else has places."""
        late = [guest for guest in lane.guests.values() if guest.queued_at <= before or not lane.places]
        if late and lane.places:
            _, free = self._neighbours.freest(lane.index, draining=self.draining)
            del late[free:]
        actions += [self.send_home(guest) for guest in late]

    # -------------------------------------------------------------------------------------------------- what is free

    def use_free(self, lane: Lane, actions: list[Action], told: int = CLIENT) -> None:
        """If there is a free place, give it to what waits here, and make an offer for it all the same."""
        if lane.free:
            self.serve(lane, actions)
            self.offer(lane, actions, told)

    def offer(self, lane: Lane, actions: list[Action], told: int = CLIENT) -> None:
        """Nudge the neighbour that has waited longest, if that is longer than our own queue has.

        Unless it is `told` as much by an answer that it gets anyway, and sees the place free on the board.
        """
        if not self._neighbours.by_incarnation:
            return
        _, _, since = lane.published
        if lane.queue and since < lane.fair_until:
            return
        waiting = self._board.waiting(lane.index, since - PATIENCE_S if lane.queue else inf)
        if not waiting:
            lane.fair_until = since + _GLANCE_S
            return
        neighbour = self._neighbours.neediest(lane.index, waiting, draining=self.draining)
        if neighbour is not None and not (neighbour.incarnation == told and lane.free):
            neighbour.invited[lane.index] += 1
            actions.append(Nudge(neighbour.incarnation, lane.name))

    def is_neediest(self, lane: Lane) -> bool:
        """Whether nobody has waited longer than the head of our queue: then a place that becomes free is for us."""
        waiting = self._board.waiting(lane.index, lane.since())
        return self._neighbours.neediest(lane.index, waiting, draining=self.draining) is None

    def publish(self, lane: Lane) -> None:
        queue = lane.queue
        since = lane.since() if queue and self._neighbours.by_incarnation else 0.0
        row = (lane.free, len(queue) + len(lane.guests), since)
        if row != lane.published:
            lane.published = row
            self._board.publish(lane.index, *row)
