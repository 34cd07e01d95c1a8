"""Two sessions joined by bytes, and a model beside them: a server with a client, and a server with an agent.

Bytes travel in pieces of any size and each end moves on its own. The model knows nothing of frames: what one end said
the other hears, in that order, once; every heartbeat is answered once; ids in flight are counted; nothing is heard
after the end, and the end has a reason that fits. From the AuthResponse on the encoding is the one that was asked for.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spearpool.errors import LocalProtocolError
from spearpool.protocol.codec import JSON_V1
from spearpool.protocol.codec_v2 import MSGPACK_V2
from spearpool.protocol.events import CloseReason
from spearpool.protocol.framing import FrameReader
from spearpool.protocol.identity import Identity, Role
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
    Payload,
    Signal,
    SignalName,
    StreamData,
    Timestamp,
)
from spearpool.protocol.negotiation import ASK
from spearpool.protocol.session import (
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

LIMITS = SessionSettings(
    auth_timeout_s=50.0,
    heartbeat_interval_s=10.0,
    heartbeat_timeout_s=40.0,
    connection_timeout_s=120.0,
    max_message_bytes=200_000,
)
IDENTITIES = {
    Side.CLIENT: Identity(Role.CLIENT, "peer", "peer", rights=frozenset({"submit"})),
    Side.AGENT: Identity(Role.AGENT, "peer", "peer", task="thumb"),
}
OVER = {ConnectionState.CLOSING, ConnectionState.CLOSED}

data = st.binary(max_size=50) | st.builds(bytes, st.just(20_000))
requests = st.builds(ExecuteRequest, st.just("thumb"), st.just(""), st.just([]), st.just({}), input_data=data)
responses = st.builds(ExecuteResponse, st.just("thumb"), st.sampled_from(ExecutionStatus), st.text(max_size=5))
signals = st.builds(Signal, st.sampled_from(SignalName))
errors = st.builds(ErrorMessage, st.integers(400, 503), st.text(max_size=5))
from_anyone = st.one_of(
    st.builds(StreamData, st.just("s"), data, st.booleans(), st.integers(0, 9)),
    errors,
    st.just(Heartbeat(Timestamp(0, 0), 7, HeartbeatStatus.IDLE)),
)
sides = st.sampled_from(["server", "peer"])

WORK: dict[tuple[Side, Side], tuple[type[Payload], ...]] = {
    (Side.SERVER, Side.CLIENT): (ExecuteResponse,),
    (Side.SERVER, Side.AGENT): (ExecuteRequest, ExecuteResponse, Signal),
    (Side.CLIENT, Side.SERVER): (ExecuteRequest, Signal),
    (Side.AGENT, Side.SERVER): (ExecuteResponse,),
}
"""What one side may say to another when authenticated, besides what everybody may."""


class End:
    """One session, and what the model knows of it."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.session = Session(side, LIMITS, 0.0, wall_ns=lambda: 1)
        self.on_the_way = bytearray()
        self.to_hear: deque[tuple[int, Payload]] = deque()
        self.beats: set[int] = set()  # own heartbeats, not answered yet
        self.beaten: set[int] = set()  # the other's, which this one has answered
        self.known = False  # said or heard that they agree
        self.heard_at = 0.0
        self.closed: Closed | None = None
        self.hung_up = False

    @property
    def talks(self) -> bool:
        return self.session.state is ConnectionState.AUTHENTICATED


