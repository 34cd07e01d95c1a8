"""What a session says is a closed union of frozen values, matched by class."""

from __future__ import annotations

from typing import get_args

import pytest

from spearpool.errors import RemoteProtocolError
from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import (
    AuthRequest,
    AuthResponse,
    ConnectionClose,
    MessageType,
)
from spearpool.protocol.session_events import (
    AuthenticationAnswered,
    AuthenticationRequested,
    Closed,
    Received,
    SessionEvent,
    Violated,
)

EVENTS: list[SessionEvent] = [
    AuthenticationRequested(1, AuthRequest("i", "token", "", "", {}), 300),
    AuthenticationAnswered(AuthResponse(True), 300),
    Received(1, ConnectionClose(), MessageType.CONNECTION_CLOSE, 131),
    Violated(RemoteProtocolError("no")),
    Closed(CloseReason.PEER),
]


def test_the_union_is_closed() -> None:
    assert [type(event) for event in EVENTS] == list(get_args(SessionEvent))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_are_frozen(event: SessionEvent) -> None:
    with pytest.raises(AttributeError):
        setattr(event, event.__struct_fields__[0], None)


def test_events_match_by_position() -> None:
    match EVENTS[2]:
        case Received(request_id, ConnectionClose(reason), message_type, size_bytes):
            assert (request_id, reason, message_type, size_bytes) == (1, "", MessageType.CONNECTION_CLOSE, 131)
        case other:
            pytest.fail(f"{other} did not match")
