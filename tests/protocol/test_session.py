"""Sessions: bytes and time in, events and bytes out. Every side, state, direction and type; then rule by rule."""

from __future__ import annotations

import itertools
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spearpool.errors import ErrorCode, LocalProtocolError
from spearpool.protocol.codec import JSON_V1, Codec
from spearpool.protocol.codec_v2 import MSGPACK_V2
from spearpool.protocol.events import CloseReason
from spearpool.protocol.framing import PREFIX_BYTES, FrameReader, frame
from spearpool.protocol.identity import RIGHTS, Identity, Role
from spearpool.protocol.messages import (
    AuthRequest,
    AuthResponse,
    ConnectionClose,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Heartbeat,
    HeartbeatStatus,
    MessageType,
    Payload,
    Signal,
    SignalName,
    StreamData,
    Timestamp,
)
from spearpool.protocol.negotiation import ASK, FEATURES
from spearpool.protocol.session import (
    UNAUTHENTICATED_MAX_BYTES,
    AuthenticationAnswered,
    AuthenticationRequested,
    Closed,
    ConnectionState,
    Received,
    Session,
    SessionEvent,
    SessionSettings,
    Side,
    Violated,
)
from spearpool.protocol.transitions import LEGAL, lanes, violation

from .samples import VALUES, spell, spell_body

S, T = ConnectionState, MessageType
LIMITS = SessionSettings(
    auth_timeout_s=10.0,
    heartbeat_interval_s=5.0,
    heartbeat_timeout_s=30.0,
    connection_timeout_s=100.0,
    max_message_bytes=1_000_000,
)
WALL_NS = 1_700_000_000_000_000_005
CLIENT = Identity(Role.CLIENT, "cli", "default", rights=frozenset(RIGHTS))
WATCHER = Identity(Role.CLIENT, "cli", "default", rights=frozenset({"observe"}))
AGENT = Identity(Role.AGENT, "thumb-0-1", "thumb-0-1", task="thumb")
AUTH = AuthRequest("cli", "secret-token", "1.0", "test", {})
ASKING = AuthRequest("cli", "secret-token", "1.0", "test", ASK)
RUN = ExecuteRequest("thumb", "", [], {}, input_data=b"in")
DONE = ExecuteResponse("thumb", ExecutionStatus.COMPLETED, "out")
BEAT = Heartbeat(Timestamp(1, 2), 42, HeartbeatStatus.BUSY)

Sent = tuple[MessageType, int, Payload]


def new(side: Side, limits: SessionSettings = LIMITS, now: float = 0.0) -> Session:
    return Session(side, limits, now, wall_ns=lambda: WALL_NS)


def wire(payload: Payload, request_id: int = 1, codec: Codec = JSON_V1) -> bytes:
    return frame(codec.encode(payload, request_id, WALL_NS), 2**30)


def said(session: Session) -> list[Sent]:
    """What is in `data_to_send`: type, request id, payload. All in the session's encoding but for an AuthResponse."""
    reader = FrameReader(2**30)
    reader.feed(session.data_to_send())
    messages = []
    while (body := reader.next_frame()) is not None:
        codec = JSON_V1 if body.startswith(b"{") else MSGPACK_V2
        kind, number, packed = codec.open(body)
        assert codec is (JSON_V1 if kind is T.AUTH_RESPONSE else session.codec)
        messages.append((kind, number, codec.decode_payload(kind, packed)))
    assert reader.buffered == 0
    return messages


def server(
    identity: Identity = CLIENT, limits: SessionSettings = LIMITS, now: float = 0.0, auth: AuthRequest = AUTH
) -> Session:
    """An authenticated server with nothing left to send."""
    session = new(Side.SERVER, limits, now)
    session.receive_data(wire(auth), now)
    session.accept(identity, "s-1", "0.1.0")
    session.data_to_send()
    session.take_sent()
    return session


def dialled(
    side: Side = Side.CLIENT, limits: SessionSettings = LIMITS, now: float = 0.0, auth: AuthRequest = AUTH
) -> Session:
    """An authenticated agent or client with nothing left to send. Its server takes every encoding."""
    session = new(side, limits, now)
    session.send(auth)
    session.receive_data(wire(AuthResponse(True, None, "s-1", "0.1.0", ["encoding:msgpack"])), now)
    session.data_to_send()
    session.take_sent()
    return session


def in_state(side: Side, state: ConnectionState, peer: Role = Role.CLIENT, auth: AuthRequest = AUTH) -> Session:
    if state is S.CONNECTED:
        return new(side)
    if state is S.AUTHENTICATING:
        session = new(side)
        if side is Side.SERVER:
            session.receive_data(wire(auth), 0.0)
        else:
            session.send(auth)
    else:
        identity = CLIENT if peer is Role.CLIENT else AGENT
        session = server(identity, auth=auth) if side is Side.SERVER else dialled(side, auth=auth)
        if state is S.CLOSING:
            session.close(CloseReason.DRAIN)
        elif state is S.CLOSED:
            session.receive_data(b"", 0.0)
    session.data_to_send()
    session.take_sent()
    assert session.state is state
    return session


