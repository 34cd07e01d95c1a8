"""`ConnectionManager`: accepts connections, authenticates them, keeps them alive and ends them.

It can be used alone, as the seed describes it:

    manager = ConnectionManager.with_validator(config, validator)
    manager.subscribe(on_event)
    port = await manager.start_listening(0)
    ...
    await manager.close()

In a worker its `handler` is the `TaskExecutionManager`, which decides what an agent or a client may do once it is
authenticated. Authentication, heartbeats, time limits and the books (events, counters) are kept here.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol, assert_never

from spearpool import __version__
from spearpool.config import ConnectionManagerConfig
from spearpool.errors import ErrorCode, PoolStartError
from spearpool.metrics import MonitoringService
from spearpool.protocol.credentials import Identity, Refusal, Role, SecretValidator, Verifier
from spearpool.protocol.events import (
    Authenticated,
    AuthenticationFailed,
    CloseReason,
    Connected,
    ConnectionEvent,
    Direction,
    Disconnected,
    Errored,
    HeartbeatTimeout,
    MessageReceived,
    MessageSent,
)
from spearpool.protocol.identifiers import ConnectionId
from spearpool.protocol.messages import AuthRequest, ErrorMessage, Heartbeat, MessageType
from spearpool.protocol.session import (
    AuthenticationAnswered,
    AuthenticationRequested,
    Closed,
    Received,
    SessionEvent,
    SessionSettings,
    Violated,
)

from .connection import Connection, ConnectionSnapshot
from .deadlines import Deadlines
from .outbox import Outbox

__all__ = ["REFUSED", "ConnectionManager", "Handler", "Listener"]

TIMER_GRAIN_S = 0.02
"""Time limits are kept to within this much: one wake-up serves all that are due in it."""

MAX_LINGERING = 256
"""How many connections that have ended may wait for their peers to notice."""

REFUSED = "authentication failed"
"""All that a stranger is told; the true cause goes into the event."""

Listener = Callable[[ConnectionId, ConnectionEvent], None]


class Handler(Protocol):
    """What is done with authenticated connections."""

    def refusal(self, identity: Identity, /) -> str | None:
        """Why this peer, whose token is good, cannot be served here; None when it can."""
        ...

    def authenticated(self, connection: Connection, request: AuthRequest, /) -> None:
        """The first call for a connection."""
        ...

    def received(self, connection: Connection, event: Received) -> None:
        """Any message but heartbeats and closes."""
        ...

    def closed(self, connection: Connection, reason: CloseReason, /) -> None:
        """The last call for a connection."""
        ...


class _NoTasks:
    """The handler of a manager that is used alone."""

    def refusal(self, _identity: Identity) -> str | None:
        return None

    def authenticated(self, _connection: Connection, _request: AuthRequest) -> None:
        pass

    def received(self, connection: Connection, event: Received) -> None:
        if event.message.message_type is MessageType.EXECUTE_REQUEST:
            connection.refuse(event.message.request_id, ErrorCode.UNKNOWN, "no tasks are served here")

    def closed(self, _connection: Connection, _reason: CloseReason) -> None:
        pass


class ConnectionManager:
    """All connections of one worker. To be made inside a running event loop.

    `slot` and `incarnation` go into connection ids. Without `monitoring` events go to subscribers only.
    """

    def __init__(
        self,
        config: ConnectionManagerConfig,
        verifier: Verifier,
        *,
        handler: Handler | None = None,
        monitoring: MonitoringService | None = None,
        outbox: Outbox | None = None,
        slot: int = 0,
        incarnation: int = 0,
    ) -> None:
        self._config = config
        self._settings = SessionSettings.from_config(config)
        self._verifier = verifier
        self._handler = _NoTasks() if handler is None else handler
        self._monitoring = monitoring
        self._first_number = ConnectionId(slot, incarnation, 0).pack()
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._loop) if outbox is None else outbox
        self._listeners: list[Listener] = []
        self._server: asyncio.Server | None = None
        self._counter = 0
        self._sockets: dict[int, Connection] = {}  # all that have an open socket
        self._live: dict[int, Connection] = {}  # those whose conversation goes on
        self._agents: dict[object, Connection] = {}
        self._deadlines: Deadlines[int] = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._wake_at = inf
        self._closing = False
        self._empty = asyncio.Event()

    @classmethod
    def with_validator(cls, config: ConnectionManagerConfig, validator: SecretValidator) -> ConnectionManager:
        """The seed's constructor: `validator` is asked about each token; it returns a `Grant`, or None to refuse."""
        return cls(config, Verifier((), row_is_alive=lambda _row, _generation: False, validator=validator))

    # ------------------------------------------------------------------------------------------- listening, closing

    async def start_listening(self, where: int | socket.socket, host: str = "127.0.0.1") -> int:
        """Accept on a port of `host` (0: any free one), or on a socket that listens already. Returns the port.

        Raises `PoolStartError` when the port is taken.
        """
        try:
            if isinstance(where, int):
                self._server = await self._loop.create_server(
                    self._new_connection, host, where, backlog=self._config.backlog
                )
            else:
                self._server = await self._loop.create_server(
                    self._new_connection, sock=where, backlog=self._config.backlog
                )
        except OSError as error:
            raise PoolStartError(f"cannot listen on {host} port {where}: {error.strerror}") from error
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def stop_listening(self) -> None:
        """Accept nothing more; what is connected stays."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def close(self, reason: CloseReason = CloseReason.DRAIN, grace_s: float = 1.0) -> None:
        """End all conversations with a ConnectionClose, and wait so long for the peers to go."""
        self.stop_listening()
        self._closing = True
        for connection in list(self._live.values()):
            connection.close(reason)
        if self._sockets:
            try:
                await asyncio.wait_for(self._empty.wait(), grace_s)
            except TimeoutError:
                for connection in list(self._sockets.values()):
                    connection.abort()
                await self._empty.wait()
        if self._timer is not None:
            self._timer.cancel()

    # ----------------------------------------------------------------------------------------------------- looking

    def subscribe(self, listener: Listener) -> None:
        """Have `listener(connection_id, event)` called for everything that happens; it must not raise."""
        self._listeners.append(listener)

    def __len__(self) -> int:
        """Connections whose conversation goes on."""
        return len(self._live)

    def snapshots(self) -> list[ConnectionSnapshot]:
        """The state of each connection, the oldest first."""
        return [connection.snapshot() for connection in self._live.values()]

    def connection(self, number: int) -> Connection | None:
        """The live connection with this packed id."""
        return self._live.get(number)

    def revoke(self, token_ids: Sequence[str]) -> None:
        """Refuse these tokens from now on, and close what was opened with them."""
        self._verifier.revoke(token_ids)
        revoked = set(token_ids)
        for connection in list(self._live.values()):
            peer = connection.session.peer
            if peer is not None and peer.token_id in revoked:
                connection.close(CloseReason.REVOKED)

    # ------------------------------------------------------------------------------------- what connections tell us

    def _new_connection(self) -> Connection:
        self._counter += 1
        number = self._first_number + self._counter
        return Connection(self, self._outbox, number, self._settings, 2 * self._config.max_message_size)

    def opened(self, connection: Connection) -> None:
        self._sockets[connection.number] = self._live[connection.number] = connection
        self._tell(
            connection, Connected(connection.remote_addr if self._listeners else "")
        )  # asking costs a system call
        self._arm(connection)
        limit = self._config.max_connections
        if len(self._live) > limit:
            message = f"this worker has its {limit} connections already"
            connection.session.send(ErrorMessage(ErrorCode.OVERLOADED, message, "1000"))
            self.errored(connection, ErrorCode.OVERLOADED, message)
            connection.close(CloseReason.OVERLOADED, message)

    def happened(self, connection: Connection, events: Sequence[SessionEvent], began_ns: int) -> None:
        at_ns = time.monotonic_ns()
        share_ns = (at_ns - began_ns) // (len(events) or 1)
        for event in events:
            began_ns = at_ns - share_ns
            match event:
                case Received():
                    self._received(connection, event, began_ns)
                case AuthenticationRequested():
                    self._authenticate(connection, event, began_ns)
                case Violated(error):
                    self._tell(connection, Errored(error.code, str(error)))
                case Closed(reason):
                    self._end(connection, reason)
                case AuthenticationAnswered():
                    raise AssertionError("a server asks nobody for authentication")
                case _:
                    assert_never(event)
            at_ns = time.monotonic_ns()

    def sent(self, connection: Connection, messages: Sequence[tuple[MessageType, int]]) -> None:
        if self._monitoring is not None:
            for kind, size in messages:
                self._monitoring.record_message_event(connection.number, kind, Direction.OUTGOING, size)
        for listener in self._listeners:
            for kind, size in messages:
                listener(connection.connection_id, MessageSent(kind, size))

    def errored(self, connection: Connection, code: int, message: str) -> None:
        self._tell(connection, Errored(code, message))

    def gone(self, connection: Connection) -> None:
        del self._sockets[connection.number]
        self._deadlines.discard(connection.number)
        if self._closing and not self._sockets:
            self._empty.set()

    # ----------------------------------------------------------------------------------------------- what we do then

    def _authenticate(self, connection: Connection, event: AuthenticationRequested, began_ns: int) -> None:
        request = event.request
        found = self._verifier.verify(request, time.time())
        if isinstance(found, Identity):
            cause = self._handler.refusal(found)
            if cause is not None:
                found = Refusal(cause)
        if isinstance(found, Refusal):
            connection.session.refuse(REFUSED, __version__)
            self._count(connection, MessageType.AUTH_REQUEST, event.size_bytes, began_ns)
            self._tell(connection, AuthenticationFailed(request.instance_id, found.cause))
            self._end(connection, CloseReason.AUTHENTICATION)
            return
        now = time.monotonic()
        connection.session_id = f"s-{connection.number:x}"
        connection.session.accept(found, connection.session_id, __version__)
        connection.authenticated_at = now
        connection.client_type = request.client_type
        connection.client_version = request.client_version
        instance = 0 if found.instance is None else found.instance.pack()
        age_s = now - connection.connected_at
        self._tell(connection, Authenticated(found.label, request.client_type, instance, age_s))
        self._count(connection, MessageType.AUTH_REQUEST, event.size_bytes, began_ns)
        self._arm(connection)
        if found.role is Role.AGENT:
            key = _agent_key(found)
            older = self._agents.get(key)
            self._agents[key] = connection
            if older is not None:
                older.close(CloseReason.REPLACED, "a newer connection of this agent")
        self._handler.authenticated(connection, request)

    def _received(self, connection: Connection, event: Received, began_ns: int) -> None:
        kind = event.message.message_type
        if kind is MessageType.HEARTBEAT:
            if isinstance(event.payload, Heartbeat):
                connection.heartbeat_sequence = event.payload.sequence
        elif kind is not MessageType.CONNECTION_CLOSE:
            self._handler.received(connection, event)
        self._count(connection, kind, event.size_bytes, began_ns)

    def _end(self, connection: Connection, reason: CloseReason) -> None:
        """Close the books on a connection, and then its socket."""
        if self._live.pop(connection.number, None) is None:
            return
        now = time.monotonic()
        connection.shut(linger=self._closing or len(self._sockets) - len(self._live) <= MAX_LINGERING)
        if connection.linger_until < inf:
            self._arm(connection)
        if reason is CloseReason.HEARTBEAT_TIMEOUT:
            self._tell(connection, HeartbeatTimeout(now - connection.last_activity))
        self._tell(connection, Disconnected(reason, connection.authenticated, now - connection.connected_at))
        peer = connection.session.peer
        if peer is not None:
            if peer.role is Role.AGENT and self._agents.get(_agent_key(peer)) is connection:
                del self._agents[_agent_key(peer)]
            self._handler.closed(connection, reason)

    def _tell(self, connection: Connection, event: ConnectionEvent) -> None:
        if self._monitoring is not None:
            self._monitoring.record_connection_event(connection.number, event)
        for listener in self._listeners:
            listener(connection.connection_id, event)

    def _count(self, connection: Connection, kind: MessageType, size_bytes: int, began_ns: int) -> None:
        if self._monitoring is not None:
            took_ns = time.monotonic_ns() - began_ns
            self._monitoring.record_message_event(connection.number, kind, Direction.INCOMING, size_bytes, took_ns)
        for listener in self._listeners:
            listener(connection.connection_id, MessageReceived(kind, size_bytes))

    # -------------------------------------------------------------------------------------------------------- timers

    def _arm(self, connection: Connection) -> None:
        """Look at the connection when it next wants it. Its deadline mostly moves away: then it is put back later."""
        when = connection.next_deadline()
        self._deadlines.advance(connection.number, when)
        if when < self._wake_at - TIMER_GRAIN_S:
            self._wake(when)

    def _wake(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake_at = when
        self._timer = self._loop.call_later(max(TIMER_GRAIN_S, when - time.monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        now = time.monotonic()
        for number in self._deadlines.due(now):
            connection = self._sockets[number]
            if connection.next_deadline() <= now:
                self.happened(connection, connection.expire(now), time.monotonic_ns())
            self._deadlines.set(number, connection.next_deadline())
        self._timer = None
        self._wake_at = inf
        if len(self._deadlines):
            self._wake(self._deadlines.next())


def _agent_key(peer: Identity) -> object:
    """Two connections with equal keys are the same agent."""
    return peer.instance or (peer.token_id, peer.label)
