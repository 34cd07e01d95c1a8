"""Which agent executes what: the decisions of one worker, without a clock or a socket.

A client's execution goes to an agent of this worker that has free capacity; else to the neighbour that shows most of it
for the task on the board; else it waits in the task's queue here. A neighbour's execution has made its one hop: it is
executed here or refused, and then its origin queues it.

Of all that wait in the pool the first come is served first, give or take `PATIENCE_S`. Each row of the board says since
when the head of the worker's queue has waited. A worker whose place becomes free nudges the neighbour that has waited
longest, if that is longer than its own queue. It does not keep the place for it: until the neighbour's execution
arrives, its own go on, and then, if none is free, the *guest* waits here for the next place, before all others. So no
place is ever idle for fairness' sake, and a neighbour that is slow, hung or dead costs nothing. Who was nudged answers
with exactly one execution, or that it has none (`Unused`); that, and `MAX_INVITATIONS`, keeps count.

Three things see to it that nothing waits beside free capacity:

- an answer that comes back over a link says by itself that its sender has a place free, if its row says so, too;
- a worker whose capacity becomes free while it has no queue nudges as well;
- whoever has a queue or guests reads the board again every 10 ms, because between "I saw nobody free" and "I saw nobody
  waiting" two processors may each miss the other's last store. To keep that rare, a worker writes its own row of the
  board before it reads the others'. Guests go home when somebody else has free capacity: they may not hop again.

Every method is one event and returns the instructions that the shell carries out, in order. Each accepted execution
ends in exactly one `Answer` or `Finish`, each refused one in one `Refuse`; `executions.Place` shows the ways between.
What may have been started is never started again: when its agent or its neighbour is lost it waits `REATTACH_GRACE_S`
for the agent to come back and name it, and then ends with an unknown outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spearpool.errors import ErrorCode

from .books import Books, DispatchSnapshot
from .executions import (
    CLIENT,
    Action,
    Agent,
    Answer,
    Ending,
    Execution,
    Located,
    Mislaid,
    Place,
    Refuse,
    Relay,
    Terminate,
)
from .lane import Lane
from .neighbours import Board, Neighbours
from .placement import REREAD_S, Placement

__all__ = ["REREAD_S", "Dispatcher"]

RETRY_AFTER_MS = (50, 10_000)
"""Least and most that an overloaded worker asks a client to wait."""


class Dispatcher:
    """The dispatcher of the worker `incarnation` for `tasks`, in the board's order of columns."""

    def __init__(
        self, incarnation: int, tasks: Sequence[str], board: Board, max_queued: int, max_queued_bytes: int
    ) -> None:
        self._max_queued = max_queued
        self._max_queued_bytes = max_queued_bytes
        self._lanes = {name: Lane(name, index) for index, name in enumerate(tasks)}
        self._neighbours = Neighbours(incarnation, board)
        self._books = Books(self._lanes, self._neighbours)
        self._placement = Placement(self._lanes, self._books, self._neighbours, board)

    # ------------------------------------------------------------------------------------------------------ executions

    def submit(self, execution: Execution, now: float) -> list[Action]:
        """A client's execution, or a neighbour's (`source` is that one's incarnation then)."""
        actions: list[Action] = []
        lane = self._lanes.get(execution.task)
        if lane is None:
            actions.append(Refuse(execution, ErrorCode.UNKNOWN, f"no task is named {execution.task!r}"))
        elif execution.source == CLIENT:
            self._accept(lane, execution, now, actions)
        else:
            self._placement.take_in(lane, execution, now, actions)
        if execution.source != CLIENT:
            self._neighbours.count_in(execution.source)
        return actions

    def _accept(self, lane: Lane, execution: Execution, now: float, actions: list[Action]) -> None:
        place = self._placement
        if place.draining:
            actions.append(Refuse(execution, ErrorCode.DRAINING, "the pool is draining"))
            return
        found = not lane.queue and (
            place.place_here(lane, execution, actions) or place.place_there(lane, execution, actions)
        )
        if not found:
            refusal = self._refusal(lane, execution, now)
            if refusal is not None:
                actions.append(refusal)
                return
            place.wait(lane, execution, now)
            if len(lane.queue) == 1:  # only now does our row say that we wait: look again for who became free meanwhile
                place.pump(lane, actions)
        self._books.accept(execution)
        place.publish(lane)

    def cancel(self, execution_id: str, origin: object) -> list[Action]:
        """`origin` does not want its execution any more. Nothing happens when it has ended, or is somebody else's."""
        execution = self._books.executions.get(execution_id)
        if execution is None or execution.origin is not origin:
            return []
        return self._placement.give_up(execution, Ending.CANCELLED)

    def abandon(self, executions: Iterable[Execution]) -> list[Action]:
        """Their client is gone: those that wait in the queue are dropped, the others run to their end unheard."""
        queued = [execution for execution in executions if execution.place is Place.QUEUED]
        return [action for execution in queued for action in self._placement.give_up(execution, Ending.CANCELLED)]

    # ---------------------------------------------------------------------------------------------------------- agents

    def agent_joined(self, agent: Agent, running: Iterable[str] = ()) -> list[Action]:
        """An agent came, and still works on the executions `running`: ours, a neighbour's, or nobody's any more."""
        actions: list[Action] = []
        lane = self._lanes[agent.task]
        lane.join(agent)
        for execution_id in dict.fromkeys(running):
            execution = self._books.executions.get(execution_id)
            if execution is not None and agent.may_have(execution):
                self._books.detach(execution)
                self._books.start(lane, execution, agent)
                continue
            lane.hold(agent, execution_id, None)
            if (incarnation := self._neighbours.acceptor_of(execution_id)) is not None:
                actions.append(Located(incarnation, execution_id))
        self._placement.use_free(lane, actions)
        return actions

    def agent_left(self, agent: Agent, now: float) -> list[Action]:
        """Its connection ended. What it had may have been started: wait for it to come back."""
        actions: list[Action] = []
        lane = self._lanes[agent.task]
        lane.leave(agent)
        for execution_id, execution in agent.running.items():
            if execution is not None:
                self._books.lose(execution, now)
            elif (incarnation := self._neighbours.acceptor_of(execution_id)) is not None:
                actions.append(Mislaid(incarnation, execution_id))
        agent.running.clear()
        self._placement.publish(lane)
        return actions

    def agent_retired(self, agent: Agent, *, for_good: bool = True) -> None:
        """It is about to leave (or to move): it finishes what it has and gets nothing more, or not until it resumes."""
        lane = self._lanes[agent.task]
        lane.retire(agent) if for_good else lane.suspend(agent)
        self._placement.publish(lane)

    def agent_resumed(self, agent: Agent) -> list[Action]:
        """It stays here after all."""
        actions: list[Action] = []
        lane = self._lanes[agent.task]
        lane.resume(agent)
        self._placement.use_free(lane, actions)
        return actions

    def agent_gone(self, who: object) -> list[Action]:
        """The agent's process is dead: it will not come back and name what it had."""
        gone = [execution for execution in self._books.lost.values() if execution.who == who]
        return [action for execution in gone for action in self._placement.give_up(execution, Ending.OUTCOME_UNKNOWN)]

    def answered(self, agent: Agent, execution_id: str, response: object) -> list[Action]:
        """An agent's final answer to one of the ids in its `running`."""
        lane = self._lanes[agent.task]
        execution = lane.release(agent, execution_id)
        actions: list[Action] = []
        told = CLIENT
        if execution is not None:
            told = execution.source
            self._books.end(execution)
            actions.append(Answer(execution, response))
        else:
            incarnation = self._neighbours.acceptor_of(execution_id)
            if incarnation is not None:
                told = incarnation
                actions.append(Relay(incarnation, execution_id, response))
        self._placement.use_free(lane, actions, told)
        return actions

    def answered_late(self, agent: Agent, execution_id: str, response: object) -> list[Action]:
        """An agent's final answer to what it finished while it was disconnected, and so did not name on joining."""
        execution = self._books.executions.get(execution_id)
        if execution is not None and agent.may_have(execution):
            self._books.detach(execution)
            self._books.end(execution)
            return [Answer(execution, response)]
        incarnation = self._neighbours.acceptor_of(execution_id)
        return [] if incarnation is None else [Relay(incarnation, execution_id, response)]

    def declined(self, agent: Agent, execution_id: str, response: object, now: float) -> list[Action]:
        """The agent did not start it (it is full, or about to leave): it gets nothing more, somebody else gets it.

        `response` says so in the case of one that it had named on joining: that is too late for a second try.
        """
        lane = self._lanes[agent.task]
        lane.retire(agent)
        execution = lane.release(agent, execution_id)
        self._placement.publish(lane)
        if execution is not None:
            return self._again(lane, execution, now)
        incarnation = self._neighbours.acceptor_of(execution_id)
        return [] if incarnation is None else [Relay(incarnation, execution_id, response)]

    def overran(self, agent: Agent, execution_id: str, response: object) -> list[Action]:
        """It has run as long as its task allows: its origin gets this answer, and the agent is to let go of it."""
        execution = agent.running[execution_id]
        actions: list[Action] = [Terminate(agent, execution_id)]
        if execution is not None:
            self._books.detach(execution)
            self._books.end(execution)
            actions.append(Answer(execution, response))
        elif (incarnation := self._neighbours.acceptor_of(execution_id)) is not None:
            actions.append(Relay(incarnation, execution_id, response))
        return actions

    # ------------------------------------------------------------------------------------------------------ neighbours

    def link_up(self, incarnation: int, now: float) -> list[Action]:
        """There is a link to the worker `incarnation`; an earlier one has been reported down."""
        self._neighbours.add(incarnation)
        if self._books.queued:
            self._placement.reread_at = min(self._placement.reread_at, now + REREAD_S)
        actions: list[Action] = []
        for lane in self._lanes.values():
            held = [name for agent in lane.agents for name, execution in agent.running.items() if execution is None]
            actions += [
                Located(incarnation, name) for name in held if self._neighbours.acceptor_of(name) == incarnation
            ]
            self._placement.pump(lane, actions)
            self._placement.use_free(lane, actions)
        return actions

    def link_down(self, incarnation: int, now: float) -> list[Action]:
        """The neighbour is gone. What it had may have been started: wait for the agents to come back."""
        for execution in self._neighbours.remove(incarnation):
            self._books.lose(execution, now)
        guests = [
            guest for lane in self._lanes.values() for guest in lane.guests.values() if guest.source == incarnation
        ]
        return [action for guest in guests for action in self._placement.give_up(guest, Ending.CANCELLED)]

    def neighbour_answered(
        self, incarnation: int, execution_id: str, response: object, *, unknown: bool = False
    ) -> list[Action]:
        """A final answer of the worker `incarnation` to an execution of ours.

        An agent's own word is good wherever it comes from. That the outcome is `unknown` is for the neighbour to say
        only while the execution is there: meanwhile the agent may have come back somewhere else.
        """
        execution = self._books.executions.get(execution_id)
        if execution is None or execution.place not in {Place.FORWARDED, Place.LOST}:
            return []
        if unknown and (execution.place is Place.LOST or execution.neighbour != incarnation):
            return []
        self._books.detach(execution)
        self._books.end(execution)
        actions: list[Action] = [Answer(execution, response)]
        lane = self._lanes[execution.task]
        neighbour = self._neighbours.get(incarnation)
        if neighbour is not None:
            neighbour.refusing.discard(lane.index)
            if lane.queue and self._placement.is_neediest(lane):
                self._placement.pump(lane, actions)
        return actions

    def bounced(self, incarnation: int, execution_id: str, now: float) -> list[Action]:
        """The neighbour had no place after all: nothing was started."""
        neighbour = self._neighbours.get(incarnation)
        execution = None if neighbour is None else neighbour.give_back(execution_id)
        if neighbour is None or execution is None:
            return []
        lane = self._lanes[execution.task]
        neighbour.refusing.add(lane.index)  # it is not asked again at once
        return self._again(lane, execution, now)

    def nudged(self, incarnation: int, task: str) -> list[Action]:
        """The neighbour takes one execution of a task, wherever it has to wait there."""
        lane = self._lanes.get(task)
        neighbour = self._neighbours.get(incarnation)
        if lane is None or neighbour is None:
            return []
        actions: list[Action] = []
        neighbour.refusing.discard(lane.index)
        self._placement.accept_invitation(lane, neighbour, actions)
        self._placement.pump(lane, actions)
        return actions

    def unused(self, incarnation: int, task: str) -> list[Action]:
        """The neighbour had nothing that it could send when it was nudged."""
        lane = self._lanes.get(task)
        neighbour = self._neighbours.get(incarnation)
        actions: list[Action] = []
        if lane is not None and neighbour is not None and neighbour.comes(lane.index) and lane.free:
            self._placement.offer(lane, actions, told=incarnation)
        return actions

    def located(self, incarnation: int, execution_id: str) -> list[Action]:
        """An agent that came to the neighbour still works on an execution of ours: the neighbour has it now."""
        execution = self._books.executions.get(execution_id)
        neighbour = self._neighbours.get(incarnation)
        if execution is not None and neighbour is not None and execution.place in {Place.LOST, Place.FORWARDED}:
            self._books.detach(execution)
            neighbour.hand(execution)
        return []

    def mislaid(self, incarnation: int, execution_id: str, now: float) -> list[Action]:
        """That agent is gone from the neighbour again."""
        neighbour = self._neighbours.get(incarnation)
        execution = None if neighbour is None else neighbour.give_back(execution_id)
        if execution is not None:
            self._books.lose(execution, now)
        return []

    # ------------------------------------------------------------------------------------------------ states and time

    def set_task(self, task: str, available: bool, reason: str = "") -> list[Action]:
        """Whether an execution may wait for an instance of this task; those that wait already are refused if not."""
        actions: list[Action] = []
        lane = self._lanes.get(task)
        if lane is not None:
            lane.available, lane.reason = available, reason
            while lane.queue and not available:
                waiting = next(iter(lane.queue.values()))
                actions.append(self._placement.turn_away(waiting, ErrorCode.DRAINING, reason))
        return actions

    def drain(self) -> None:
        """Refuse clients' executions from now on; those that were accepted go on, queued ones included."""
        self._placement.draining = True

    def abort(self) -> list[Action]:
        """End everything at once: what waits is refused, of what was given away the outcome is unknown."""
        actions: list[Action] = []
        for execution in list(self._books.executions.values()):
            if execution.place is Place.QUEUED:
                actions.append(self._placement.turn_away(execution, ErrorCode.DRAINING, "the pool is stopping"))
            else:
                actions += self._placement.give_up(execution, Ending.OUTCOME_UNKNOWN)
        return actions

    @property
    def live(self) -> int:
        """Accepted executions that have not ended."""
        return len(self._books.executions)

    def next_deadline(self) -> float:
        """When `expire` is to be called next (monotonic seconds, inf for never)."""
        return min(self._books.due.next(), self._placement.reread_at)

    def expire(self, now: float) -> list[Action]:
        """Deadlines that have passed, and the next look at the board while something waits."""
        actions: list[Action] = []
        for execution_id in self._books.due.due(now):
            execution = self._books.executions[execution_id]
            late = execution.deadline <= now
            actions += self._placement.give_up(execution, Ending.TIMED_OUT if late else Ending.OUTCOME_UNKNOWN)
        if self._placement.reread_at <= now:
            self._placement.reread(now, actions)
        return actions

    def snapshot(self) -> DispatchSnapshot:
        return self._books.snapshot(draining=self._placement.draining)

    # ----------------------------------------------------------------------------------------------- refusing, ending

    def _refusal(self, lane: Lane, execution: Execution, now: float) -> Refuse | None:
        """Why a client's execution that nobody can take now may not wait here, or None."""
        if not lane.available:
            return Refuse(execution, ErrorCode.DRAINING, lane.reason)
        too_many = self._books.queued >= self._max_queued
        if too_many or self._books.queued_bytes + execution.size_bytes > self._max_queued_bytes:
            # the head of the queue has waited that long: so would the next one
            waited_s = now - next(iter(lane.queue.values())).queued_at if lane.queue else 0.0
            least, most = RETRY_AFTER_MS
            wait_ms = min(most, max(least, int(waited_s * 1000)))
            limit = f"{self._max_queued} executions" if too_many else f"{self._max_queued_bytes} bytes"
            return Refuse(execution, ErrorCode.OVERLOADED, f"the queue is full ({limit})", str(wait_ms))
        return None

    # ------------------------------------------------------------------------------------------ from place to place

    def _again(self, lane: Lane, execution: Execution, now: float) -> list[Action]:
        """It was not started: it goes to the head of the queue, or back to the neighbour whose queue it is in."""
        if execution.source != CLIENT:
            return [self._placement.send_home(execution)]
        actions: list[Action] = []
        self._placement.wait(lane, execution, now, first=True)
        self._placement.pump(lane, actions)
        if execution.place is Place.QUEUED and not lane.available:
            actions.append(self._placement.turn_away(execution, ErrorCode.DRAINING, lane.reason))
        return actions