PARTIES = [(Side.SERVER, Role.CLIENT), (Side.SERVER, Role.AGENT), (Side.AGENT, Role.CLIENT), (Side.CLIENT, Role.CLIENT)]
EVERYTHING = list(itertools.product(PARTIES, S, T))
ENCODINGS = pytest.mark.parametrize("auth", [AUTH, ASKING], ids=["v1", "v2"])


def names(values: object) -> str:
    return values.value if isinstance(values, ConnectionState | MessageType) else "-".join(v.value for v in values)  # type: ignore[attr-defined]


# The table, acted out


@ENCODINGS
@pytest.mark.parametrize(("party", "state", "kind"), EVERYTHING, ids=names)
def test_receiving_in_every_state(
    party: tuple[Side, Role], state: ConnectionState, kind: MessageType, auth: AuthRequest
) -> None:
    side, peer = party
    session = in_state(side, state, peer, auth)
    hears, says = lanes(side, Side.AGENT if peer is Role.AGENT else Side.CLIENT)
    step = LEGAL[hears][state].get(kind)
    events = session.receive_data(wire(VALUES[kind], 77, session.codec), 1.0)
    answers = said(session)

    if state in {S.CLOSING, S.CLOSED}:
        assert (events, answers, session.state) == ([], [], state)
    elif step is not None and not (step.right and peer is Role.AGENT):
        assert not any(isinstance(event, Violated) for event in events)
        assert session.state is (S.CLOSED if step.state is S.CLOSING else step.state)
        assert [kind for kind, *_ in answers] == ([T.HEARTBEAT] if kind is T.HEARTBEAT else [])
        assert type(events[0]) is {
            T.AUTH_REQUEST: AuthenticationRequested,
            T.AUTH_RESPONSE: AuthenticationAnswered,
        }.get(kind, Received)
    else:
        cost = violation(state, kind) if step is None else None
        code = ErrorCode.REFUSED if cost is None else cost.code
        fatal = cost is not None and cost.fatal
        assert isinstance(events[0], Violated)
        assert events[0].error.code is code
        assert [type(event) for event in events[1:]] == ([Closed] if fatal else [])
        assert session.state is (S.CLOSED if fatal else state)
        if T.ERROR in LEGAL[says][state]:
            assert answers == [(T.ERROR, 77, ErrorMessage(code, str(events[0].error), None, 77))]
        else:
            assert answers == []


@ENCODINGS
@pytest.mark.parametrize(("party", "state", "kind"), EVERYTHING, ids=names)
def test_sending_in_every_state(
    party: tuple[Side, Role], state: ConnectionState, kind: MessageType, auth: AuthRequest
) -> None:
    side, peer = party
    session = in_state(side, state, peer, auth)
    _, says = lanes(side, Side.AGENT if peer is Role.AGENT else Side.CLIENT)
    step = LEGAL[says][state].get(kind)
    if step is not None and kind not in {T.AUTH_RESPONSE, T.CONNECTION_CLOSE}:
        request_id = session.send(VALUES[kind])
        assert said(session) == [(kind, request_id, VALUES[kind])]
        assert session.state is step.state
    else:
        with pytest.raises(LocalProtocolError, match=f"may not send {kind.value} when {state.value}") as caught:
            session.send(VALUES[kind])
        assert caught.value.code is ErrorCode.CONFLICT
        assert (session.state, session.data_to_send(), session.take_sent()) == (state, b"", [])


@pytest.mark.parametrize(("party", "state"), list(itertools.product(PARTIES, S)), ids=names)
def test_closing_in_every_state(party: tuple[Side, Role], state: ConnectionState) -> None:
    side, peer = party
    session = in_state(side, state, peer)
    session.close(CloseReason.DRAIN, "bye")
    legal = T.CONNECTION_CLOSE in LEGAL[lanes(side)[1]][state]
    assert said(session) == ([(T.CONNECTION_CLOSE, 1, ConnectionClose("drain: bye"))] if side is Side.SERVER else [
        (T.CONNECTION_CLOSE, 2, ConnectionClose("drain: bye"))
    ])[: int(legal)]  # fmt: skip
    assert session.state is (state if state in {S.CLOSING, S.CLOSED} else S.CLOSING)
    events = session.receive_data(b"", 1.0)
    if state is S.CLOSED:
        assert events == []
    else:
        assert events == [Closed(CloseReason.DRAIN, "" if state is S.CLOSING else "bye")]
    assert session.state is S.CLOSED


@pytest.mark.parametrize(("party", "state"), list(itertools.product(PARTIES, S)), ids=names)
def test_only_a_server_with_a_request_at_hand_may_accept_or_refuse(
    party: tuple[Side, Role], state: ConnectionState
) -> None:
    if party[0] is Side.SERVER and state is S.AUTHENTICATING:
        return
    session = in_state(party[0], state, party[1])
    with pytest.raises(LocalProtocolError, match="no AuthRequest to answer"):
        session.accept(CLIENT, "s-2", "0.1.0")
    with pytest.raises(LocalProtocolError, match="no AuthRequest to answer"):
        session.refuse("no")
    assert (session.state, session.data_to_send()) == (state, b"")


