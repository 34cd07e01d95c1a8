"""Connection events are frozen values that a program can match over."""

from __future__ import annotations

from typing import get_args

import pytest

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
from spearpool.protocol.messages import MessageType

EVENTS: list[ConnectionEvent] = [
    Connected("127.0.0.1:4711"),
    Authenticated("thumb-0-1", "process", 1, 0.002),
    AuthenticationFailed("thumb-0-1", "token has a wrong mac"),
    Disconnected(CloseReason.PEER, True, 1.5),
    MessageReceived(MessageType.HEARTBEAT, 490),
    MessageSent(MessageType.HEARTBEAT, 490),
    HeartbeatTimeout(30.0),
    Errored(400, "malformed"),
]


def test_the_seeds_events_are_all_there() -> None:
    assert [type(event) for event in EVENTS] == list(get_args(ConnectionEvent))
    assert [type(event).__name__ for event in EVENTS] == [
        "Connected",
        "Authenticated",
        "AuthenticationFailed",
        "Disconnected",
        "MessageReceived",
        "MessageSent",
        "HeartbeatTimeout",
        "Errored",
    ]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_are_frozen_values(event: ConnectionEvent) -> None:
    fields = event.__struct_fields__
    assert event == type(event)(*(getattr(event, name) for name in fields))
    with pytest.raises(AttributeError):
        setattr(event, fields[0], None)


def test_events_match_by_class_and_field() -> None:
    match EVENTS[3]:
        case Disconnected(CloseReason.PEER, authenticated=True, lifetime_s=lifetime):
            assert lifetime == 1.5
        case other:
            pytest.fail(f"{other} did not match")


def test_received_and_sent_are_different_events() -> None:
    events: list[ConnectionEvent] = [MessageReceived(MessageType.ERROR, 1), MessageSent(MessageType.ERROR, 1)]
    assert events[0] != events[1]


def test_labels_are_the_names_of_the_metrics() -> None:
    assert {reason.value for reason in CloseReason} == {
        "peer",
        "lost",
        "authentication",
        "auth_timeout",
        "heartbeat_timeout",
        "idle",
        "protocol",
        "replaced",
        "revoked",
        "overloaded",
        "drain",
        "crash",
    }
    assert [direction.value for direction in Direction] == ["incoming", "outgoing"]
