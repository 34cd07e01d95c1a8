"""The agents of this worker: who they are, which instance's row they have, and when they may get work.

An agent that the pool launched has a row already; it is *claimed* with the supervisor without waiting for an answer.
One with an issued token, or by a validator's word, gets its row first (`ExternalAgent` → `ExternalRow`).
The supervisor's words about agents (newer connection elsewhere, row cleared, a signal to pass on) arrive here too.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from spearpool.config import TaskConfig
from spearpool.errors import LocalProtocolError
from spearpool.metrics import InstancesTable, Seat
from spearpool.metrics.vocabulary import Pause
from spearpool.protocol.events import CloseReason
from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.identity import Identity, Role
from spearpool.protocol.messages import AuthRequest, Custom, Signal, SignalName

from .belongings import AgentRecord
from .connection import Connection
from .control import (
    AgentPaused,
    Claim,
    Disown,
    ExternalAgent,
    ExternalRow,
    FromWorker,
    Released,
    RowCleared,
    SignalAgent,
    WorkWaits,
)
from .executions import Agent
from .overtime import Overtime

__all__ = ["CALL_EVERY_S", "LAST_WORDS_S", "Agents", "Roll"]

LAST_WORDS_S = 0.1
"""How long the connection of an instance that is gone stays open, so that what it said last is still read."""

CALL_EVERY_S = 0.02
"""How often the supervisor is told that work waits for a task: it looks by itself not much later."""

MAX_NAMED = 10_000
"""How many executions an agent may name as still running."""

_SIGNALS = {name.value: name for name in SignalName}
_ENDS = frozenset({SignalName.TERMINATE, SignalName.RESTART})


class Roll(Protocol):
    """What the comings and goings of agents mean for executions."""

    def agent_joined(self, agent: Agent, running: Sequence[str], /) -> None: ...

    def agent_retired(self, agent: Agent, /) -> None:
        """It is about to leave: no more work for it."""
        ...

    def agent_rests(self, agent: Agent, /) -> None:
        """No more work for it until it goes on."""
        ...

    def agent_goes_on(self, agent: Agent, /) -> None: ...

    def agent_left(self, agent: Agent, /) -> None: ...

    def agent_gone(self, who: object, /) -> None:
        """Its process is dead."""
        ...

    def agent_overran(self, agent: Agent, execution_id: str, response: object, /) -> None:
        """End an execution of the agent's with this answer; it has run as long as its task allows."""
        ...


