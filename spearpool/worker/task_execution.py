"""`TaskExecutionManager`: carries out what the dispatcher decides.

It turns messages of clients, agents and neighbours into the dispatcher's events, its instructions into messages, and
keeps the timer of deadlines. No task, Future or callback is made for an execution: all is done in the same call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import Any

from spearpool.config import ConnectionManagerConfig, TaskConfig
from spearpool.errors import ErrorCode, LocalProtocolError
from spearpool.metrics import InstancesTable, MonitoringService, Seat
from spearpool.metrics.vocabulary import ExecutionStage
from spearpool.protocol.events import CloseReason
from spearpool.protocol.identifiers import execution_id
from spearpool.protocol.identity import Role
from spearpool.protocol.messages import (
    UNSET,
    AuthRequest,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    Signal,
    SignalName,
    StreamData,
)
from spearpool.protocol.session import Received

from .agents import Agents
from .belongings import Belongings
from .connection import Connection
from .control import FromWorker
from .dispatch import Dispatcher
from .execution_messages import (
    FINAL_STAGE,
    ended,
    failed,
    named,
    not_understood,
    passed_on,
    request_answered,
    time_limit_s,
)
from .executions import (
    CLIENT,
    Action,
    Agent,
    Answer,
    Dispatch,
    Execution,
    Finish,
    Forward,
    Located,
    Mislaid,
    Nudge,
    Place,
    Refuse,
    Relay,
    Terminate,
    TerminateRemote,
    Unused,
)
from .links import Link, Links, SharedBoard
from .outbox import Outbox

__all__ = ["TaskExecutionManager"]

_TIMER_SLACK_S = 0.0005
"""Timers of uvloop count whole milliseconds and may fire this much early."""

_FEW = 4
"""With no more executions than this under way, nothing is gathered before it is written: there is no gain in it."""

_NOT_STARTED = frozenset({ErrorCode.OVERLOADED, ErrorCode.DRAINING})
"""Errors by which an agent says that it has not begun."""


class TaskExecutionManager:
    """The executions of one worker: handler of its connections and of its links. To be made inside a running loop.

    `epoch`, `slot` and `incarnation` go into execution ids. `tell` sends a record to the supervisor.
    """

    def __init__(
        self,
        *,
        slot: int,
        incarnation: int,
        epoch: int,
        tasks: Mapping[str, TaskConfig],
        config: ConnectionManagerConfig,
        seat: Seat,
        monitoring: MonitoringService,
        outbox: Outbox,
        tell: Callable[[FromWorker], None],
    ) -> None:
        segment = seat.segment
        self._prefix = (epoch, slot, incarnation)
        self._counter = 0
        self._record_execution = monitoring.record_execution
        self._outbox = outbox
        self._columns = {name: segment.task_index(name) for name in tasks}
        self._other_column = segment.layout.columns - 1
        self.links = Links(self, outbox, config.max_message_size)
        self.agents = Agents(tasks, InstancesTable(segment), seat, self, tell)
        self.refusal = self.agents.refusal
        self.dispatcher = Dispatcher(
            incarnation,
            tuple(tasks),
            SharedBoard(seat, tuple(self._columns.values()), self.links),
            config.max_queued_executions,
            config.max_queued_bytes,
        )
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = inf
        self._on_drained: Callable[[int], None] | None = None
        self._on_message: dict[type, Callable[[Connection, int, Any, int], None]] = {
            ExecuteRequest: self._submit,
            ExecuteResponse: self._answered,
            Signal: self._signalled,
            ErrorMessage: self._failed,
            StreamData: self._streamed,
        }
        self._performers: dict[type, Callable[[Any], None]] = {
            Dispatch: self._dispatch,
            Forward: self._forward,
            Answer: self._answer,
            Finish: self._finish,
            Refuse: self._refuse,
            Terminate: self._terminate,
            TerminateRemote: lambda action: self.links.to(action.incarnation).terminate(action.execution_id),
            Nudge: lambda action: self.links.to(action.incarnation).nudge(action.task),
            Unused: lambda action: self.links.to(action.incarnation).unused(action.task),
            Located: lambda action: self.links.to(action.incarnation).located(action.execution_id),
            Mislaid: lambda action: self.links.to(action.incarnation).mislaid(action.execution_id),
            Relay: lambda action: self.links.to(action.incarnation).relay(named(action.response, action.execution_id)),
        }

    # What connections say, when they begin and end (Handler), and what that means for agents (Roll)

    def authenticated(self, connection: Connection, request: AuthRequest) -> None:
        peer = connection.session.peer
        if peer is not None and peer.role is Role.AGENT:
            self.agents.welcome(connection, peer, request)

    def received(self, connection: Connection, event: Received) -> None:
        payload = event.payload
        self._on_message[type(payload)](connection, event.request_id, payload, event.size_bytes)

    def closed(self, connection: Connection, reason: CloseReason | None) -> None:
        if connection.agent is not None:
            self.agents.farewell(connection, connection.agent, reason)
        if connection.executions:
            self.run(self.dispatcher.abandon(connection.executions.values()))

    def took_in(self, connection: Connection, belongings: Belongings) -> bool:
        return belongings.agent is None or self.agents.take_in(connection, belongings.agent)

    def agent_joined(self, agent: Agent, running: Sequence[str]) -> None:
        self.run(self.dispatcher.agent_joined(agent, running))

    def agent_overran(self, agent: Agent, execution_id: str, response: object) -> None:
        self.run(self.dispatcher.overran(agent, execution_id, response))

    def agent_retired(self, agent: Agent) -> None:
        self.dispatcher.agent_retired(agent)

    def agent_rests(self, agent: Agent) -> None:
        self.dispatcher.agent_retired(agent, for_good=False)

    def agent_goes_on(self, agent: Agent) -> None:
        self.run(self.dispatcher.agent_resumed(agent))

    def agent_left(self, agent: Agent) -> None:
        self.run(self.dispatcher.agent_left(agent, time.monotonic()))

    def agent_gone(self, who: object) -> None:
        self.run(self.dispatcher.agent_gone(who))

    # ------------------------------------------------------------------------------------------------ what clients say

    def _submit(self, connection: Connection, request_id: int, request: ExecuteRequest, size_bytes: int) -> None:
        now = time.monotonic()
        self._counter += 1
        execution = Execution(
            execution_id(*self._prefix, self._counter),
            request.task_id,
            request,
            connection,
            request_id,
            size_bytes,
            now,
            now + time_limit_s(request),
        )
        connection.executions[request_id] = execution
        self._record(execution, ExecutionStage.RECEIVED)
        complaint = not_understood(request)
        if complaint:
            self._refuse(Refuse(execution, ErrorCode.MALFORMED, complaint))
            return
        self.run(self.dispatcher.submit(execution, now))
        if execution.place is Place.QUEUED:
            self._record(execution, ExecutionStage.QUEUED)
            self.agents.awaited(execution.task, now)

    def _signalled(self, connection: Connection, request_id: int, signal: Signal, _size_bytes: int) -> None:
        """Cancel what the client submitted itself: named by execution id, or by its own request id in `data`."""
        if signal.signal_type is not SignalName.TERMINATE:
            connection.refuse(request_id, ErrorCode.MALFORMED, "only Terminate, to cancel, is known here")
            return
        name = "" if signal.execution_id is UNSET else signal.execution_id
        if signal.data is not None and signal.data.isdigit() and len(signal.data) <= 20:
            execution = connection.executions.get(int(signal.data))
            name = name if execution is None else execution.execution_id
        actions = self.dispatcher.cancel(name, connection)
        if not actions:
            connection.refuse(request_id, ErrorCode.UNKNOWN, "no such execution is in flight here")
        self.run(actions)

    def _streamed(self, connection: Connection, request_id: int, _data: StreamData, _size_bytes: int) -> None:
        connection.refuse(request_id, ErrorCode.CONFLICT, "no stream is open")

    # ------------------------------------------------------------------------------------------------- what agents say

    def _answered(self, connection: Connection, request_id: int, response: ExecuteResponse, _size: int) -> None:
        agent = connection.agent
        if agent is None or not response.status.final:
            return
        name = request_answered(agent, request_id, response)
        if name in agent.running:
            self.run(self.dispatcher.answered(agent, name, response))
        elif name:
            self.run(self.dispatcher.answered_late(agent, name, response))
        else:
            connection.refuse(request_id, ErrorCode.UNKNOWN, "no such request is open on this connection")
        self.agents.busy(agent)

    def _failed(self, connection: Connection, request_id: int, error: ErrorMessage, _size_bytes: int) -> None:
        """An agent answers with an Error: it did not begin, or it failed."""
        agent = connection.agent
        name = None if agent is None else agent.sent.pop(error.related_request_id or request_id, None)
        if agent is None or name is None or name not in agent.running:
            return
        response = failed(agent.task, error.message, name, error.error_code)
        if error.error_code in _NOT_STARTED:
            self.run(self.dispatcher.declined(agent, name, response, time.monotonic()))
        else:
            self.run(self.dispatcher.answered(agent, name, response))
        self.agents.busy(agent)

    # -------------------------------------------------------------------------------- what neighbours say (LinkHandler)

    def link_up(self, link: Link) -> None:
        self.run(self.dispatcher.link_up(link.incarnation, time.monotonic()))

    def link_down(self, link: Link) -> None:
        self.run(self.dispatcher.link_down(link.incarnation, time.monotonic()))

    def link_submitted(self, link: Link, request_id: int, request: ExecuteRequest) -> None:
        now = time.monotonic()
        name = request.execution_id or ""
        limit = now + time_limit_s(request)
        self.run(
            self.dispatcher.submit(
                Execution(name, request.task_id, request, link, request_id, 0, now, limit, link.incarnation), now
            )
        )

    def link_refused(self, link: Link, execution_id: str) -> None:
        self.run(self.dispatcher.bounced(link.incarnation, execution_id, time.monotonic()))

    def link_answered(self, link: Link, execution_id: str, response: ExecuteResponse) -> None:
        unknown = response.error_code == ErrorCode.OUTCOME_UNKNOWN
        self.run(self.dispatcher.neighbour_answered(link.incarnation, execution_id, response, unknown=unknown))

    def link_cancelled(self, link: Link, execution_id: str) -> None:
        self.run(self.dispatcher.cancel(execution_id, link))

    def link_nudged(self, link: Link, task: str) -> None:
        self.run(self.dispatcher.nudged(link.incarnation, task))

    def link_unused(self, link: Link, task: str) -> None:
        self.run(self.dispatcher.unused(link.incarnation, task))

    def link_located(self, link: Link, execution_id: str) -> None:
        self.run(self.dispatcher.located(link.incarnation, execution_id))

    def link_mislaid(self, link: Link, execution_id: str) -> None:
        self.run(self.dispatcher.mislaid(link.incarnation, execution_id, time.monotonic()))

    # ------------------------------------------------------------------------------------------- what is done about it

    def run(self, actions: Sequence[Action]) -> None:
        """Carry out the dispatcher's instructions, and see to it that it is called when it wants to be."""
        self._outbox.direct = self.dispatcher.live <= _FEW
        for action in actions:
            self._performers[type(action)](action)
        when = self.dispatcher.next_deadline()
        if when < self._wake_at:
            self._wake(when)
        if self._on_drained is not None and not self.dispatcher.live:
            self._drained()

    def _dispatch(self, action: Dispatch) -> None:
        execution, agent = action.execution, action.agent
        try:
            number = agent.connection.send(passed_on(execution))
        except LocalProtocolError as error:
            text = f"the request cannot be sent: {error}"
            response = failed(execution.task, text, execution.execution_id, error.code)
            if error.code is ErrorCode.TOO_LARGE:
                self.run(self.dispatcher.answered(agent, execution.execution_id, response))
            else:  # its connection has just ended
                self.run(self.dispatcher.declined(agent, execution.execution_id, response, time.monotonic()))
            return
        agent.sent[number] = execution.execution_id
        self.agents.given(agent)
        self._record(execution, ExecutionStage.DISPATCHED)

    def _forward(self, action: Forward) -> None:
        execution = action.execution
        self.links.to(action.incarnation).forward(passed_on(execution, hops=1))
        self._record(execution, ExecutionStage.FORWARDED)

    def _answer(self, action: Answer) -> None:
        self._conclude(action.execution, named(action.response, action.execution.execution_id))

    def _finish(self, action: Finish) -> None:
        self._conclude(action.execution, ended(action.execution, action.ending))

    def _conclude(self, execution: Execution, response: ExecuteResponse) -> None:
        """Give the origin the final answer."""
        unknown = response.error_code == ErrorCode.OUTCOME_UNKNOWN
        self._end(execution, ExecutionStage.LOST if unknown else FINAL_STAGE[response.status])
        try:
            execution.origin.reply(execution.request_id, response)
        except LocalProtocolError as error:
            failure = failed(execution.task, f"the result cannot be sent: {error}", execution.execution_id, error.code)
            execution.origin.reply(execution.request_id, failure)

    def _refuse(self, action: Refuse) -> None:
        execution = action.execution
        self._end(execution, ExecutionStage.REFUSED)
        details = action.details if execution.source == CLIENT else execution.execution_id
        execution.origin.refuse(execution.request_id, action.code, action.message, details)

    def _end(self, execution: Execution, stage: ExecutionStage) -> None:
        if execution.source == CLIENT:
            del execution.origin.executions[execution.request_id]
            self._record(execution, stage)

    def _terminate(self, action: Terminate) -> None:
        with suppress(LocalProtocolError):  # its connection has just ended
            action.agent.connection.send(Signal(SignalName.TERMINATE, execution_id=action.execution_id))

    def _record(self, execution: Execution, stage: ExecutionStage) -> None:
        """Count a stage; of an execution that a neighbour accepted, the neighbour counts."""
        if execution.source == CLIENT:
            took_ns = int((time.monotonic() - execution.received_at) * 1e9)
            self._record_execution(stage, self._columns.get(execution.task, self._other_column), took_ns)

    # ------------------------------------------------------------------------------------------------ time, and the end

    def _wake(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake_at = when
        self._timer = self._loop.call_later(max(0.0, when - time.monotonic()) + _TIMER_SLACK_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._wake_at = inf
        self.run(self.dispatcher.expire(time.monotonic()))

    def drain(self, deadline_s: float, on_drained: Callable[[int], None]) -> None:
        """Refuse new executions; `on_drained(still_live)` is called when none is left, or at the deadline."""
        self.dispatcher.drain()
        self._on_drained = on_drained
        self._loop.call_later(deadline_s, self._drained)
        self.run(())

    def _drained(self) -> None:
        on_drained, self._on_drained = self._on_drained, None
        if on_drained is not None:
            on_drained(self.dispatcher.live)

    def stop(self) -> None:
        """End what is left, and the links."""
        self.agents.stop()
        self.run(self.dispatcher.abort())
        if self._timer is not None:
            self._timer.cancel()
        self.links.close()
