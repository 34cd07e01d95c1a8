"""One TCP connection: a transport and a session, joined.

What arrives goes into the session, and the events that come out go to the owner (the `ConnectionManager`). What the
session queues is written once: at once if it answers what just arrived here, else at the end of the loop's turn.

A connection that we close is half-closed first, and read (and ignored) for up to `LINGER_S`: closing a socket that
still holds unread bytes resets it, and the peer might never see the last thing that we said.
A peer that does not read its answers is not read either; what may pile up for it is bounded by `max_unsent_bytes`.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol, cast

from spearpool.errors import ErrorCode
from spearpool.protocol.credentials import Role
from spearpool.protocol.events import CloseReason
from spearpool.protocol.identifiers import ConnectionId
from spearpool.protocol.messages import ErrorMessage, MessageType, Payload
from spearpool.protocol.portable import PortableSession
from spearpool.protocol.session import Closed, ConnectionState, SessionEvent, SessionSettings

from .belongings import AgentRecord, Belongings, ConnectionSnapshot
from .executions import Agent, Execution
from .outbox import Outbox
from .pace import Pace
from .paced_transport import PacedTransport

__all__ = ["LINGER_S", "Connection", "Owner"]

LINGER_S = 1.0


class Owner(Protocol):
    """What a connection tells whoever made it."""

    def opened(self, connection: Connection) -> None: ...

    def happened(self, connection: Connection, events: Sequence[SessionEvent], began_ns: int) -> None:
        """The session returned these events; `began_ns` is when their bytes arrived (monotonic)."""
        ...

    def sent(self, connection: Connection, messages: Sequence[tuple[MessageType, int]]) -> None:
        """These messages, with their sizes in bytes, were handed to the transport."""
        ...

    def errored(self, connection: Connection, code: int, message: str) -> None:
        """An `Error` was queued that is about one request only."""
        ...

    def gone(self, connection: Connection) -> None:
        """The socket is closed."""
        ...


class Connection(asyncio.Protocol):
    """A server's end. `number` is the packed `ConnectionId`; `agent` and `executions` belong to task execution."""

    __slots__ = (
        "_eof",
        "_max_unsent_bytes",
        "_outbox",
        "_owner",
        "_paced",
        "_patience_s",
        "_patient_until",
        "_transport",
        "_unsent_bytes",
        "agent",
        "authenticated_at",
        "client_type",
        "client_version",
        "congested",
        "connected_at",
        "ended",
        "executions",
        "frozen",
        "heartbeat_sequence",
        "held",
        "last_activity",
        "linger_until",
        "moving",
        "number",
        "posted",
        "session",
        "session_id",
        "settled",
    )

    def __init__(
        self,
        owner: Owner,
        outbox: Outbox,
        number: int,
        settings: SessionSettings,
        max_unsent_bytes: int,
    ) -> None:
        now = time.monotonic()
        self._owner = owner
        self._outbox = outbox
        self._transport: asyncio.Transport | None = None
        self._paced: PacedTransport | None = None
        self._max_unsent_bytes = max_unsent_bytes
        self._unsent_bytes = inf  # at the last look
        self._patience_s = settings.heartbeat_timeout_s
        self._patient_until = 0.0
        self._eof = False
        self.number = number
        self.session = PortableSession(settings, now)
        self.connected_at = now
        self.last_activity = now
        self.authenticated_at = inf
        self.client_type: str | None = None
        self.client_version: str | None = None
        self.session_id: str | None = None
        self.heartbeat_sequence = 0
        self.agent: Agent | None = None
        self.executions: dict[int, Execution] = {}
        self.posted = False
        self.congested = False
        self.ended = False
        self.linger_until = inf
        self.held = False
        self.frozen = False
        self.moving = False
        self.settled = False

    @classmethod
    def resume(
        cls, belongings: Belongings, owner: Owner, outbox: Outbox, settings: SessionSettings, max_unsent_bytes: int
    ) -> Connection:
        """Go on with a connection of another worker; its agent, if it is one, is still to be welcomed."""
        connection = cls(owner, outbox, belongings.number, settings, max_unsent_bytes)
        connection.session = PortableSession.resume(belongings.session, settings, time.monotonic())
        connection.session_id = belongings.session_id
        connection.client_type = belongings.client_type
        connection.client_version = belongings.client_version
        connection.connected_at = belongings.connected_at
        connection.authenticated_at = belongings.authenticated_at
        connection.last_activity = belongings.last_activity
        connection.heartbeat_sequence = belongings.heartbeat_sequence
        return connection

    @property
    def connection_id(self) -> ConnectionId:
        return ConnectionId.unpack(self.number)

    @property
    def remote_addr(self) -> str:
        peer = None if self._transport is None else self._transport.get_extra_info("peername")
        return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""

    @property
    def authenticated(self) -> bool:
        return self.session.peer is not None

    def snapshot(self) -> ConnectionSnapshot:
        peer = self.session.peer
        return ConnectionSnapshot(
            connection_id=str(self.connection_id),
            instance_id=None if peer is None else peer.label,
            remote_addr=self.remote_addr,
            connected_at=self.connected_at,
            last_activity=self.last_activity,
            authenticated=peer is not None,
            client_type=self.client_type,
            client_version=self.client_version,
            session_id=self.session_id,
            status=self.session.state,
            heartbeat_sequence=self.heartbeat_sequence,
        )

    # ------------------------------------------------------------------------------------------------- moving away

    @property
    def at_rest(self) -> bool:
        """Whether it could move now: authenticated, nothing in flight, nothing unsent."""
        transport, agent = self._transport, self.agent
        if self.ended or transport is None or self.executions or not self.session.at_rest:
            return False
        if agent is not None and (agent.running or agent.sent or agent.instance is None):
            return False
        in_debt = self._paced is not None and self._paced.in_debt
        return not (in_debt or transport.is_closing() or transport.get_write_buffer_size())

    def belongings(self) -> Belongings:
        """What another worker needs to go on with it; only while it is `at_rest`."""
        agent = None
        if self.agent is not None and self.agent.instance is not None:
            agent = AgentRecord(self.agent.task, self.agent.held or self.agent.capacity, self.agent.instance)
        return Belongings(
            self.number,
            self.session.record(),
            self.session_id,
            self.client_type,
            self.client_version,
            self.connected_at,
            self.authenticated_at,
            self.last_activity,
            self.heartbeat_sequence,
            agent,
        )

    @property
    def fd(self) -> int:
        assert self._transport is not None
        fd: int = self._transport.get_extra_info("socket").fileno()
        return fd

    def hold(self) -> None:
        """Stop reading."""
        self.held = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def let_go_on(self) -> None:
        """Read again, unless the peer itself does not."""
        self.held = False
        if self._transport is not None and not self._transport.is_closing() and not self.congested:
            self._transport.resume_reading()

    def release(self) -> None:
        """It is another worker's: close our descriptor of it. The peer notices nothing, and the owner is not told."""
        self.ended = True
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    # ------------------------------------------------------------------------------------------------ what is said

    def reply(self, request_id: int, payload: Payload) -> None:
        """Send under the peer's own request id, unless the conversation is over. Raises `LocalProtocolError`."""
        if self.session.state is ConnectionState.AUTHENTICATED:
            self.session.send(payload, request_id)
            self._outbox.post(self)

    def refuse(self, request_id: int, code: ErrorCode, message: str, details: str | None = None) -> None:
        """Answer a request with an `Error`; nothing was done."""
        if self.session.state is ConnectionState.AUTHENTICATED:
            self.reply(request_id, ErrorMessage(code, message, details, request_id))
            self._owner.errored(self, code, message)

    def send(self, payload: Payload) -> int:
        """Send under an id of ours and return it. Raises `LocalProtocolError`, also when the conversation is over."""
        number = self.session.send(payload)
        self._outbox.post(self)
        return number

    def close(self, reason: CloseReason, detail: str = "") -> None:
        """End the conversation; a ConnectionClose says why where that is legal. Does nothing when it has ended."""
        if not self.ended:
            self.session.close(reason, detail)
            self._owner.happened(self, [Closed(reason, detail)], time.monotonic_ns())

    def flush(self) -> None:
        data = self.session.data_to_send()
        transport = self._transport
        if not data or transport is None or transport.is_closing():
            return
        transport.write(data)
        self._owner.sent(self, self.session.take_sent())
        if self.congested and not self.ended and transport.get_write_buffer_size() > self._max_unsent_bytes:
            self.close(CloseReason.OVERLOADED, f"more than {self._max_unsent_bytes} bytes wait to be read by the peer")

    def shut(self, *, linger: bool) -> None:
        """Write what is queued and close. The owner has closed its books on this connection already."""
        self.ended = True
        self.flush()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._eof:
            transport.close()
        elif linger and not self.congested:
            self.linger_until = time.monotonic() + LINGER_S
            transport.write_eof()
        else:
            transport.abort()

    def abort(self) -> None:
        """Close at once, whatever is still queued."""
        if self._transport is not None:
            self._transport.abort()

    # -------------------------------------------------------------------------------------------------------- time

    def next_deadline(self) -> float:
        """When `expire` has something to do (monotonic seconds)."""
        if self.ended:
            return self.linger_until
        return inf if self.moving else max(self.session.next_deadline(), self._patient_until)

    def expire(self, now: float) -> list[SessionEvent]:
        """Do what is due.

        A peer that still takes in what was written for it lives, however slow it is: what it says may not be read now,
        and our heartbeats stand behind the rest.
        """
        if self.ended:
            self.linger_until = inf
            self.abort()
            return []
        before, self._unsent_bytes = self._unsent_bytes, self._count_unsent()
        if self.frozen or 0 < self._unsent_bytes < before:
            self._patient_until = now + self._patience_s
            return []
        if self._paced is not None and self._paced.in_debt:
            self.session.excuse(now)
        events = self.session.expire(now)
        self._outbox.post(self)
        return events

    def pace(self, rate: float, count: Callable[[int, int], None]) -> None:
        """Read and write no more than `rate` bytes a second from now on; see `PacedTransport`."""
        assert self._transport is not None
        self._transport = self._paced = PacedTransport(self._transport, self, Pace(rate, time.monotonic()), count)

    def freeze(self, *, frozen: bool) -> None:
        """The peer's processes are stopped, or go on: while they are, its silence means nothing."""
        self.frozen = frozen
        if not frozen:
            self.session.excuse(time.monotonic())

    def _count_unsent(self) -> float:
        """Bytes that the peer has not acknowledged; inf for none, so that any number is less."""
        if self._transport is None:
            return inf
        sock = self._transport.get_extra_info("socket")
        waiting = int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return self._transport.get_write_buffer_size() + waiting or inf

    # ------------------------------------------------------------------------------------------ what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        if self.ended:
            return
        began_ns = time.monotonic_ns()
        self.last_activity = now = began_ns * 1e-9
        # what is said here to this very peer is written below: it need not go through the outbox
        in_outbox, self.posted = self.posted, True
        events = self.session.receive_data(data, now)
        if events:
            self._owner.happened(self, events, began_ns)
        self.posted = in_outbox
        if not self.ended:
            self.flush()

    def eof_received(self) -> bool:
        self._eof = True
        self._end_of_stream(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is None:
            return  # released
        self._eof = True
        self._end_of_stream(exc)
        self._owner.gone(self)
        self._transport = None

    def _end_of_stream(self, exc: Exception | None) -> None:
        if not self.ended:
            events = self.session.receive_data(b"", time.monotonic())
            if exc is not None or not events:  # no events: what happened before could not be handled to its end
                events = [Closed(CloseReason.LOST, str(exc))]
            self._owner.happened(self, events, time.monotonic_ns())

    def pause_writing(self) -> None:
        self.congested = True
        peer = self.session.peer
        # an agent goes on being read: what it gets is bounded by its capacity, and its answers free memory here
        if self._transport is not None and not (peer is not None and peer.role is Role.AGENT):
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.congested = False
        if self._transport is not None and not self.held:
            self._transport.resume_reading()
