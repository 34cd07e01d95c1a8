"""The transition table beside PROTOCOL.md's conventions, spelled out here a second time: every lane, state, type."""

from __future__ import annotations

import itertools

import pytest

from spearpool.errors import ErrorCode
from spearpool.protocol.messages import MessageType
from spearpool.protocol.transitions import (
    LEGAL,
    VIOLATIONS,
    ConnectionState,
    Lane,
    Side,
    Step,
    Violation,
    lanes,
    rows,
    violation,
)

S, T = ConnectionState, MessageType
FROM_SERVER = {Lane.SERVER_TO_AGENT, Lane.SERVER_TO_CLIENT}

STAY = {T.HEARTBEAT, T.STREAM_DATA, T.ERROR}
WORK: dict[Lane, dict[MessageType, str]] = {
    Lane.AGENT_TO_SERVER: {T.EXECUTE_RESPONSE: "", T.EXECUTE_REQUEST: "submit", T.SIGNAL: "submit"},
    Lane.CLIENT_TO_SERVER: {T.EXECUTE_REQUEST: "submit", T.SIGNAL: ""},
    Lane.SERVER_TO_AGENT: {T.EXECUTE_REQUEST: "", T.EXECUTE_RESPONSE: "", T.SIGNAL: ""},
    Lane.SERVER_TO_CLIENT: {T.EXECUTE_RESPONSE: ""},
}
"""What only some may say when authenticated, and the right it takes."""


def expected(lane: Lane, state: ConnectionState, kind: MessageType) -> Step | Violation | None:
    """The conventions as a sequence of rules; None where nothing is said or heard any more."""
    if state in {S.CLOSING, S.CLOSED}:
        return None
    if state is S.AUTHENTICATED:
        if kind is T.CONNECTION_CLOSE:
            return Step(S.CLOSING)
        if kind in STAY:
            return Step(state)
        if kind in WORK[lane]:
            return Step(state, WORK[lane][kind])
        code = ErrorCode.CONFLICT if kind in {T.AUTH_REQUEST, T.AUTH_RESPONSE} else ErrorCode.REFUSED
        return Violation(code, "", fatal=False)
    if lane in FROM_SERVER:
        if kind is T.CONNECTION_CLOSE:
            return Step(S.CLOSING)
        if kind is T.ERROR:
            return Step(state)
        if kind is T.AUTH_RESPONSE and state is S.AUTHENTICATING:
            return Step(S.AUTHENTICATED)
    elif kind is T.AUTH_REQUEST and state is S.CONNECTED:
        return Step(S.AUTHENTICATING)
    second = kind is T.AUTH_REQUEST and state is S.AUTHENTICATING
    return Violation(ErrorCode.CONFLICT if second else ErrorCode.NOT_AUTHENTICATED, "", fatal=True)


@pytest.mark.parametrize(("lane", "state", "kind"), list(itertools.product(Lane, S, T)))
def test_every_lane_state_and_type(lane: Lane, state: ConnectionState, kind: MessageType) -> None:
    wanted = expected(lane, state, kind)
    step = LEGAL[lane][state].get(kind)
    if isinstance(wanted, Violation):
        assert step is None
        assert violation(state, kind)._replace(reason="") == wanted
    else:
        assert step == wanted


def test_the_table_has_no_row_too_many() -> None:
    assert set(LEGAL) == set(Lane)
    assert all(set(lane) == set(S) for lane in LEGAL.values())
    assert set(VIOLATIONS) == {S.CONNECTED, S.AUTHENTICATING, S.AUTHENTICATED}


def test_before_authentication_a_server_need_not_know_its_peer() -> None:
    for state in (S.CONNECTED, S.AUTHENTICATING):
        assert LEGAL[Lane.AGENT_TO_SERVER][state] == LEGAL[Lane.CLIENT_TO_SERVER][state]
        assert LEGAL[Lane.SERVER_TO_AGENT][state] == LEGAL[Lane.SERVER_TO_CLIENT][state]


def test_states_only_go_forward() -> None:
    order = list(S)
    for lane in LEGAL.values():
        for state, row in lane.items():
            assert all(order.index(step.state) >= order.index(state) for step in row.values())


def test_violations_say_why() -> None:
    for costs in VIOLATIONS.values():
        assert None in costs
        assert all(cost.reason for cost in costs.values())


@pytest.mark.parametrize(
    ("side", "peer", "hears", "says"),
    [
        (Side.SERVER, Side.AGENT, Lane.AGENT_TO_SERVER, Lane.SERVER_TO_AGENT),
        (Side.SERVER, Side.CLIENT, Lane.CLIENT_TO_SERVER, Lane.SERVER_TO_CLIENT),
        (Side.AGENT, Side.SERVER, Lane.SERVER_TO_AGENT, Lane.AGENT_TO_SERVER),
        (Side.CLIENT, Side.SERVER, Lane.SERVER_TO_CLIENT, Lane.CLIENT_TO_SERVER),
    ],
)
def test_both_ends_of_a_connection_use_the_same_lanes(side: Side, peer: Side, hears: Lane, says: Lane) -> None:
    assert lanes(side, peer) == (hears, says)
    if peer is Side.SERVER:
        assert lanes(side) == (hears, says)
        assert lanes(Side.SERVER, side) == (says, hears)


def test_states_work_as_keys() -> None:
    assert {S("closing"): 1}[S.CLOSING] == 1


@pytest.mark.parametrize(("side", "peer", "state"), list(itertools.product(Side, (Side.AGENT, Side.CLIENT), S)))
def test_a_side_sees_two_rows_of_the_table(side: Side, peer: Side, state: ConnectionState) -> None:
    hears, says = lanes(side, peer)
    assert rows(side, peer)[state] == (LEGAL[hears][state], LEGAL[says][state])
    if side is not Side.SERVER:
        assert rows(side)[state] == rows(side, peer)[state]


def test_a_missing_right_is_a_refusal_that_names_it() -> None:
    cost = violation(S.AUTHENTICATED, T.SIGNAL, Step(S.AUTHENTICATED, "submit"))
    assert cost == Violation(ErrorCode.REFUSED, "needs the right 'submit'", fatal=False)