class Agents:
    """`tell` sends a record to the supervisor; `seat` shows what each instance has in flight here."""

    def __init__(
        self,
        tasks: Mapping[str, TaskConfig],
        table: InstancesTable,
        seat: Seat,
        roll: Roll,
        tell: Callable[[FromWorker], None],
    ) -> None:
        self._tasks = tasks
        self._table = table
        self._seat = seat
        self._roll = roll
        self._tell = tell
        self._overtime = Overtime(asyncio.get_running_loop(), tasks, roll.agent_overran, tell)
        self._rates = {name: task.limits.network_bytes_per_s for name, task in tasks.items()}
        self._requests = itertools.count(1)
        self._waiting: dict[int, tuple[Connection, list[str]]] = {}  # for a row, by request
        self._by_instance: dict[InstanceId, Connection] = {}
        self._call_at: dict[str, float] = {}

    # --------------------------------------------------------------------------------------------- coming and going

    def refusal(self, identity: Identity) -> str | None:
        """Why an agent with a good token cannot be served, or None."""
        if identity.role is not Role.AGENT or self._task_of(identity) in self._tasks:
            return None
        return f"agent {identity.label!r} is of a task that this pool does not have"

    def welcome(self, connection: Connection, identity: Identity, request: AuthRequest) -> None:
        """An agent has authenticated."""
        task = self._task_of(identity)
        config = self._tasks[task]
        declared = request.extra_params.get("concurrency", "")
        concurrency = int(declared) if declared.isdecimal() and len(declared) < 6 else config.concurrency
        concurrency = max(1, min(concurrency, config.concurrency))
        named = list(filter(None, request.extra_params.get("running", "").split(",")))[:MAX_NAMED]
        connection.agent = self._agent(connection, task, concurrency + config.prefetch, identity)
        if identity.instance is not None:
            self._join(connection, connection.agent, identity.instance, named)
            return
        number = next(self._requests)
        self._waiting[number] = (connection, named)
        self._tell(ExternalAgent(number, identity.label, task))

    def farewell(self, connection: Connection, agent: Agent, reason: CloseReason | None) -> None:
        """The agent's connection has ended, or without a reason: goes on at another worker, which claims its row."""
        instance = agent.instance
        if instance is None:
            return  # it still waits for its row
        self._overtime.left(agent)
        self._roll.agent_left(agent)
        if self._by_instance.get(instance) is connection:
            del self._by_instance[instance]
            self._seat.set_agent(instance.row, instance.generation, 0, 0)
        if reason is not None:
            self._tell(Released(instance.row, instance.generation, connection.number, reason.value))

    def take_in(self, connection: Connection, record: AgentRecord) -> bool:
        """An agent's connection came from another worker. False when there is nothing left to serve it for."""
        instance = record.instance
        if record.task not in self._tasks or not self._table.is_alive(instance.row, instance.generation):
            return False
        peer = connection.session.peer
        assert peer is not None
        connection.agent = self._agent(connection, record.task, record.capacity, peer)
        self._join(connection, connection.agent, instance, ())
        return True

    def given(self, agent: Agent) -> None:
        """The agent has been sent one more execution."""
        instance = agent.instance
        if instance is not None:
            self._seat.count_execution(instance.row, instance.generation)
        self.busy(agent)

    def busy(self, agent: Agent) -> None:
        """What the agent has in flight has changed: show how much it is, and see to the limit on its time."""
        instance = agent.instance
        if instance is not None:
            self._seat.set_in_flight(instance.row, instance.generation, len(agent.running))
        if agent.timed:
            self._overtime.look(agent)

    def stop(self) -> None:
        self._overtime.stop()

    def _agent(self, connection: Connection, task: str, capacity: int, peer: Identity) -> Agent:
        agent = Agent(connection, task, capacity, _who(peer))
        agent.concurrency = max(1, capacity - self._tasks[task].prefetch)
        agent.timed = self._overtime.times(task)
        return agent

    def _task_of(self, identity: Identity) -> str:
        if identity.instance is None:
            return identity.task
        row = self._table.snapshot(identity.instance.row)
        return "" if row is None or row.instance != identity.instance else row.task

    def _join(self, connection: Connection, agent: Agent, instance: InstanceId, named: Sequence[str]) -> None:
        agent.instance = instance
        self._by_instance[instance] = connection
        self._claim(connection, instance)
        self._seat.set_agent(instance.row, instance.generation, 1, 0)
        rate = self._rates[agent.task]
        if rate is not None:
            connection.pace(rate, partial(self._seat.count_traffic, instance.row, instance.generation))
        pause = self._table.pause(instance.row)
        if pause:
            agent.paused, agent.held, agent.capacity = True, agent.capacity, 0
        self._roll.agent_joined(agent, named)
        self.busy(agent)
        self._freeze(connection, agent, pause)

    def _claim(self, connection: Connection, instance: InstanceId) -> None:
        connected_ns, authenticated_ns = int(connection.connected_at * 1e9), int(connection.authenticated_at * 1e9)
        self._tell(Claim(instance.row, instance.generation, connection.number, connected_ns, authenticated_ns))

    def awaited(self, task: str, now: float) -> None:
        """An execution waits here for an instance of a task: the supervisor may start one before it looks by itself."""
        config = self._tasks[task]
        if config.most_instances > config.min_instances and now >= self._call_at.get(task, 0.0):
            self._call_at[task] = now + CALL_EVERY_S
            self._tell(WorkWaits(task))

    # -------------------------------------------------------------------------------------------- the supervisor's word

    def external_row(self, record: ExternalRow) -> None:
        connection, named = self._waiting.pop(record.request)
        agent = connection.agent
        if agent is None or not record.generation:
            connection.close(CloseReason.OVERLOADED, "the pool has no room for another instance")
            return
        instance = InstanceId(record.row, record.generation)
        if not connection.ended:
            self._join(connection, agent, instance, named)
            return
        self._claim(connection, instance)
        self._tell(Released(instance.row, instance.generation, connection.number, CloseReason.PEER.value))

    def disown(self, record: Disown) -> None:
        """A newer connection of this agent is at another worker."""
        connection = self._by_instance.get(InstanceId(record.row, record.generation))
        if connection is not None and connection.number == record.connection:
            connection.close(CloseReason.REPLACED, "a newer connection of this agent")

    def row_cleared(self, record: RowCleared) -> None:
        """The instance is gone, or was revoked."""
        instance = InstanceId(record.row, record.generation)
        connection = self._by_instance.get(instance)
        if connection is None:
            self._gone(instance)
            return
        if connection.agent is not None:
            self._roll.agent_retired(connection.agent)
        asyncio.get_running_loop().call_later(LAST_WORDS_S, self._part, connection, instance)

    def _part(self, connection: Connection, instance: InstanceId) -> None:
        connection.close(CloseReason.REVOKED, "the instance's row was cleared")
        self._gone(instance)

    def _gone(self, instance: InstanceId) -> None:
        self._overtime.gone(instance)
        self._roll.agent_gone(instance)

    def pause(self, record: AgentPaused) -> None:
        """The agent, if it is here, gets no more work; or it gets work again."""
        connection = self._by_instance.get(InstanceId(record.row, record.generation))
        if connection is None or connection.agent is None:
            return
        agent, pause = connection.agent, Pause(record.pause)
        agent.paused = bool(pause)
        if agent.paused:
            self._roll.agent_rests(agent)
        self._freeze(connection, agent, pause)
        if not agent.paused:
            self._roll.agent_goes_on(agent)

    def _freeze(self, connection: Connection, agent: Agent, pause: Pause) -> None:
        """While its processes are stopped it is not expected to say anything, and its executions take no time."""
        frozen = pause is Pause.PROCESS
        if connection.frozen is not frozen:
            connection.freeze(frozen=frozen)
            if agent.timed:
                self._overtime.freeze(agent, frozen=frozen)

    def signal(self, record: SignalAgent) -> None:
        """Pass a signal on to an agent; one that is told to end gets no more work."""
        connection = self._by_instance.get(InstanceId(record.row, record.generation))
        if connection is None or connection.agent is None:
            return
        name = _SIGNALS.get(record.signal)
        if name in _ENDS:
            self._roll.agent_retired(connection.agent)
        with suppress(LocalProtocolError):  # it is leaving just now
            connection.send(Signal(Custom(record.signal) if name is None else name))


def _who(identity: Identity) -> object:
    """Equal for connections of the same agent."""
    return identity.instance or (identity.token_id, identity.label)