# Authentication


def test_a_server_accepts() -> None:
    session = new(Side.SERVER)
    assert session.receive_data(wire(AUTH, 12345), 1.0) == [
        AuthenticationRequested(12345, AUTH, len(wire(AUTH, 12345)))
    ]
    assert session.state is S.AUTHENTICATING
    session.accept(CLIENT, "session-9", "0.1.0")
    assert said(session) == [(T.AUTH_RESPONSE, 12345, AuthResponse(True, None, "session-9", "0.1.0", list(FEATURES)))]
    assert (session.state, session.peer) == (S.AUTHENTICATED, CLIENT)


def test_a_server_refuses() -> None:
    session = new(Side.SERVER)
    session.receive_data(wire(AUTH, 12345), 1.0)
    session.refuse("authentication failed")
    assert said(session) == [(T.AUTH_RESPONSE, 12345, AuthResponse(False, "authentication failed", None, "", []))]
    assert (session.state, session.peer, session.next_deadline()) == (S.CLOSING, None, inf)
    assert session.receive_data(wire(AUTH), 2.0) == []
    assert session.receive_data(b"", 2.0) == [Closed(CloseReason.AUTHENTICATION, "authentication failed")]


@pytest.mark.parametrize("side", [Side.AGENT, Side.CLIENT])
def test_the_other_side_is_accepted(side: Side) -> None:
    session = new(side)
    assert session.send(AUTH) == 1
    answer = AuthResponse(True, None, "s-1", "0.1.0", ["execute"])
    data = wire(answer)
    assert session.receive_data(data, 1.0) == [AuthenticationAnswered(answer, len(data))]
    assert session.state is S.AUTHENTICATED


@pytest.mark.parametrize("side", [Side.AGENT, Side.CLIENT])
def test_the_other_side_is_refused(side: Side) -> None:
    session = new(side)
    session.send(AUTH)
    answer = AuthResponse(False, "authentication failed", None, "0.1.0", [])
    data = wire(answer)
    assert session.receive_data(data + wire(RUN), 1.0) == [
        AuthenticationAnswered(answer, len(data)),
        Closed(CloseReason.AUTHENTICATION, "authentication failed"),
    ]
    assert session.state is S.CLOSED


def test_the_seeds_short_refusal() -> None:
    session = new(Side.AGENT)
    session.send(AUTH)
    body = spell_body("AuthResponse", b'{"success":false,"error_message":null,"session_id":null}')
    events = session.receive_data(frame(body, 10_000), 1.0)
    assert events[1:] == [Closed(CloseReason.AUTHENTICATION, "refused")]


def test_a_message_right_behind_the_auth_request_came_before_authentication() -> None:
    session = new(Side.SERVER)
    events = session.receive_data(wire(AUTH, 1) + wire(RUN, 2), 1.0)
    assert [type(event) for event in events] == [AuthenticationRequested, Violated, Closed]
    assert said(session)[0][2] == ErrorMessage(401, "ExecuteRequest is not allowed before authentication", None, 2)
    with pytest.raises(LocalProtocolError):
        session.accept(CLIENT, "s", "1")


def test_a_second_auth_request_is_a_conflict_and_changes_nothing() -> None:
    session = server()
    events = session.receive_data(wire(AUTH, 9) + wire(RUN, 10), 1.0)
    assert [type(event) for event in events] == [Violated, Received]
    assert said(session) == [(T.ERROR, 9, ErrorMessage(409, "AuthRequest came after authentication was over", None, 9))]
    assert session.peer is CLIENT


def test_what_comes_with_the_answer_is_heard() -> None:
    session = new(Side.AGENT)
    session.send(AUTH)
    events = session.receive_data(wire(AuthResponse(True)) + wire(RUN, 1) + wire(RUN, 2), 1.0)
    assert [type(event) for event in events] == [AuthenticationAnswered, Received, Received]


# Encodings


def test_a_server_that_is_asked_switches_behind_its_answer() -> None:
    session = new(Side.SERVER)
    session.receive_data(wire(ASKING, 9), 1.0)
    assert session.codec is JSON_V1
    session.accept(CLIENT, "s-1", "0.1.0")
    session.send(ErrorMessage(404, "none"), 5)
    features = [*FEATURES, "encoding:msgpack"]
    assert said(session) == [
        (T.AUTH_RESPONSE, 9, AuthResponse(True, None, "s-1", "0.1.0", features)),
        (T.ERROR, 5, ErrorMessage(404, "none")),
    ]
    assert session.codec is MSGPACK_V2
    (event,) = session.receive_data(wire(RUN, 6, MSGPACK_V2), 2.0)
    assert event == Received(6, RUN, T.EXECUTE_REQUEST, len(wire(RUN, 6, MSGPACK_V2)))


