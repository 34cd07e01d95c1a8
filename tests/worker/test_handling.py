"""A manager that is used alone: nobody's tasks are served, and everybody may stay."""

from __future__ import annotations

from typing import Any, cast

from spearpool.errors import ErrorCode
from spearpool.protocol.events import CloseReason
from spearpool.protocol.identity import Identity, Role
from spearpool.protocol.messages import AuthRequest, MessageType, Signal, SignalName
from spearpool.protocol.session import Received
from spearpool.worker.handling import Handler, NoTasks

from .peers import request


class Listening:
    """Notes what it is asked to refuse."""

    def __init__(self) -> None:
        self.refused: list[tuple[int, ErrorCode]] = []

    def refuse(self, request_id: int, code: ErrorCode, _message: str) -> None:
        self.refused.append((request_id, code))


def test_without_tasks_executions_are_refused_and_all_else_is_ignored() -> None:
    handler: Handler = NoTasks()
    connection: Any = Listening()
    assert handler.refusal(Identity(Role.CLIENT, "cli", "token")) is None
    handler.authenticated(connection, AuthRequest("cli", "secret", "1", "test", {}))
    handler.received(connection, Received(7, request(), MessageType.EXECUTE_REQUEST, 10))
    handler.received(connection, Received(8, Signal(SignalName.PAUSE), MessageType.SIGNAL, 10))
    assert handler.took_in(connection, cast(Any, None))
    for reason in (CloseReason.PEER, None):
        handler.closed(connection, reason)
    assert connection.refused == [(7, ErrorCode.UNKNOWN)]
