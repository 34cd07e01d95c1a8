"""The conversation on one connection, without the connection: bytes and time go in, events and bytes come out.

One class serves all sides. Give it what arrives (`receive_data`), act on the events that it returns, send with `send`,
and after either write what `data_to_send` returns. Ask `next_deadline` when to call `expire`. What may follow what is
the table in `transitions`; nothing that a peer does raises here: it ends in a `Closed` event. What *we* do wrong raises
`LocalProtocolError` and changes nothing.

A server is asked by `AuthenticationRequested` whom it deals with, and calls `accept` or `refuse`. Heartbeats are
answered here. After `Closed`, and after `close` or `refuse`, write what is queued and close the connection; the end of
the stream (`receive_data(b"")`) then brings the `Closed` event if it has not come yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, ClassVar

from spearpool.errors import ErrorCode, LocalProtocolError, RemoteProtocolError

from .codec import JSON_V1, Codec, message_type_of
from .events import CloseReason
from .framing import PREFIX_BYTES, FrameReader, frame
from .identity import Identity, Role
from .messages import (
    AuthRequest,
    AuthResponse,
    ConnectionClose,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    Heartbeat,
    HeartbeatStatus,
    MessageType,
    Payload,
    Timestamp,
)
from .negotiation import Encoding, encoding_asked, features
from .session_events import (
    AuthenticationAnswered,
    AuthenticationRequested,
    Closed,
    Received,
    SessionEvent,
    Violated,
)
from .session_settings import UNAUTHENTICATED_MAX_BYTES, SessionSettings
from .transitions import ConnectionState, Side, rows, violation

__all__ = [
    "UNAUTHENTICATED_MAX_BYTES",
    "AuthenticationAnswered",
    "AuthenticationRequested",
    "Closed",
    "ConnectionState",
    "Received",
    "Session",
    "SessionEvent",
    "SessionSettings",
    "Side",
    "Violated",
]

_FIRST_HEARTBEAT = {Side.SERVER: 2**63, Side.AGENT: 3 * 2**62, Side.CLIENT: 3 * 2**62}
"""Ids of our own heartbeats: apart from requests, and from the heartbeats of another spearpool at the other end."""

_MAX_ERROR_CHARS = 500
_UNSAID = frozenset({CloseReason.PEER, CloseReason.LOST, CloseReason.CRASH})
"""Reasons for which there is nobody left to tell."""

_DEAF = frozenset({ConnectionState.CLOSING, ConnectionState.CLOSED})
"""States in which nothing is read any more."""

_OWN_METHODS = {MessageType.AUTH_RESPONSE: "accept or refuse", MessageType.CONNECTION_CLOSE: "close"}


class Session:
    """One side of one conversation. `now` is monotonic seconds; `wall_ns` tells the time to write on messages."""

    __slots__ = (
        "_asked",
        "_auth_deadline",
        "_auth_request_id",
        "_close",
        "_heard_at",
        "_hears",
        "_heartbeat_at",
        "_in_flight",
        "_next_heartbeat_id",
        "_next_id",
        "_now",
        "_outgoing",
        "_reader",
        "_rows",
        "_says",
        "_sent",
        "_settings",
        "_used_at",
        "_wall_ns",
        "codec",
        "peer",
        "side",
        "state",
    )

    def __init__(
        self,
        side: Side,
        settings: SessionSettings,
        now: float,
        codec: Codec = JSON_V1,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.side = side
        self.codec = codec
        self.peer: Identity | None = None
        self._asked: Encoding | None = None  # in the AuthRequest
        self._settings = settings
        self._wall_ns = wall_ns
        self._reader = FrameReader(min(UNAUTHENTICATED_MAX_BYTES, settings.max_message_bytes))
        self._outgoing: list[bytes] = []
        self._sent: list[tuple[MessageType, int]] = []
        self._next_id = 1
        self._next_heartbeat_id = _FIRST_HEARTBEAT[side]
        self._auth_request_id = 0
        self._in_flight: set[int] = set()
        self._close: Closed | None = None
        self._now = now
        self._auth_deadline = now + settings.auth_timeout_s
        self._heard_at = now  # any byte
        self._used_at = now  # anything but heartbeats
        self._heartbeat_at = inf
        self._rows = rows(side)
        self._enter(ConnectionState.CONNECTED)

    @property
    def in_flight(self) -> int:
        """ExecuteRequests that this server has received and not yet answered for good."""
        return len(self._in_flight)

    def _enter(self, state: ConnectionState) -> None:
        self.state = state
        self._hears, self._says = self._rows[state]

    # What comes in

    def receive_data(self, data: bytes | bytearray | memoryview, now: float) -> list[SessionEvent]:
        """Take what arrived; `b""` is the end of the stream. Never raises for what the peer did."""
        self._now = now
        if not data:
            return self._end_of_stream()
        if self.state in _DEAF:
            return []
        self._heard_at = now
        events: list[SessionEvent] = []
        reader = self._reader
        reader.feed(data)
        try:
            while (body := reader.next_frame()) is not None:
                self._receive(body, events)
                if self.state in _DEAF:
                    break
        except RemoteProtocolError as error:
            self._answer_violation(error, 0, events, fatal=True)
        return events

    def _end_of_stream(self) -> list[SessionEvent]:
        if self.state is ConnectionState.CLOSED:
            return []
        events: list[SessionEvent] = []
        half_a_frame = Closed(CloseReason.LOST, "the stream ended inside a frame") if self._reader.buffered else None
        end = self._close or half_a_frame or Closed(CloseReason.PEER)
        self._finish(end.reason, end.detail, events)
        return events

    def _receive(self, body: bytes, events: list[SessionEvent]) -> None:
        kind, request_id, packed = self.codec.open(body)
        step = self._hears.get(kind)
        if step is None or (step.right and self.peer is not None and step.right not in self.peer.rights):
            wrong = violation(self.state, kind, step)
            error = RemoteProtocolError(f"{kind.value} {wrong.reason}", wrong.code)
            self._answer_violation(error, request_id, events, fatal=wrong.fatal)
            return
        try:
            payload = self.codec.decode_payload(kind, packed)
        except RemoteProtocolError as error:
            self._answer_violation(error, request_id, events, fatal=True)
            return
        if kind is not MessageType.HEARTBEAT:
            self._used_at = self._now
        event = Received(request_id, payload, kind, len(body) + PREFIX_BYTES)
        take = self._TAKES.get(kind)
        if take is None:
            events.append(event)
        else:
            take(self, event, payload, events)

    def _take_execute_request(self, event: Received, _request: ExecuteRequest, events: list[SessionEvent]) -> None:
        if event.request_id in self._in_flight:
            error = RemoteProtocolError(f"request {event.request_id} is still in flight", ErrorCode.CONFLICT)
            self._answer_violation(error, event.request_id, events, fatal=False)
            return
        if self.side is Side.SERVER:
            self._in_flight.add(event.request_id)
        events.append(event)

    def _take_heartbeat(self, event: Received, heartbeat: Heartbeat, events: list[SessionEvent]) -> None:
        number = event.request_id
        if not _FIRST_HEARTBEAT[self.side] <= number < self._next_heartbeat_id:  # else it answers one of ours
            self._queue(MessageType.HEARTBEAT, self._heartbeat(heartbeat.sequence), number)
        events.append(event)

    def _take_auth_request(self, event: Received, request: AuthRequest, events: list[SessionEvent]) -> None:
        self._auth_request_id = event.request_id
        self._asked = encoding_asked(request)
        self._enter(self._hears[event.message_type].state)
        events.append(AuthenticationRequested(event.request_id, request, event.size_bytes))

    def _take_auth_response(self, event: Received, response: AuthResponse, events: list[SessionEvent]) -> None:
        events.append(AuthenticationAnswered(response, event.size_bytes))
        if not response.success:
            self._finish(CloseReason.AUTHENTICATION, response.error_message or "refused", events)
            return
        if self._asked is not None and self._asked.feature in response.supported_features:
            self.codec = self._asked.codec
        self._authenticated(self._hears[event.message_type].state)

    def _take_close(self, event: Received, close: ConnectionClose, events: list[SessionEvent]) -> None:
        events.append(event)
        self._finish(CloseReason.PEER, close.reason, events)

    _TAKES: ClassVar[Mapping[MessageType, Callable[[Session, Received, Any, list[SessionEvent]], None]]] = {
        MessageType.EXECUTE_REQUEST: _take_execute_request,
        MessageType.HEARTBEAT: _take_heartbeat,
        MessageType.AUTH_REQUEST: _take_auth_request,
        MessageType.AUTH_RESPONSE: _take_auth_response,
        MessageType.CONNECTION_CLOSE: _take_close,
    }
    """What is done with those that are not simply handed over as `Received`."""

    def _heartbeat(self, sequence: int) -> Heartbeat:
        return Heartbeat(Timestamp.from_ns(self._wall_ns()), sequence, HeartbeatStatus.ACTIVE)

    def _answer_violation(
        self, error: RemoteProtocolError, request_id: int, events: list[SessionEvent], *, fatal: bool
    ) -> None:
        self._say_error(error.code, str(error), request_id)
        events.append(Violated(error))
        if fatal:
            self._finish(CloseReason.PROTOCOL, str(error), events)

    def _say_error(self, code: ErrorCode, text: str, request_id: int = 0) -> None:
        if MessageType.ERROR in self._says:
            error = ErrorMessage(code, text[:_MAX_ERROR_CHARS], related_request_id=request_id or None)
            self._queue(MessageType.ERROR, error, request_id)

    def _finish(self, reason: CloseReason, detail: str, events: list[SessionEvent]) -> None:
        self._in_flight.clear()
        self._enter(ConnectionState.CLOSED)
        events.append(Closed(reason, detail))

    # What goes out

    def send(self, payload: Payload, request_id: int | None = None) -> int:
        """Queue a message and return its id; without `request_id` our next own one.

        Raises `LocalProtocolError` when it may not be sent now (409) or is too large (413); nothing is changed then.
        """
        kind = message_type_of(payload)
        step = self._says.get(kind)
        if step is None or kind in _OWN_METHODS:
            hint = f": use {_OWN_METHODS[kind]}" if kind in _OWN_METHODS else ""
            words = f"a {self.side.value} may not send {kind.value} when {self.state.value}{hint}"
            raise LocalProtocolError(words, ErrorCode.CONFLICT)
        heartbeat = kind is MessageType.HEARTBEAT
        number = request_id
        if number is None:
            number = self._next_heartbeat_id if heartbeat else self._next_id
        self._queue(kind, payload, number, self._reader.max_bytes)
        if request_id is None:
            if heartbeat:
                self._next_heartbeat_id += 1
            else:
                self._next_id += 1
        elif number in self._in_flight and _ends(payload):
            self._in_flight.discard(number)
            self._used_at = self._now
        if step.state is not self.state:
            self._enter(step.state)
            if isinstance(payload, AuthRequest):
                self._asked = encoding_asked(payload)
        return number

    def _queue(
        self, kind: MessageType, payload: Payload, request_id: int, max_bytes: int = UNAUTHENTICATED_MAX_BYTES
    ) -> None:
        # The default is for what the session says by itself: small, and never to fail because of the limits.
        data = frame(self.codec.encode(payload, request_id, self._wall_ns(), max_bytes), max_bytes)
        self._outgoing.append(data)
        self._sent.append((kind, len(data)))

    def data_to_send(self) -> bytes:
        """Everything queued since the last call."""
        frames, self._outgoing = self._outgoing, []
        return frames[0] if len(frames) == 1 else b"".join(frames)

    def take_sent(self) -> list[tuple[MessageType, int]]:
        """Type and frame size of every message queued since the last call."""
        sent, self._sent = self._sent, []
        return sent

    # Beginning and end

    def accept(self, identity: Identity, session_id: str, server_version: str) -> None:
        """Server: say yes to the pending AuthRequest. Raises `LocalProtocolError` when there is none."""
        self._answer_authentication(AuthResponse(True, None, session_id, server_version, features(self._asked)))
        if self._asked is not None:
            self.codec = self._asked.codec
        self.peer = identity
        self._rows = rows(self.side, Side.AGENT if identity.role is Role.AGENT else Side.CLIENT)
        self._authenticated(ConnectionState.AUTHENTICATED)
        self._heartbeat_at = self._now + self._settings.heartbeat_interval_s

    def refuse(self, message: str, server_version: str = "") -> None:
        """Server: say no to the pending AuthRequest, and close. Raises `LocalProtocolError` when there is none."""
        self._answer_authentication(AuthResponse(False, message[:_MAX_ERROR_CHARS], None, server_version, []))
        self._close = Closed(CloseReason.AUTHENTICATION, message)
        self._enter(ConnectionState.CLOSING)

    def _answer_authentication(self, response: AuthResponse) -> None:
        if self.side is not Side.SERVER or MessageType.AUTH_RESPONSE not in self._says:
            words = f"a {self.side.value} has no AuthRequest to answer when {self.state.value}"
            raise LocalProtocolError(words, ErrorCode.CONFLICT)
        self._queue(MessageType.AUTH_RESPONSE, response, self._auth_request_id)

    def _authenticated(self, state: ConnectionState) -> None:
        self._reader.max_bytes = self._settings.max_message_bytes
        self._used_at = self._now
        self._enter(state)

    def close(self, reason: CloseReason, message: str = "") -> None:
        """Say `ConnectionClose` where that is legal, and nothing more. Does nothing when closing or closed already."""
        if self.state in _DEAF:
            return
        self._say_close(reason, message)
        self._in_flight.clear()
        self._close = Closed(reason, message)
        self._enter(ConnectionState.CLOSING)

    def _say_close(self, reason: CloseReason, message: str) -> None:
        if MessageType.CONNECTION_CLOSE in self._says and reason not in _UNSAID:
            text = f"{reason.value}: {message}" if message else reason.value
            self._queue(MessageType.CONNECTION_CLOSE, ConnectionClose(text[:_MAX_ERROR_CHARS]), self._next_id)
            self._next_id += 1

    # Time

    def next_deadline(self) -> float:
        """When `expire` has something to do, in monotonic seconds; `inf` for never."""
        if self.state is ConnectionState.AUTHENTICATED:
            return min(self._heard_at + self._settings.heartbeat_timeout_s, self._heartbeat_at, self._idle_at())
        return inf if self.state in _DEAF else self._auth_deadline

    def _idle_at(self) -> float:
        if self.peer is None or self.peer.role is not Role.CLIENT or self._in_flight:
            return inf
        return self._used_at + self._settings.connection_timeout_s

    def expire(self, now: float) -> list[SessionEvent]:
        """Do what is due: queue a heartbeat, or close for a time limit that has passed."""
        self._now = now
        events: list[SessionEvent] = []
        if now < self.next_deadline():
            return events
        limits = self._settings
        if self.state is not ConnectionState.AUTHENTICATED:
            detail = f"not authenticated within {limits.auth_timeout_s:g} s"
            self._say_error(ErrorCode.TIMED_OUT, detail)
            self._finish(CloseReason.AUTH_TIMEOUT, detail, events)
        elif now >= self._heard_at + limits.heartbeat_timeout_s:
            self._time_out(CloseReason.HEARTBEAT_TIMEOUT, f"silent for {now - self._heard_at:.3g} s", events)
        elif now >= self._idle_at():
            self._time_out(CloseReason.IDLE, f"idle for {now - self._used_at:.3g} s", events)
        else:
            self._heartbeat_at = now + limits.heartbeat_interval_s
            number = self._next_heartbeat_id
            self.send(self._heartbeat(number - _FIRST_HEARTBEAT[self.side]))
        return events

    def _time_out(self, reason: CloseReason, detail: str, events: list[SessionEvent]) -> None:
        self._say_close(reason, detail)
        self._finish(reason, detail, events)


def _ends(payload: Payload) -> bool:
    return isinstance(payload, ErrorMessage) or (isinstance(payload, ExecuteResponse) and payload.status.final)