@pytest.mark.parametrize("side", [Side.AGENT, Side.CLIENT])
def test_the_side_that_asked_switches_with_the_answer(side: Side) -> None:
    session = new(side)
    session.send(ASKING)
    assert said(session) == [(T.AUTH_REQUEST, 1, ASKING)]
    answer = wire(AuthResponse(True, None, "s-1", "0.1.0", ["encoding:msgpack"]))
    events = session.receive_data(answer + wire(DONE, 3, MSGPACK_V2) + wire(BEAT, 4, MSGPACK_V2), 1.0)
    heard = [event.payload if isinstance(event, Received) else type(event) for event in events]
    assert heard == [AuthenticationAnswered, DONE, BEAT]
    assert session.codec is MSGPACK_V2


@pytest.mark.parametrize(
    ("auth", "features"),
    [(AUTH, ["encoding:msgpack"]), (ASKING, []), (ASKING, ["msgpack", "encoding:cbor"])],
    ids=["not asked", "not taken", "another taken"],
)
def test_without_both_asking_and_taking_all_stays_as_it_was(auth: AuthRequest, features: list[str]) -> None:
    session = new(Side.CLIENT)
    session.send(auth)
    session.receive_data(wire(AuthResponse(True, None, "s-1", "0.1.0", features)), 1.0)
    assert session.codec is JSON_V1
    session.receive_data(wire(BEAT, 4), 2.0)
    assert [kind for kind, *_ in said(session)] == [T.AUTH_REQUEST, T.HEARTBEAT]


def test_a_server_that_is_asked_for_what_it_does_not_know_says_nothing_of_it() -> None:
    session = server(auth=AuthRequest("cli", "secret-token", "1.0", "test", {"encodings": "cbor"}))
    assert session.codec is JSON_V1


def test_a_refusal_switches_nothing() -> None:
    session = new(Side.SERVER)
    session.receive_data(wire(ASKING), 1.0)
    session.refuse("no")
    assert said(session) == [(T.AUTH_RESPONSE, 1, AuthResponse(False, "no", None, "", []))]
    refused = new(Side.CLIENT)
    refused.send(ASKING)
    refused.receive_data(wire(AuthResponse(False, "no", None, "", ["encoding:msgpack"])), 1.0)
    assert (refused.codec, refused.state) == (JSON_V1, S.CLOSED)


@pytest.mark.parametrize(("auth", "other"), [(AUTH, MSGPACK_V2), (ASKING, JSON_V1)], ids=["v2 on v1", "v1 on v2"])
@pytest.mark.parametrize("side", list(Side))
def test_a_frame_of_the_other_version_is_a_clear_error_and_the_end(side: Side, auth: AuthRequest, other: Codec) -> None:
    session = in_state(side, S.AUTHENTICATED, auth=auth)
    violated, closed = session.receive_data(wire(BEAT, 4, other), 1.0)
    assert isinstance(violated, Violated)
    assert violated.error.code is ErrorCode.VERSION
    assert isinstance(closed, Closed)
    assert [payload.error_code for _, _, payload in said(session) if isinstance(payload, ErrorMessage)] == [426]


# Rights and directions


def test_without_the_right_to_submit_nothing_is_executed() -> None:
    session = server(WATCHER)
    (event,) = session.receive_data(wire(RUN, 5), 1.0)
    assert isinstance(event, Violated)
    assert event.error.code is ErrorCode.REFUSED
    assert said(session) == [(T.ERROR, 5, ErrorMessage(403, "ExecuteRequest needs the right 'submit'", None, 5))]
    assert (session.state, session.in_flight) == (S.AUTHENTICATED, 0)


def test_an_agent_with_the_right_may_submit_and_cancel() -> None:
    session = server(Identity(Role.AGENT, "a", "a", task="thumb", rights=frozenset({"submit"})))
    events = session.receive_data(wire(RUN, 1) + wire(Signal(SignalName.TERMINATE), 2), 1.0)
    assert [type(event) for event in events] == [Received, Received]
    assert session.in_flight == 1


def test_a_wrong_direction_is_refused_before_its_payload_is_looked_at() -> None:
    session = server(AGENT)
    (event,) = session.receive_data(frame(spell_body("AuthResponse", b"not json"), 10_000), 1.0)
    assert isinstance(event, Violated)
    assert event.error.code is ErrorCode.CONFLICT
    assert session.state is S.AUTHENTICATED


# Ids and bookkeeping


def test_own_requests_are_numbered_from_1_and_heartbeats_apart() -> None:
    session = server(AGENT)
    assert [session.send(RUN), session.send(BEAT), session.send(RUN), session.send(BEAT)] == [1, 2**63, 2, 2**63 + 1]


def test_the_heartbeats_of_both_ends_never_share_an_id() -> None:
    ids = {session.send(BEAT) for session in (server(AGENT), dialled(Side.AGENT))}
    assert len(ids) == 2
    assert min(ids) >= 2**63


def test_a_reply_carries_the_id_that_it_is_given() -> None:
    session = server()
    assert session.send(DONE, 2**64 - 1) == 2**64 - 1
    assert said(session) == [(T.EXECUTE_RESPONSE, 2**64 - 1, DONE)]
    assert session.send(ErrorMessage(404, "no")) == 1