class ServerAndClient(RuleBasedStateMachine):
    PEER: ClassVar[Side] = Side.CLIENT

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.server = End(Side.SERVER)
        self.peer = End(self.PEER)
        self.answered: bool | None = None
        self.asks = False
        self.in_flight: set[int] = set()

    def end(self, name: str) -> tuple[End, End]:
        return (self.server, self.peer) if name == "server" else (self.peer, self.server)

    @initialize(introduced=st.booleans(), asks=st.booleans())
    def introduce(self, introduced: bool, asks: bool) -> None:
        """Half of the runs begin where both ends know each other; in half of them the peer asks for version 2."""
        self.asks = asks
        if introduced:
            self.ask()
            self.deliver("server", 10**9)
            self.answer(yes=True)
            self.deliver("peer", 10**9)

    # What the ends do

    @rule()
    def ask(self) -> None:
        request = AuthRequest("peer", "token", "", "", ASK if self.asks else {})
        if self.peer.session.state is ConnectionState.CONNECTED:
            assert self.peer.session.send(request) == 1
        else:
            self.cannot_say(self.peer, request)

    @rule(yes=st.sampled_from([True, True, True, False]))
    @precondition(lambda self: self.server.session.state is ConnectionState.AUTHENTICATING)
    def answer(self, yes: bool) -> None:
        self.answered = yes
        if yes:
            self.server.session.accept(IDENTITIES[self.PEER], "s", "1")
        else:
            self.server.session.refuse("no")

    def cannot_say(self, end: End, payload: Payload) -> None:
        state = end.session.state
        try:
            end.session.send(payload)
        except LocalProtocolError:
            assert end.session.state is state
            return
        raise AssertionError(f"{end.side} could say {payload} when {state}")

    def may_say(self, end: End, other: End, payload: Payload) -> bool:
        if end is self.server and isinstance(payload, ErrorMessage):
            return end.session.state not in OVER
        return end.talks and isinstance(payload, (StreamData, ErrorMessage, Heartbeat, *WORK[end.side, other.side]))

    @rule(name=sides, payload=st.one_of(from_anyone, requests, responses, signals))
    def say(self, name: str, payload: Payload) -> None:
        end, other = self.end(name)
        if end.side is Side.AGENT and isinstance(payload, ExecuteRequest | Signal):
            return  # legal to send for agents with the right to submit; this one has not got it
        if not self.may_say(end, other, payload):
            self.cannot_say(end, payload)
            return
        number = end.session.send(payload)
        if not isinstance(payload, Heartbeat):
            other.to_hear.append((number, payload))

    @rule(payload=st.one_of(responses, errors), pick=st.integers(0, 5))
    @precondition(lambda self: self.in_flight and self.server.talks)
    def reply(self, payload: ExecuteResponse | ErrorMessage, pick: int) -> None:
        request_id = sorted(self.in_flight)[pick % len(self.in_flight)]
        assert self.server.session.send(payload, request_id) == request_id
        self.peer.to_hear.append((request_id, payload))
        if isinstance(payload, ErrorMessage) or payload.status.final:
            self.in_flight.discard(request_id)

    @rule(name=sides, reason=st.sampled_from([CloseReason.DRAIN, CloseReason.LOST]))
    @precondition(lambda self: self.now > 60)
    def close(self, name: str, reason: CloseReason) -> None:
        end, _ = self.end(name)
        end.session.close(reason)
        assert end.session.state in OVER
        if end is self.server:
            self.in_flight.clear()

    # What travels

    def flush(self, end: End, other: End) -> None:
        sent = end.session.take_sent()
        stream = end.session.data_to_send()
        assert sum(size for _, size in sent) == len(stream)
        reader = FrameReader(2**30)
        reader.feed(stream)
        for kind, size in sent:
            body = reader.next_frame()
            assert body is not None
            codec = MSGPACK_V2 if self.asks and end.known else JSON_V1
            opened, number, packed = codec.open(body)
            assert (opened, len(body) + 4) == (kind, size)
            payload = codec.decode_payload(opened, packed)
            end.known = end.known or (isinstance(payload, AuthResponse) and payload.success)
            if isinstance(payload, Heartbeat):
                if number in other.beats:
                    assert number not in end.beaten, "answered twice"
                    end.beaten.add(number)
                else:
                    end.beats.add(number)
        if not other.hung_up:
            other.on_the_way += stream

    @rule(name=sides, size=st.integers(1, 3000) | st.just(10**9))
    def deliver(self, name: str, size: int) -> None:
        end, other = self.end(name)
        self.flush(other, end)
        piece = bytes(end.on_the_way[:size])
        del end.on_the_way[:size]
        if piece:
            if end.session.state not in OVER:
                end.heard_at = self.now
            self.heard(end, end.session.receive_data(piece, self.now))

    @rule()
    def settle(self) -> None:
        """Everything arrives; then nobody owes anybody anything."""
        for _ in range(4):
            self.deliver("server", 10**9)
            self.deliver("peer", 10**9)
        if self.server.talks and self.peer.talks:
            for end in (self.server, self.peer):
                assert not end.to_hear
                assert not end.beats

    def heard(self, end: End, events: list[SessionEvent]) -> None:
        for event in events:
            assert end.closed is None, "heard something after the end"
            match event:
                case AuthenticationRequested(request_id, request):
                    assert (end is self.server, request_id, request.token) == (True, 1, "token")
                case AuthenticationAnswered(response):
                    assert (end is self.peer, response.success) == (True, self.answered)
                    end.known = response.success
                case Received(number, Heartbeat()):
                    self.heard_beat(end, number)
                case Received(_, ConnectionClose()):
                    pass
                case Received(number, payload):
                    assert end.to_hear.popleft() == (number, payload)
                    if end is self.server and isinstance(payload, ExecuteRequest):
                        self.in_flight.add(number)
                case Violated(error):
                    raise AssertionError(f"two sessions of ours do not violate: {error}")
                case Closed():
                    self.check_reason(end, event.reason)
                    end.closed = event
                    if end is self.server:
                        self.in_flight.clear()

    def heard_beat(self, end: End, request_id: int) -> None:
        _, other = self.end("server" if end is self.server else "peer")
        if request_id in end.beats:
            assert request_id in other.beaten
            end.beats.remove(request_id)
        else:
            assert request_id in other.beats

    def check_reason(self, end: End, reason: CloseReason) -> None:
        match reason:
            case CloseReason.AUTH_TIMEOUT:
                assert self.now >= LIMITS.auth_timeout_s
            case CloseReason.HEARTBEAT_TIMEOUT:
                assert self.now >= end.heard_at + LIMITS.heartbeat_timeout_s
            case CloseReason.IDLE:
                assert (end is self.server, self.PEER, self.in_flight) == (True, Side.CLIENT, set())
            case CloseReason.AUTHENTICATION:
                assert self.answered is False
            case _:
                assert reason in {CloseReason.PEER, CloseReason.DRAIN, CloseReason.LOST}

    @rule(name=sides)
    def hang_up(self, name: str) -> None:
        """The other end is over and its socket closes: what is on the way arrives, then the end of the stream."""
        end, other = self.end(name)
        if other.session.state in OVER and not end.hung_up:
            self.deliver(name, 10**9)
            end.hung_up = True
            self.heard(end, end.session.receive_data(b"", self.now))
            assert end.closed is not None
            assert end.session.receive_data(b"", self.now) == []

    # Time

    @rule(seconds=st.sampled_from([0.5, 5.0, 15.0, 39.0]))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        ends = (self.server, self.peer)
        while (due := min(end.session.next_deadline() for end in ends)) <= until:
            self.now = max(self.now, due)
            for end in ends:
                self.heard(end, end.session.expire(self.now))
                assert end.session.next_deadline() > self.now
        self.now = until

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.server.session.in_flight == len(self.in_flight)
        for end in (self.server, self.peer):
            assert (end.closed is not None) == (end.session.state is ConnectionState.CLOSED)
            assert (end.session.state in OVER) <= (end.session.next_deadline() == inf)
            if end.talks:
                assert self.answered
        assert (self.server.session.peer is not None) == bool(self.answered)


class ServerAndAgent(ServerAndClient):
    PEER = Side.AGENT


TestServerAndClient = ServerAndClient.TestCase
TestServerAndClient.settings = settings(max_examples=60, stateful_step_count=50)
TestServerAndAgent = ServerAndAgent.TestCase
TestServerAndAgent.settings = settings(max_examples=60, stateful_step_count=50)
