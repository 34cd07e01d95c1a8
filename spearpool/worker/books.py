"""Where each execution of a worker is: the places of `executions.Place`, and how one gets from place to place.

`Dispatcher` decides; here only the books are kept, so that an execution is always in exactly one of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from .deadlines import Deadlines
from .executions import CLIENT, Agent, Execution, Place
from .lane import Lane
from .neighbours import Neighbours

__all__ = ["REATTACH_GRACE_S", "Books", "DispatchSnapshot", "TaskSnapshot"]

REATTACH_GRACE_S = 2.0
"""How long an execution whose agent was lost waits for it to come back and name it."""


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    agents: int
    free: int
    queued: int
    available: bool


@dataclass(frozen=True, slots=True)
class DispatchSnapshot:
    """`live` counts accepted executions that have not ended, `queued` those that wait: neighbours' ones, too."""

    live: int
    queued: int
    queued_bytes: int
    lost: int
    draining: bool
    tasks: dict[str, TaskSnapshot]


class Books:
    """`executions` holds all that are accepted and have not ended; `due` when each of them must be looked at."""

    def __init__(self, lanes: Mapping[str, Lane], neighbours: Neighbours) -> None:
        self._lanes = lanes
        self._neighbours = neighbours
        self.executions: dict[str, Execution] = {}
        self.lost: dict[str, Execution] = {}
        self.due: Deadlines[str] = Deadlines()
        self.queued = 0
        self.queued_bytes = 0

    def accept(self, execution: Execution) -> None:
        self.executions[execution.execution_id] = execution
        if execution.deadline < inf:
            self.due.set(execution.execution_id, execution.deadline)

    def start(self, lane: Lane, execution: Execution, agent: Agent) -> None:
        """It is at an agent here."""
        lane.hold(agent, execution.execution_id, execution)
        execution.place, execution.agent, execution.who = Place.RUNNING, agent, agent.who

    def enqueue(self, lane: Lane, execution: Execution, now: float, *, first: bool = False) -> None:
        """It waits in the queue, or as a guest."""
        queue = _line(lane, execution)
        queue[execution.execution_id] = execution
        if first:
            queue.move_to_end(execution.execution_id, last=False)
        execution.place, execution.agent, execution.who = Place.QUEUED, None, None
        execution.queued_at = now
        self.queued += 1
        self.queued_bytes += execution.size_bytes

    def dequeue(self, queue: OrderedDict[str, Execution]) -> Execution:
        """Take the head of a lane's queue, or of its guests."""
        _, execution = queue.popitem(last=False)
        self.queued -= 1
        self.queued_bytes -= execution.size_bytes
        return execution

    def lose(self, execution: Execution, now: float) -> None:
        """Whoever had it is gone (and has been taken off the books already)."""
        execution.place, execution.agent = Place.LOST, None
        self.lost[execution.execution_id] = execution
        self.due.set(execution.execution_id, min(execution.deadline, now + REATTACH_GRACE_S))

    def detach(self, execution: Execution) -> None:
        """Take it from where it is. An agent that has it keeps its place in use until it answers."""
        execution_id = execution.execution_id
        if execution.place is Place.QUEUED:
            queue = _line(self._lanes[execution.task], execution)
            queue.move_to_end(execution_id, last=False)
            self.dequeue(queue)
        elif execution.place is Place.FORWARDED:
            self._neighbours[execution.neighbour].give_back(execution_id)
        elif execution.place is Place.LOST:
            del self.lost[execution_id]
            self.due.set(execution_id, execution.deadline)
        elif execution.agent is not None:
            execution.agent.running[execution_id] = None

    def end(self, execution: Execution) -> None:
        """It has been detached, or its agent has answered."""
        execution.place, execution.agent = Place.ENDED, None
        del self.executions[execution.execution_id]
        if execution.deadline < inf:
            self.due.discard(execution.execution_id)

    def snapshot(self, *, draining: bool) -> DispatchSnapshot:
        tasks = {
            lane.name: TaskSnapshot(len(lane.agents), lane.free, len(lane.queue) + len(lane.guests), lane.available)
            for lane in self._lanes.values()
        }
        return DispatchSnapshot(len(self.executions), self.queued, self.queued_bytes, len(self.lost), draining, tasks)


def _line(lane: Lane, execution: Execution) -> OrderedDict[str, Execution]:
    """Where it waits."""
    return lane.queue if execution.source == CLIENT else lane.guests