def test_a_message_that_cannot_be_written_changes_nothing() -> None:
    session = dialled()
    large = ExecuteRequest("thumb", "", [], {}, input_data=b"x" * LIMITS.max_message_bytes)
    with pytest.raises(LocalProtocolError, match="the limit is 1000000") as caught:
        session.send(large)
    assert caught.value.code is ErrorCode.TOO_LARGE
    with pytest.raises(LocalProtocolError, match="surrogates"):
        session.send(ExecuteRequest("thumb", "", ["\udcff"], {}))
    assert (session.data_to_send(), session.take_sent()) == (b"", [])
    assert session.send(RUN) == 2


def test_what_is_sure_to_be_too_large_is_not_even_written() -> None:
    session = dialled()
    with pytest.raises(LocalProtocolError, match=f"has at least {6 * LIMITS.max_message_bytes} bytes"):
        session.send(ExecuteRequest("thumb", "", [], {}, input_data=bytes(LIMITS.max_message_bytes)))


def test_strangers_are_not_sent_large_frames_either() -> None:
    session = new(Side.CLIENT)
    with pytest.raises(LocalProtocolError) as caught:
        session.send(AuthRequest("x", "t" * UNAUTHENTICATED_MAX_BYTES, "", "", {}))
    assert caught.value.code is ErrorCode.TOO_LARGE
    assert session.state is S.CONNECTED


@pytest.mark.parametrize("status", ExecutionStatus)
def test_in_flight_ends_with_a_final_response(status: ExecutionStatus) -> None:
    session = server()
    session.receive_data(wire(RUN, 5) + wire(RUN, 6), 1.0)
    assert session.in_flight == 2
    session.send(ExecuteResponse("thumb", status), 5)
    assert session.in_flight == (1 if status.final else 2)


def test_in_flight_ends_with_an_error_of_that_id() -> None:
    session = server()
    session.receive_data(wire(RUN, 5), 1.0)
    session.send(ErrorMessage(429, "full", "100"))
    session.send(ErrorMessage(429, "full", "100"), 6)
    session.send(StreamData("s", b"", True, 0), 5)
    assert session.in_flight == 1
    session.send(ErrorMessage(429, "full", "100"), 5)
    assert session.in_flight == 0


def test_a_request_id_in_flight_is_a_conflict_and_the_first_goes_on() -> None:
    session = server()
    session.receive_data(wire(RUN, 5), 1.0)
    (event,) = session.receive_data(wire(RUN, 5), 1.0)
    assert isinstance(event, Violated)
    assert said(session) == [(T.ERROR, 5, ErrorMessage(409, "request 5 is still in flight", None, 5))]
    assert (session.state, session.in_flight) == (S.AUTHENTICATED, 1)
    session.send(DONE, 5)
    assert [type(event) for event in session.receive_data(wire(RUN, 5), 1.0)] == [Received]


def test_nothing_is_in_flight_when_it_is_over() -> None:
    for session in (server(), server()):
        session.receive_data(wire(RUN, 5), 1.0)
        session.close(CloseReason.DRAIN)
        assert session.in_flight == 0
    session = server()
    session.receive_data(wire(RUN, 5) + b"\0\0\0\0", 1.0)
    assert session.in_flight == 0


def test_an_agent_leaves_that_bookkeeping_to_the_server() -> None:
    session = dialled(Side.AGENT)
    events = session.receive_data(wire(RUN, 5) + wire(RUN, 5), 1.0)
    assert [type(event) for event in events] == [Received, Received]
    assert session.in_flight == 0


def test_what_was_sent_is_told_once_with_frame_sizes() -> None:
    session = server()
    session.send(DONE, 1)
    session.receive_data(wire(BEAT, 7), 1.0)
    data = session.data_to_send()
    assert session.data_to_send() == b""
    kinds = session.take_sent()
    assert [kind for kind, _ in kinds] == [T.EXECUTE_RESPONSE, T.HEARTBEAT]
    assert sum(size for _, size in kinds) == len(data)
    assert session.take_sent() == []


def test_received_tells_the_size_of_the_frame() -> None:
    data = wire(RUN, 5)
    (event,) = server().receive_data(data, 1.0)
    assert isinstance(event, Received)
    assert (event.payload, event.request_id, event.size_bytes) == (RUN, 5, len(data))


def test_messages_are_stamped_with_the_wall_clock() -> None:
    session = dialled()
    session.send(RUN)
    body = session.data_to_send()[PREFIX_BYTES:]
    assert JSON_V1.decode(body).timestamp == Timestamp.from_ns(WALL_NS)


def test_without_a_clock_of_its_own_it_takes_the_systems() -> None:
    session = Session(Side.CLIENT, LIMITS, 0.0)
    session.send(AUTH)
    assert JSON_V1.decode(session.data_to_send()[PREFIX_BYTES:]).timestamp.secs_since_epoch > 1_700_000_000


# Malformed data

