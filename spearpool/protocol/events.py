"""What can happen to a connection: the seed's `ConnectionEvent`s, as frozen values.

Sessions and the connection manager produce them; monitoring records them; programs may match over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

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


@dataclass(frozen=True, slots=True)
class Connected:
    remote_addr: str


@dataclass(frozen=True, slots=True)
class Authenticated:
    """`duration_s` is connect to authenticated. `instance` is the packed `InstanceId` of an agent, 0 for a client."""

    instance_id: str
    client_type: str
    instance: int = 0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AuthenticationFailed:
    """`cause` is the true reason; the peer is told less."""

    instance_id: str
    cause: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    reason: CloseReason
    authenticated: bool = False
    lifetime_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MessageReceived:
    message_type: MessageType
    size_bytes: int


@dataclass(frozen=True, slots=True)
class MessageSent:
    message_type: MessageType
    size_bytes: int


@dataclass(frozen=True, slots=True)
class HeartbeatTimeout:
    silent_s: float


@dataclass(frozen=True, slots=True)
class Errored:
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
