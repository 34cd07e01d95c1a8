"""What may follow what: the one table of the protocol's states.

Both ends of a connection keep a `ConnectionState`. A message travels on a *lane* (who speaks to whom), and the table
says for each lane and state which messages are legal and where they lead; sender and receiver read the same row.
What is not in a row is a violation, and `VIOLATIONS` says what it costs.

              AuthRequest           AuthResponse(success)
  CONNECTED ---------------> AUTHENTICATING ------------> AUTHENTICATED
      |                            |                            |
      +----------------------------+----------------------------+--> CLOSING --> CLOSED
        AuthResponse(failure), ConnectionClose, a fatal Error, a time-out          end of the stream
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from spearpool.errors import ErrorCode

from .messages import MessageType

__all__ = [
    "LEGAL",
    "VIOLATIONS",
    "ConnectionState",
    "Lane",
    "Rows",
    "Side",
    "Step",
    "Violation",
    "lanes",
    "rows",
    "violation",
]


class Side(Enum):
    """Who we are."""

    SERVER = "server"
    AGENT = "agent"
    CLIENT = "client"

    __hash__ = object.__hash__  # see MessageType


class ConnectionState(Enum):
    """`CLOSING`: nothing more is said, what is queued may still be written. `CLOSED`: the conversation is over."""

    CONNECTED = "connected"
    AUTHENTICATING = "authenticating"
    AUTHENTICATED = "authenticated"
    CLOSING = "closing"
    CLOSED = "closed"

    __hash__ = object.__hash__  # Enum's own is Python code, and every piece of data asks for the state


class Lane(Enum):
    """Who speaks to whom. Before authentication the server does not know its peer; both of its lanes are equal then."""

    AGENT_TO_SERVER = "agent to server"
    CLIENT_TO_SERVER = "client to server"
    SERVER_TO_AGENT = "server to agent"
    SERVER_TO_CLIENT = "server to client"

    __hash__ = object.__hash__  # see MessageType


class Step(NamedTuple):
    """A legal message: the state it leads to, and the right that the peer of a server needs for it ("" for none)."""

    state: ConnectionState
    right: str = ""


class Violation(NamedTuple):
    """An illegal message: the code of the `Error` that answers it, why, and whether the connection ends with it."""

    code: ErrorCode
    reason: str
    fatal: bool


_T = MessageType
_CONNECTED, _AUTHENTICATING, _AUTHENTICATED, _CLOSING, _CLOSED = ConnectionState

_BEFORE = {
    _CONNECTED: {_T.AUTH_REQUEST: Step(_AUTHENTICATING)},
    _AUTHENTICATING: {
        # Proof mode: the second AuthRequest, which answers a challenge, is legal here and leads to AUTHENTICATING.
    },
}
"""What an unauthenticated peer may say."""

_BEFORE_FROM_SERVER = {
    _CONNECTED: {_T.ERROR: Step(_CONNECTED), _T.CONNECTION_CLOSE: Step(_CLOSING)},
    _AUTHENTICATING: {
        _T.AUTH_RESPONSE: Step(_AUTHENTICATED),  # success=false leads to CLOSING
        # Proof mode: success=false with a challenge leads to CONNECTED.
        _T.ERROR: Step(_AUTHENTICATING),
        _T.CONNECTION_CLOSE: Step(_CLOSING),
    },
}
_ANYONE = {
    _T.HEARTBEAT: Step(_AUTHENTICATED),
    _T.STREAM_DATA: Step(_AUTHENTICATED),
    _T.ERROR: Step(_AUTHENTICATED),
    _T.CONNECTION_CLOSE: Step(_CLOSING),
}
_OVER: dict[ConnectionState, dict[MessageType, Step]] = {_CLOSING: {}, _CLOSED: {}}

LEGAL: dict[Lane, dict[ConnectionState, dict[MessageType, Step]]] = {
    Lane.AGENT_TO_SERVER: {
        **_BEFORE,
        _AUTHENTICATED: {
            **_ANYONE,
            _T.EXECUTE_RESPONSE: Step(_AUTHENTICATED),
            _T.EXECUTE_REQUEST: Step(_AUTHENTICATED, "submit"),
            _T.SIGNAL: Step(_AUTHENTICATED, "submit"),  # to cancel what it submitted
        },
        **_OVER,
    },
    Lane.CLIENT_TO_SERVER: {
        **_BEFORE,
        _AUTHENTICATED: {
            **_ANYONE,
            _T.EXECUTE_REQUEST: Step(_AUTHENTICATED, "submit"),
            _T.SIGNAL: Step(_AUTHENTICATED),  # what it may name depends on its rights
        },
        **_OVER,
    },
    Lane.SERVER_TO_AGENT: {
        **_BEFORE_FROM_SERVER,
        _AUTHENTICATED: {
            **_ANYONE,
            _T.EXECUTE_REQUEST: Step(_AUTHENTICATED),
            _T.EXECUTE_RESPONSE: Step(_AUTHENTICATED),  # to an agent that submits
            _T.SIGNAL: Step(_AUTHENTICATED),
        },
        **_OVER,
    },
    Lane.SERVER_TO_CLIENT: {
        **_BEFORE_FROM_SERVER,
        _AUTHENTICATED: {**_ANYONE, _T.EXECUTE_RESPONSE: Step(_AUTHENTICATED)},
        **_OVER,
    },
}

_UNAUTHENTICATED = Violation(ErrorCode.NOT_AUTHENTICATED, "is not allowed before authentication", fatal=True)
_WRONG_DIRECTION = Violation(ErrorCode.REFUSED, "is not for this side to send", fatal=False)
_ALREADY = Violation(ErrorCode.CONFLICT, "came after authentication was over", fatal=False)

VIOLATIONS: dict[ConnectionState, dict[MessageType | None, Violation]] = {
    _CONNECTED: {None: _UNAUTHENTICATED},
    _AUTHENTICATING: {
        None: _UNAUTHENTICATED,
        _T.AUTH_REQUEST: Violation(ErrorCode.CONFLICT, "came while another one is being checked", fatal=True),
    },
    _AUTHENTICATED: {None: _WRONG_DIRECTION, _T.AUTH_REQUEST: _ALREADY, _T.AUTH_RESPONSE: _ALREADY},
}
"""By state and message; None stands for any other message. In CLOSING and CLOSED nothing is read any more."""


def lanes(side: Side, peer: Side = Side.CLIENT) -> tuple[Lane, Lane]:
    """The lanes that we hear and speak on. `peer` matters to a server only."""
    match side, peer:
        case (Side.AGENT, _):
            return Lane.SERVER_TO_AGENT, Lane.AGENT_TO_SERVER
        case (Side.CLIENT, _):
            return Lane.SERVER_TO_CLIENT, Lane.CLIENT_TO_SERVER
        case (_, Side.AGENT):
            return Lane.AGENT_TO_SERVER, Lane.SERVER_TO_AGENT
        case _:
            return Lane.CLIENT_TO_SERVER, Lane.SERVER_TO_CLIENT


Rows = dict[ConnectionState, tuple[dict[MessageType, Step], dict[MessageType, Step]]]
"""By state, what we may hear and what we may say: two rows of `LEGAL`."""

_ROWS: dict[tuple[Side, Side], Rows] = {
    (side, peer): {state: (LEGAL[hears][state], LEGAL[says][state]) for state in ConnectionState}
    for side in Side
    for peer in (Side.AGENT, Side.CLIENT)
    for hears, says in (lanes(side, peer),)
}


def rows(side: Side, peer: Side = Side.CLIENT) -> Rows:
    """The table as one side sees it. `peer`, who is at the other end, matters to a server only."""
    return _ROWS[side, peer]


def violation(state: ConnectionState, kind: MessageType, step: Step | None = None) -> Violation:
    """What a message of this type costs in this state; it is illegal, or the peer lacks the right for its `step`."""
    if step is not None:
        return Violation(ErrorCode.REFUSED, f"needs the right {step.right!r}", fatal=False)
    costs = VIOLATIONS[state]
    return costs.get(kind) or costs[None]
