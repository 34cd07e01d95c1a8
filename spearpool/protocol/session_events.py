"""What a `Session` tells its owner.

Structs rather than dataclasses: one is made for every message, and a frozen dataclass takes five times as long.
"""

from __future__ import annotations

import msgspec

from spearpool.errors import RemoteProtocolError

from .events import CloseReason
from .messages import AuthRequest, AuthResponse, MessageType, Payload

__all__ = [
    "AuthenticationAnswered",
    "AuthenticationRequested",
    "Closed",
    "Received",
    "SessionEvent",
    "Violated",
]


class _Event(msgspec.Struct, frozen=True, gc=False):
    """Base of the events of a session."""


class AuthenticationRequested(_Event, frozen=True):
    """To a server: call `accept` or `refuse`."""

    request_id: int
    request: AuthRequest
    size_bytes: int = 0


class AuthenticationAnswered(_Event, frozen=True):
    """To the side that dialled. Not a success: `Closed` follows."""

    response: AuthResponse
    size_bytes: int = 0


class Received(_Event, frozen=True):
    """A legal message. Heartbeats have been answered already; after a ConnectionClose follows `Closed`."""

    request_id: int
    payload: Payload
    message_type: MessageType
    size_bytes: int


class Violated(_Event, frozen=True):
    """The peer did what the protocol does not allow; an `Error` is queued, where one may be sent."""

    error: RemoteProtocolError


class Closed(_Event, frozen=True):
    """The last event, exactly once."""

    reason: CloseReason
    detail: str = ""


SessionEvent = AuthenticationRequested | AuthenticationAnswered | Received | Violated | Closed