MALFORMED = {
    "length zero": (b"\0\0\0\0", 400, 0),
    "too large": ((LIMITS.max_message_bytes + 1).to_bytes(4, "big"), 413, 0),
    "http": (b"GET / HTTP/1.1\r\n\r\n", 413, 0),
    "not json": (frame(b"hello", 100), 400, 0),
    "unknown type": (frame(spell_body("Hello", b"{}"), 1000), 400, 0),
    "version 2": (frame(b"\x96\x05\x01\x02\x03\x02\xc4\x00", 100), 426, 0),
    "payload not json": (frame(spell_body("Heartbeat", b"hello"), 1000), 400, 7),
    "payload incomplete": (frame(spell_body("Error", spell({"error_code": 1})), 1000), 400, 7),
}


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("cut", ["whole", "byte by byte", "with trailing bytes", "behind a good frame"])
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_frame_is_answered_and_ends_it(name: str, cut: str, side: Side) -> None:
    data, code, request_id = MALFORMED[name]
    session = server() if side is Side.SERVER else dialled(side)
    pieces = {
        "whole": [data],
        "byte by byte": [data[at : at + 1] for at in range(len(data))],
        "with trailing bytes": [data + wire(DONE)],
        "behind a good frame": [wire(StreamData("s", b"", True, 0)) + data],
    }[cut]
    events: list[SessionEvent] = []
    for piece in pieces:
        events += session.receive_data(piece, 1.0)
    if cut == "behind a good frame":
        assert isinstance(events.pop(0), Received)
    violated, closed = events
    assert isinstance(violated, Violated)
    assert violated.error.code == code
    assert closed == Closed(CloseReason.PROTOCOL, str(violated.error))
    assert said(session) == [(T.ERROR, request_id, ErrorMessage(code, str(violated.error), None, request_id or None))]
    assert (session.state, session.next_deadline()) == (S.CLOSED, inf)
    assert session.receive_data(wire(DONE), 2.0) == session.receive_data(b"", 2.0) == session.expire(1e9) == []


def test_a_long_complaint_is_cut() -> None:
    session = server()
    twice = b'{"' + b"k" * 5000 + b'":1,"' + b"k" * 5000 + b'":1}'
    (violated, closed) = session.receive_data(frame(spell_body("Heartbeat", twice), 10**6), 1.0)
    assert isinstance(violated, Violated)
    assert isinstance(closed, Closed)
    ((_, _, payload),) = said(session)
    assert isinstance(payload, ErrorMessage)
    assert payload.message == str(violated.error)[:500] != str(violated.error)


def test_complaints_are_not_stopped_by_small_limits() -> None:
    small = SessionSettings(10, 5, 30, 100, max_message_bytes=200)
    session = new(Side.SERVER, small)
    events = session.receive_data((201).to_bytes(4, "big"), 1.0)
    assert [type(event) for event in events] == [Violated, Closed]
    assert [kind for kind, *_ in said(session)] == [T.ERROR]


@pytest.mark.parametrize("side", [Side.SERVER, Side.CLIENT])
def test_until_authentication_frames_are_small(side: Side) -> None:
    session = in_state(side, S.AUTHENTICATING)
    events = session.receive_data((UNAUTHENTICATED_MAX_BYTES + 1).to_bytes(4, "big"), 1.0)
    assert isinstance(events[0], Violated)
    assert events[0].error.code is ErrorCode.TOO_LARGE


@pytest.mark.parametrize("side", Side)
def test_after_authentication_frames_may_be_large(side: Side) -> None:
    session = server() if side is Side.SERVER else dialled(side)
    large = StreamData("s", b"x" * 60_000, True, 0)
    data = wire(large)
    assert UNAUTHENTICATED_MAX_BYTES < len(data) < LIMITS.max_message_bytes
    (event,) = session.receive_data(data, 1.0)
    assert isinstance(event, Received)
    assert event.payload == large


def test_a_client_says_nothing_before_it_is_known_whatever_it_hears() -> None:
    session = in_state(Side.CLIENT, S.AUTHENTICATING)
    events = session.receive_data(b"\0\0\0\0", 1.0)
    assert [type(event) for event in events] == [Violated, Closed]
    assert session.data_to_send() == b""


# The end


def test_the_end_of_the_stream() -> None:
    assert server().receive_data(b"", 1.0) == [Closed(CloseReason.PEER)]
    assert new(Side.SERVER).receive_data(b"", 1.0) == [Closed(CloseReason.PEER)]


def test_the_end_inside_a_frame_is_a_loss() -> None:
    session = server()
    assert session.receive_data(wire(RUN)[:-1], 1.0) == []
    assert session.receive_data(b"", 1.0) == [Closed(CloseReason.LOST, "the stream ended inside a frame")]
    assert session.receive_data(b"", 1.0) == []


@pytest.mark.parametrize("side", Side)
def test_the_peer_says_goodbye(side: Side) -> None:
    session = server() if side is Side.SERVER else dialled(side)
    data = wire(ConnectionClose("drain"), 3)
    events = session.receive_data(data + wire(BEAT), 1.0)
    assert isinstance(events[0], Received)
    assert (events[0].payload, events[0].size_bytes) == (ConnectionClose("drain"), len(data))
    assert events[1:] == [Closed(CloseReason.PEER, "drain")]
    assert session.data_to_send() == b""


