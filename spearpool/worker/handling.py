"""Who else deals with the connections of a `ConnectionManager`."""

from __future__ import annotations

from typing import Protocol

from spearpool.errors import ErrorCode
from spearpool.protocol.events import CloseReason
from spearpool.protocol.identity import Identity
from spearpool.protocol.messages import AuthRequest, MessageType
from spearpool.protocol.session import Received

from .belongings import Belongings
from .connection import Connection

__all__ = ["Handler", "NoTasks", "Watcher"]


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

    def closed(self, connection: Connection, reason: CloseReason | None, /) -> None:
        """The last call for a connection. No reason: it goes on at another worker."""
        ...

    def took_in(self, connection: Connection, belongings: Belongings, /) -> bool:
        """The first call for a connection that came from another worker; False when it cannot be served here."""
        ...


class Watcher(Protocol):
    """Who keeps an eye on all authenticated connections, because some shall move."""

    def came(self, connection: Connection, /) -> None: ...

    def ended(self, connection: Connection, /) -> None:
        """It is about to be closed."""
        ...


class NoTasks:
    """The handler of a manager that is used alone."""

    def refusal(self, _identity: Identity) -> str | None:
        return None

    def authenticated(self, _connection: Connection, _request: AuthRequest) -> None:
        pass

    def received(self, connection: Connection, event: Received) -> None:
        if event.message_type is MessageType.EXECUTE_REQUEST:
            connection.refuse(event.request_id, ErrorCode.UNKNOWN, "no tasks are served here")

    def closed(self, _connection: Connection, _reason: CloseReason | None) -> None:
        pass

    def took_in(self, _connection: Connection, _belongings: Belongings) -> bool:
        return True
