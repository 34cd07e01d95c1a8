"""What can happen to a connection: the seed's `ConnectionEvent`s, as frozen values.

Sessions and the connection manager produce them; monitoring records them; programs may match over them. Structs rather
than dataclasses: some are made for every message, and eight frozen dataclasses would cost each agent 4 ms at its start.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from .messages import MessageType

__all__ = [
    "Authenticated",
    "AuthenticationFailed",
    "CloseReason",
    "Connected",
    "ConnectionEvent",
    "Direction",
    "Disconnected",
    "Errored",
    "HeartbeatTimeout",
    "MessageReceived",
    "MessageSent",
]


class Direction(Enum):
    INCOMING = "incoming"
    OUTGOING = "outgoing"

    __hash__ = object.__hash__  # see MessageType


class CloseReason(Enum):
    """Why a connection ended; the label of `connections_closed_total`."""

    PEER = "peer"  # the other side closed, or sent ConnectionClose
    LOST = "lost"  # reset, or half a frame and then the end
    AUTHENTICATION = "authentication"
    AUTH_TIMEOUT = "auth_timeout"
    HEARTBEAT_TIMEOUT = "heartbeat_timeout"
    IDLE = "idle"  # connection_timeout
    PROTOCOL = "protocol"
    REPLACED = "replaced"  # a newer connection of the same agent
    REVOKED = "revoked"  # the instance's row was cleared
    OVERLOADED = "overloaded"  # max_connections, or a write buffer that only grows
    DRAIN = "drain"  # planned leave
    CRASH = "crash"  # booked by the supervisor for a dead worker

    __hash__ = object.__hash__  # see MessageType


class _Event(msgspec.Struct, frozen=True):
    """Base of what happens to a connection."""


class Connected(_Event, frozen=True):
    """Accepted; nothing is known of the peer but its address, `HOST:PORT`."""

    remote_addr: str


class Authenticated(_Event, frozen=True):
    """`duration_s` is connect to authenticated. `instance` is the packed `InstanceId` of an agent, 0 for a client."""

    instance_id: str
    client_type: str
    instance: int = 0
    duration_s: float = 0.0


class AuthenticationFailed(_Event, frozen=True):
    """`cause` is the true reason; the peer is told less."""

    instance_id: str
    cause: str


class Disconnected(_Event, frozen=True):
    reason: CloseReason
    authenticated: bool = False
    lifetime_s: float = 0.0


class MessageReceived(_Event, frozen=True):
    message_type: MessageType
    size_bytes: int


class MessageSent(_Event, frozen=True):
    message_type: MessageType
    size_bytes: int


class HeartbeatTimeout(_Event, frozen=True):
    silent_s: float


class Errored(_Event, frozen=True):
    """A protocol error, sent or received; `code` is the wire's."""

    code: int
    message: str


ConnectionEvent = (
    Connected
    | Authenticated
    | AuthenticationFailed
    | Disconnected
    | MessageReceived
    | MessageSent
    | HeartbeatTimeout
    | Errored
)