@pytest.mark.parametrize("reason", CloseReason)
def test_a_reason_is_told_where_somebody_is_left_to_hear_it(reason: CloseReason) -> None:
    session = server()
    session.close(reason)
    told = reason not in {CloseReason.PEER, CloseReason.LOST, CloseReason.CRASH}
    assert said(session) == [(T.CONNECTION_CLOSE, 1, ConnectionClose(reason.value))][: int(told)]
    assert session.receive_data(b"", 1.0) == [Closed(reason)]


def test_the_first_reason_counts() -> None:
    session = server()
    session.close(CloseReason.REPLACED, "newer connection")
    session.close(CloseReason.DRAIN)
    assert len(said(session)) == 1
    assert session.receive_data(b"", 1.0) == [Closed(CloseReason.REPLACED, "newer connection")]


def test_what_comes_after_the_goodbye_is_not_kept() -> None:
    session = server()
    session.close(CloseReason.OVERLOADED)
    for _ in range(100):
        assert session.receive_data(b"\0" * 10_000, 1.0) == []
    assert session._reader.buffered == 0


def test_what_was_queued_is_still_written_when_it_is_over() -> None:
    session = server()
    session.send(DONE, 1)
    session.receive_data(b"", 1.0)
    assert [kind for kind, *_ in said(session)] == [T.EXECUTE_RESPONSE]


# Heartbeats


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("request_id", [0, 10, 2**62, 2**64 - 1])
def test_a_heartbeat_is_answered_with_its_id_and_sequence(side: Side, request_id: int) -> None:
    session = server() if side is Side.SERVER else dialled(side)
    (event,) = session.receive_data(wire(BEAT, request_id), 1.0)
    assert isinstance(event, Received)
    assert event.payload == BEAT
    answer = Heartbeat(Timestamp.from_ns(WALL_NS), 42, HeartbeatStatus.ACTIVE)
    assert said(session) == [(T.HEARTBEAT, request_id, answer)]


def test_an_answer_is_not_answered() -> None:
    session = server()
    session.expire(5.0)
    ((_, request_id, beat),) = said(session)
    assert isinstance(beat, Heartbeat)
    (event,) = session.receive_data(wire(beat, request_id), 5.1)
    assert isinstance(event, Received)
    assert session.data_to_send() == b""


@pytest.mark.parametrize("peer", [Side.AGENT, Side.CLIENT])
def test_heartbeats_of_both_ends_are_each_answered_once(peer: Side) -> None:
    here, there = server(AGENT if peer is Side.AGENT else CLIENT), dialled(peer)
    here.expire(5.0)
    there.send(BEAT)
    beats = 0
    for _ in range(5):
        to_there, to_here = here.data_to_send(), there.data_to_send()
        beats += len(there.receive_data(to_there, 5.0)) if to_there else 0
        beats += len(here.receive_data(to_here, 5.0)) if to_here else 0
    assert beats == 4


def test_a_server_beats_at_its_interval_whatever_else_goes_on() -> None:
    session = server(AGENT)
    sequences = []
    for now in range(1, 21):
        assert session.receive_data(wire(StreamData("s", b"", False, 0)), float(now))
        assert session.next_deadline() <= now + 5
        assert session.expire(float(now)) == []
        sequences += [(now, payload.sequence) for _, _, payload in said(session) if isinstance(payload, Heartbeat)]
    assert sequences == [(5, 0), (10, 1), (15, 2), (20, 3)]


def test_a_late_heartbeat_is_not_made_up_for() -> None:
    session = server(AGENT)
    session.expire(14.0)
    assert len(said(session)) == 1
    assert session.next_deadline() == 19.0


@pytest.mark.parametrize("side", [Side.AGENT, Side.CLIENT])
def test_only_servers_beat_by_themselves(side: Side) -> None:
    session = dialled(side)
    assert session.next_deadline() == 30.0
    assert session.expire(29.9) == []
    assert session.data_to_send() == b""


# Time limits


def test_authentication_has_a_deadline() -> None:
    session = new(Side.SERVER, now=100.0)
    assert session.next_deadline() == 110.0
    assert session.expire(109.9) == []
    session.receive_data(wire(AUTH)[:20], 109.0)  # half a frame gives no more time
    assert session.next_deadline() == 110.0
    assert session.expire(110.0) == [Closed(CloseReason.AUTH_TIMEOUT, "not authenticated within 10 s")]
    assert said(session) == [(T.ERROR, 0, ErrorMessage(408, "not authenticated within 10 s"))]
    assert (session.state, session.expire(111.0), session.receive_data(b"", 111.0)) == (S.CLOSED, [], [])


@pytest.mark.parametrize("side", Side)
def test_an_answer_that_does_not_come(side: Side) -> None:
    session = in_state(side, S.AUTHENTICATING)
    assert session.next_deadline() == 10.0
    assert session.expire(10.0) == [Closed(CloseReason.AUTH_TIMEOUT, "not authenticated within 10 s")]
    assert [kind for kind, *_ in said(session)] == ([T.ERROR] if side is Side.SERVER else [])


