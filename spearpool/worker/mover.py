"""Which connection moves, and when: what `balance` decides becomes offers of `handover`.

A connection moves while it is at rest: nothing in flight, nothing unsent, at any place between two of its messages or
within one. Most are, most of the time. One that is not is *held*: a client is not read and an agent gets nothing to do,
until what is in flight has ended; but not for longer than `HOLD_S`, because its peer waits meanwhile.

A worker that is to leave (`empty`) gives away everything, and goes on serving what it still has.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from spearpool.metrics import MonitoringService, Seat, SeatState
from spearpool.protocol.events import CloseReason

from .balance import SETTLED_S, Balance, Standing
from .connection import Connection
from .connection_manager import ConnectionManager
from .control import Emptied
from .executions import Agent
from .handover import HandOver
from .task_execution import TaskExecutionManager

__all__ = ["HOLD_S", "LOOK_S", "Mover"]

LOOK_S = 0.1
BUSY_LOOK_S = 0.01
"""How often to look while something is about to move."""

HOLD_S = 0.25
"""How long a connection is held at most."""

SPARE_S = 5.0
"""How long it is not held again after that, unless the worker leaves: what it does takes its time."""

RETRY_S = 0.05
"""How long a connection that was refused is not offered again."""


@dataclass(slots=True, eq=False)
class _Held:
    """`seat` is who shall have it, None when that is decided in the moment."""

    connection: Connection
    seat: int | None
    until: float


@dataclass(slots=True, eq=False)
class _Leave:
    """How far the worker has got with giving everything away."""

    deadline: float
    on_emptied: Callable[[Emptied], None]
    handed_over: int
    awaited: int
    closed: int = 0


class Mover:
    """The connections of one worker as things that can move."""

    def __init__(
        self,
        seat: Seat,
        connections: ConnectionManager,
        executions: TaskExecutionManager,
        monitoring: MonitoringService,
    ) -> None:
        self.handover = HandOver(seat, connections, monitoring, self._settled)
        self._seat = seat
        self._connections = connections
        self._executions = executions
        self._balance = Balance(seat.index)
        self._young: deque[Connection] = deque()
        self._residents: dict[int, Connection] = {}  # those that count
        self._held: dict[int, _Held] = {}
        self._spared: dict[int, float] = {}  # not to be held, until when
        self._refused: dict[int, float] = {}  # not to be offered, until when
        self._leave: _Leave | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        connections.watcher = self

    def start(self) -> None:
        """Begin to look at the loads."""
        self._look()

    def stop(self) -> None:
        """Move nothing any more, and end all channels."""
        if self._timer is not None:
            self._timer.cancel()
        self.handover.close()

    def empty(self, deadline_s: float, on_emptied: Callable[[Emptied], None]) -> None:
        """Give everything away; `on_emptied` is told when nothing is left, or at the deadline, when it is closed."""
        if self._leave is None:
            deadline = time.monotonic() + deadline_s
            awaited = self._executions.dispatcher.live
            self._leave = _Leave(deadline, on_emptied, self.handover.handed_over, awaited)
            self._look_now()

    # ------------------------------------------------------------------------------------ what connections do (Watcher)

    def came(self, connection: Connection) -> None:
        if connection.settled:
            self._residents[connection.number] = connection
        else:
            self._young.append(connection)

    def ended(self, connection: Connection) -> None:
        self.handover.withdraw(connection)
        if self._residents.pop(connection.number, None) is not None:
            self.handover.loads.hold(-1)
        if self._held.pop(connection.number, None) is not None:
            connection.let_go_on()  # only who reads sees the peer go
        self._spared.pop(connection.number, None)
        self._refused.pop(connection.number, None)

    def _settled(self, connection: Connection) -> None:
        """An offer is over: the connection has moved, or it has not."""
        if connection.ended:
            self._residents.pop(connection.number, None)
        else:
            self._unhold(connection)
            self._refused[connection.number] = time.monotonic() + RETRY_S
        if self._leave is not None:
            self._look_now()

    # ------------------------------------------------------------------------------------------------- the time to look

    def _look_now(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        self.handover.expire(now)
        self._come_of_age(now)
        self._spared = {number: until for number, until in self._spared.items() if until > now}
        self._refused = {number: until for number, until in self._refused.items() if until > now}
        ready = [seat.index for seat in self.handover.neighbours() if seat.state is SeatState.READY]
        self._look_at_held(ready, now)
        if self._leave is not None:
            self._empty(self._leave, ready, now)
        elif ready and self._seat.state is SeatState.READY:
            for seat, count in self._balance.look(self._standings(ready), now).items():
                self._send_away(seat, count, now)
        if self._timer is None:
            busy = self._held or self._leave or self.handover.busy
            self._timer = self._loop.call_later(BUSY_LOOK_S if busy else LOOK_S, self._look)

    def _come_of_age(self, now: float) -> None:
        while self._young and (self._young[0].ended or now - self._young[0].connected_at >= SETTLED_S):
            connection = self._young.popleft()
            if not connection.ended:
                connection.settled = True
                self._residents[connection.number] = connection
                self.handover.loads.hold(1)

    def _standings(self, ready: list[int]) -> list[Standing]:
        loads = self.handover.loads.of([self._seat.index, *ready])
        return [Standing(seat, load) for seat, load in loads.items()]

    # ---------------------------------------------------------------------------------------------------------- balance

    def _send_away(self, seat: int, count: int, now: float) -> None:
        """Give so many to that seat: those at rest first, clients before agents; then hold as many as are missing."""
        count -= sum(held.seat == seat for held in self._held.values())
        for agents in (False, True):
            for connection in self._free(agents=agents, now=now):
                if count <= 0 or not self.handover.has_room(seat):
                    return
                if self._may_go(connection):
                    count -= self._give(connection, seat)
        for agents in (False, True):
            for connection in self._free(agents=agents, now=now):
                if count <= 0:
                    return
                if self._may_be_held(connection):
                    self._hold(connection, seat, now + HOLD_S)
                    count -= 1

    def _free(self, *, agents: bool, now: float) -> Iterator[Connection]:
        for connection in list(self._residents.values()):
            old = now - connection.connected_at >= SETTLED_S  # else it came from a worker that left
            if (connection.agent is not None) is agents and old and connection.number not in self._held:
                yield connection

    def _may_go(self, connection: Connection) -> bool:
        return connection.at_rest and not connection.moving and connection.number not in self._refused

    def _may_be_held(self, connection: Connection) -> bool:
        number = connection.number
        known = number in self._held or number in self._spared or number in self._refused
        return connection.authenticated and not (connection.ended or connection.moving or known)

    def _give(self, connection: Connection, seat: int) -> bool:
        agent = connection.agent
        if agent is not None and not agent.parked:
            self._park(agent)
        self._held.pop(connection.number, None)
        given = self.handover.give(connection, seat)
        if not given:
            self._unhold(connection)
            self._refused[connection.number] = inf
        return given

    # ---------------------------------------------------------------------------------------------------------- holding

    def _hold(self, connection: Connection, seat: int | None, until: float) -> None:
        self._held[connection.number] = _Held(connection, seat, until)
        if connection.agent is None:
            connection.hold()
        else:
            self._park(connection.agent)

    def _park(self, agent: Agent) -> None:
        agent.parked = True
        self._executions.dispatcher.agent_retired(agent, for_good=False)

    def _unhold(self, connection: Connection) -> None:
        self._held.pop(connection.number, None)
        connection.let_go_on()
        if connection.agent is not None:
            connection.agent.parked = False
            self._executions.run(self._executions.dispatcher.agent_resumed(connection.agent))

    def _look_at_held(self, ready: list[int], now: float) -> None:
        for number, held in list(self._held.items()):
            if held.seat in ready and self._may_go(held.connection) and self._is_wanted(held.seat):
                self._give(held.connection, held.seat)
            elif held.until <= now:
                self._unhold(held.connection)
                self._spared[number] = now + (SPARE_S if self._leave is None else HOLD_S)

    def _is_wanted(self, seat: int) -> bool:
        """Whether that seat still has so much less than this one that a move helps."""
        mine, theirs = self.handover.loads.of([self._seat.index, seat]).values()
        return mine - theirs >= 2 and self.handover.has_room(seat)

    # ---------------------------------------------------------------------------------------------------------- leaving

    def _empty(self, leave: _Leave, ready: list[int], now: float) -> None:
        rest = []
        for connection in self._connections:
            if self._may_go(connection):
                rest.append(connection)
            elif ready and self._may_be_held(connection):
                self._hold(connection, None, inf if connection.agent is not None else now + HOLD_S)
        if not ready:
            self._close(leave, rest)
        for connection, seat in zip(rest, self._balance.leave(self._standings(ready), len(rest)), strict=False):
            if self.handover.has_room(seat):
                self._give(connection, seat)
        late = now >= leave.deadline
        if late:
            self._close(leave, list(self._connections))
        under_way = len(self._connections) or self.handover.busy or self._executions.dispatcher.live
        if late or not under_way:
            self._leave = None
            leave.on_emptied(Emptied(self.handover.handed_over - leave.handed_over, leave.closed, leave.awaited))

    def _close(self, leave: _Leave, connections: list[Connection]) -> None:
        leave.closed += len(connections)
        for connection in connections:
            connection.close(CloseReason.DRAIN, "the worker leaves")
