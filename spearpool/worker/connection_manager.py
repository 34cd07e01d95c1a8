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
from collections.abc import Callable, Iterator, Sequence
from math import inf

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
from spearpool.protocol.messages import ErrorMessage, Heartbeat, MessageType
from spearpool.protocol.session import (
    AuthenticationRequested,
    Closed,
    Received,
    SessionEvent,
    SessionSettings,
    Violated,
)

from .belongings import Belongings, ConnectionSnapshot
from .connection import Connection
from .deadlines import Alarm
from .handling import Handler, NoTasks, Watcher
from .outbox import Outbox

__all__ = ["REFUSED", "ConnectionManager", "Listener"]

TIMER_GRAIN_S = 0.02
"""Time limits are kept to within this much: one wake-up serves all that are due in it."""

MAX_LINGERING = 256
"""How many connections that have ended may wait for their peers to notice."""

REFUSED = "authentication failed"
"""All that a stranger is told; the true cause goes into the event."""

Listener = Callable[[ConnectionId, ConnectionEvent], None]


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
        self._handler = NoTasks() if handler is None else handler
        self._monitoring = monitoring
        self._first_number = ConnectionId(slot, incarnation, 0).pack()
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._loop) if outbox is None else outbox
        self._listeners: list[Listener] = []
        self.watcher: Watcher | None = None
        self._arriving: dict[int, tuple[Belongings, asyncio.Task[object]]] = {}
        self._server: asyncio.Server | None = None
        self._counter = 0
        self._sockets: dict[int, Connection] = {}  # all that have an open socket
        self._live: dict[int, Connection] = {}  # those whose conversation goes on
        self._agents: dict[object, Connection] = {}
        self._alarm: Alarm[int] = Alarm(self._loop, TIMER_GRAIN_S, self._due)
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
                    self.new_connection, host, where, backlog=self._config.backlog
                )
            else:
                self._server = await self._loop.create_server(
                    self.new_connection, sock=where, backlog=self._config.backlog
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
        if self._sockets or self._arriving:
            try:
                await asyncio.wait_for(self._empty.wait(), grace_s)
            except TimeoutError:
                for connection in list(self._sockets.values()):
                    connection.abort()
                await self._empty.wait()
        self._alarm.cancel()

    # ----------------------------------------------------------------------------------------------------- looking

    def subscribe(self, listener: Listener) -> None:
        """Have `listener(connection_id, event)` called for everything that happens; it must not raise."""
        self._listeners.append(listener)

    def __len__(self) -> int:
        """Connections whose conversation goes on."""
        return len(self._live) + len(self._arriving)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._live.values()))

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

    # ------------------------------------------------------------------------------- from worker to worker

    @property
    def has_room(self) -> bool:
        return len(self) < self._config.max_connections and not self._closing

    def take_in(self, belongings: Belongings, sock: socket.socket) -> None:
        """Go on with a connection of another worker, which has been booked as ours."""
        unsent = 2 * self._config.max_message_size
        connection = Connection.resume(belongings, self, self._outbox, self._settings, unsent)
        connection.settled = True
        sock.setblocking(False)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: connection, sock))
        self._arriving[belongings.number] = (belongings, task)

    def abandon(self, connection: Connection) -> None:
        """Let another worker have it, who will book it as a new one."""
        lifetime_s = time.monotonic() - connection.connected_at
        self._tell(connection, Disconnected(CloseReason.DRAIN, connection.authenticated, lifetime_s))
        self.release(connection)

    def release(self, connection: Connection) -> None:
        """It goes on at another worker: let go of it. Nobody is told that it ended, because it did not."""
        number, peer = connection.number, connection.session.peer
        del self._live[number], self._sockets[number]
        self._alarm.discard(number)
        if peer is not None and peer.role is Role.AGENT and self._agents.get(_agent_key(peer)) is connection:
            del self._agents[_agent_key(peer)]
        self._handler.closed(connection, None)
        connection.release()

    def keep(self, connection: Connection) -> None:
        """It was to move, and stays after all."""
        if not connection.ended:
            self._arm(connection)

    # ------------------------------------------------------------------------------------- what connections tell us

    def new_connection(self) -> Connection:
        self._counter += 1
        number = self._first_number + self._counter
        return Connection(self, self._outbox, number, self._settings, 2 * self._config.max_message_size)

    def opened(self, connection: Connection) -> None:
        self._sockets[connection.number] = self._live[connection.number] = connection
        if connection.number in self._arriving:
            self._arrived(connection, self._arriving.pop(connection.number)[0])
            return
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
            if type(event) is Received:  # nearly always, so nearly nothing stands before it
                at_ns = self._received(connection, event, at_ns - share_ns)
                continue
            match event:
                case AuthenticationRequested():
                    self._authenticate(connection, event, at_ns - share_ns)
                case Violated(error):
                    self._tell(connection, Errored(error.code, str(error)))
                case Closed(reason):
                    self._end(connection, reason)
                case _:
                    raise AssertionError(f"a server asks nobody for authentication: {event}")
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
        self._alarm.discard(connection.number)
        if self._closing and not self._sockets:
            self._empty.set()

    # ----------------------------------------------------------------------------------------------- what we do then

    def _arrived(self, connection: Connection, belongings: Belongings) -> None:
        """A connection of another worker is open here. Much may have happened while it was on its way."""
        peer = belongings.session.peer
        self._arm(connection)
        if self.watcher is not None:
            self.watcher.came(connection)
        if self._closing:
            connection.close(CloseReason.DRAIN)
        elif self._verifier.is_revoked(peer.token_id):
            connection.close(CloseReason.REVOKED)
        elif self._is_newest(connection, peer) and not self._handler.took_in(connection, belongings):
            connection.close(CloseReason.REVOKED, "the instance's row was cleared")

    def _is_newest(self, connection: Connection, peer: Identity) -> bool:
        """Of several connections of an agent, only the one that authenticated last stays."""
        if peer.role is not Role.AGENT:
            return True
        key = _agent_key(peer)
        other = self._agents.get(key)
        newest = other is None or other.authenticated_at <= connection.authenticated_at
        if newest:
            self._agents[key] = connection
        older = other if newest else connection
        if older is not None:
            older.close(CloseReason.REPLACED, "a newer connection of this agent")
        return newest

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
        self._is_newest(connection, found)
        if self.watcher is not None:
            self.watcher.came(connection)
        self._handler.authenticated(connection, request)

    def _received(self, connection: Connection, event: Received, began_ns: int) -> int:
        """Returns when it was done."""
        kind = event.message_type
        if kind is MessageType.HEARTBEAT:
            if isinstance(event.payload, Heartbeat):
                connection.heartbeat_sequence = event.payload.sequence
        elif kind is not MessageType.CONNECTION_CLOSE:
            self._handler.received(connection, event)
        return self._count(connection, kind, event.size_bytes, began_ns)

    def _end(self, connection: Connection, reason: CloseReason) -> None:
        """Close the books on a connection, and then its socket."""
        if self._live.pop(connection.number, None) is None:
            return
        if self.watcher is not None and connection.authenticated:
            self.watcher.ended(connection)
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

    def _count(self, connection: Connection, kind: MessageType, size_bytes: int, began_ns: int) -> int:
        """An incoming message has been handled, now; returns the time."""
        now_ns = time.monotonic_ns()
        if self._monitoring is not None:
            took_ns = now_ns - began_ns
            self._monitoring.record_message_event(connection.number, kind, Direction.INCOMING, size_bytes, took_ns)
        for listener in self._listeners:
            listener(connection.connection_id, MessageReceived(kind, size_bytes))
        return now_ns

    # ---------------------------------------------------------------------------------------------------------- time

    def _arm(self, connection: Connection) -> None:
        """Look at the connection when it next wants it. Its deadline mostly moves away: then it is put back later."""
        self._alarm.advance(connection.number, connection.next_deadline())

    def _due(self, number: int, now: float) -> float:
        connection = self._sockets[number]
        if connection.next_deadline() <= now:
            self.happened(connection, connection.expire(now), time.monotonic_ns())
        return connection.next_deadline()


def _agent_key(peer: Identity) -> object:
    """Two connections with equal keys are the same agent."""
    return peer.instance or (peer.token_id, peer.label)