@pytest.mark.parametrize("side", Side)
def test_silence_ends_it(side: Side) -> None:
    session = server(AGENT) if side is Side.SERVER else dialled(side)
    session.receive_data(wire(BEAT)[:1], 7.0)  # any byte counts as life
    assert session.expire(36.9) == []
    session.data_to_send()
    assert session.expire(37.0) == [Closed(CloseReason.HEARTBEAT_TIMEOUT, "silent for 30 s")]
    ((kind, _, payload),) = said(session)
    assert (kind, payload) == (T.CONNECTION_CLOSE, ConnectionClose("heartbeat_timeout: silent for 30 s"))
    assert session.receive_data(b"", 40.0) == []


def keep_alive(session: Session, begin: int, end: int, step: int = 10) -> None:
    for now in range(begin, end, step):
        session.receive_data(wire(BEAT, 1), float(now))
        assert session.expire(float(now)) == []


def test_a_client_that_only_beats_is_idle() -> None:
    session = server()
    keep_alive(session, 10, 100)
    session.data_to_send()
    assert session.next_deadline() <= 100.0
    assert session.expire(100.0) == [Closed(CloseReason.IDLE, "idle for 100 s")]
    assert said(session)[-1][2] == ConnectionClose("idle: idle for 100 s")


@pytest.mark.parametrize("payload", [Signal(SignalName.PAUSE), StreamData("s", b"", False, 0), ErrorMessage(499, "x")])
def test_anything_else_is_use(payload: Payload) -> None:
    session = server()
    keep_alive(session, 10, 60)
    session.receive_data(wire(payload, 3), 60.0)
    keep_alive(session, 70, 160)
    assert session.expire(160.0) == [Closed(CloseReason.IDLE, "idle for 100 s")]


def test_a_client_that_waits_is_not_idle_and_begins_anew_with_the_answer() -> None:
    session = server()
    session.receive_data(wire(RUN, 3), 1.0)
    keep_alive(session, 10, 1000)
    session.send(DONE, 3)
    keep_alive(session, 1000, 1090)
    assert session.expire(1090.0) == [Closed(CloseReason.IDLE, "idle for 100 s")]


def test_agents_are_never_idle() -> None:
    session = server(AGENT)
    keep_alive(session, 10, 10_000)
    assert session.state is S.AUTHENTICATED


@pytest.mark.parametrize("side", [Side.AGENT, Side.CLIENT])
def test_only_servers_mind_idleness(side: Side) -> None:
    session = dialled(side)
    keep_alive(session, 10, 1000)
    assert session.state is S.AUTHENTICATED


def test_limits_can_be_switched_off() -> None:
    session = dialled(limits=SessionSettings(inf, inf, inf, inf, 10**6))
    assert session.next_deadline() == inf
    assert session.expire(1e12) == []


def test_nothing_is_due_before_its_time() -> None:
    session = server()
    deadline = session.next_deadline()
    assert session.expire(deadline - 0.001) == []
    assert session.data_to_send() == b""
    session.expire(deadline)
    assert session.data_to_send() != b""


# Any bytes


@ENCODINGS
@given(st.sampled_from(PARTIES), st.sampled_from(S), st.lists(st.binary(max_size=40), max_size=8), st.booleans())
def test_no_bytes_make_it_raise(
    auth: AuthRequest, party: tuple[Side, Role], state: ConnectionState, pieces: list[bytes], framed: bool
) -> None:
    session = in_state(party[0], state, party[1], auth)
    events: list[SessionEvent] = []
    for piece in pieces:
        events += session.receive_data(frame(piece, 100) if framed and piece else piece, 1.0)
    events += session.receive_data(b"", 2.0)
    assert session.state is S.CLOSED
    assert [isinstance(event, Closed) for event in events] == [False] * (len(events) - 1) + [True] * bool(events)
    assert bool(events) == (state is not S.CLOSED)


@ENCODINGS
@given(st.sampled_from(PARTIES), st.sampled_from(T), st.integers(0, 2**64 - 1), st.data())
def test_no_cut_changes_what_is_heard(
    auth: AuthRequest, party: tuple[Side, Role], kind: MessageType, request_id: int, data: st.DataObject
) -> None:
    whole = in_state(party[0], S.AUTHENTICATED, party[1], auth)
    messages: list[tuple[Payload, int]] = [
        (VALUES[kind], request_id),
        (BEAT, 2),
        (StreamData("s", b"x", True, 0), 3),
    ]
    stream = b"".join(wire(payload, number, whole.codec) for payload, number in messages)
    events = whole.receive_data(stream, 1.0)
    cut = in_state(party[0], S.AUTHENTICATED, party[1], auth)
    pieces = []
    at = 0
    while at < len(stream):
        size = data.draw(st.integers(1, 900))
        pieces += cut.receive_data(stream[at : at + size], 1.0)
        at += size
    assert [described(event) for event in pieces] == [described(event) for event in events]
    assert cut.data_to_send() == whole.data_to_send()


def described(event: SessionEvent) -> object:
    return (str(event.error), event.error.code) if isinstance(event, Violated) else event
