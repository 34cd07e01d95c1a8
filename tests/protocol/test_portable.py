"""A conversation that moves from process to process, and its peer, which notices nothing."""

from __future__ import annotations

import msgspec
import pytest

from spearpool.errors import LocalProtocolError
from spearpool.protocol.codec import JSON_V1, Codec
from spearpool.protocol.codec_v2 import MSGPACK_V2
from spearpool.protocol.events import CloseReason
from spearpool.protocol.framing import frame
from spearpool.protocol.identifiers import InstanceId
from spearpool.protocol.identity import Identity, Role
from spearpool.protocol.messages import (
    AuthRequest,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Heartbeat,
    Payload,
    Signal,
    SignalName,
)
from spearpool.protocol.negotiation import ASK
from spearpool.protocol.portable import MAX_BEGUN_BYTES, PortableSession, SessionRecord
from spearpool.protocol.session import (
    AuthenticationAnswered,
    Closed,
    Received,
    Session,
    SessionSettings,
    Side,
    Violated,
)

LIMITS = SessionSettings(10.0, 5.0, 30.0, 100.0, 1_000_000)
CLIENT = Identity(Role.CLIENT, "cli", "token", rights=frozenset({"submit"}), expires_at=1e9)
AGENT = Identity(Role.AGENT, "thumb-3-7", "token", instance=InstanceId(3, 7))
RUN = ExecuteRequest("thumb", "", [], {}, input_data=b"in")
DONE = ExecuteResponse("thumb", ExecutionStatus.COMPLETED, "out")


def pair(identity: Identity = CLIENT, codec: Codec = JSON_V1) -> tuple[PortableSession, Session]:
    """An authenticated server, and its peer."""
    server = PortableSession(LIMITS, 0.0)
    peer = Session(Side.AGENT if identity.role is Role.AGENT else Side.CLIENT, LIMITS, 0.0)
    peer.send(AuthRequest("cli", "secret", "1.0", "test", ASK if codec is MSGPACK_V2 else {}))
    server.receive_data(peer.data_to_send(), 0.0)
    server.accept(identity, "s-1", "1.0")
    answer = peer.receive_data(server.data_to_send(), 0.0)
    assert isinstance(answer[0], AuthenticationAnswered)
    assert peer.codec is server.codec is codec
    return server, peer


def rests(server: PortableSession) -> bool:
    return server.at_rest


def moved(server: PortableSession, now: float = 1.0) -> PortableSession:
    """The same conversation in another process."""
    assert rests(server)
    packed = msgspec.msgpack.encode(server.record())
    return PortableSession.resume(msgspec.msgpack.decode(packed, type=SessionRecord), LIMITS, now)


def hears(side: Session, data: bytes, now: float = 1.0) -> list[Payload]:
    events = side.receive_data(data, now)
    assert all(isinstance(event, Received) for event in events), events
    return [event.payload for event in events if isinstance(event, Received)]


@pytest.mark.parametrize("codec", [JSON_V1, MSGPACK_V2], ids=["v1", "v2"])
def test_a_client_goes_on_with_another_process(codec: Codec) -> None:
    server, client = pair(CLIENT, codec)
    for _ in range(3):
        number = client.send(RUN)
        assert hears(server, client.data_to_send()) == [RUN]
        server.send(DONE, number)
        assert hears(client, server.data_to_send()) == [DONE]
        before, server = server, moved(server)
        assert server.peer == before.peer == CLIENT
        assert server.codec is codec
        assert server.record() == before.record()


@pytest.mark.parametrize("codec", [JSON_V1, MSGPACK_V2], ids=["v1", "v2"])
def test_an_agent_never_sees_an_id_twice(codec: Codec) -> None:
    server, agent = pair(AGENT, codec)
    numbers = []
    for _ in range(3):
        numbers += [server.send(RUN), server.send(Signal(SignalName.PAUSE))]
        assert len(hears(agent, server.data_to_send())) == 2
        agent.send(DONE, numbers[-2])
        assert hears(server, agent.data_to_send()) == [DONE]
        server = moved(server)
    assert len(set(numbers)) == 6


def test_the_peer_s_rights_stay_what_they_were() -> None:
    server, _ = pair()
    again = moved(server)
    with pytest.raises(LocalProtocolError, match="may not send"):
        again.send(RUN)  # a client executes nothing
    events = again.receive_data(frame(JSON_V1.encode(DONE, 1, 0), 1000), 2.0)
    assert [type(event) for event in events] == [Violated]
    assert not rests(again)  # there is an Error to be written


def test_the_answer_to_a_heartbeat_of_the_one_before_is_not_answered() -> None:
    server, client = pair()
    assert server.expire(5.0) == []
    assert [type(payload) for payload in hears(client, server.data_to_send(), 5.0)] == [Heartbeat]
    again = moved(server, 5.5)
    assert [type(payload) for payload in hears(again, client.data_to_send(), 6.0)] == [Heartbeat]
    assert again.data_to_send() == b""


@pytest.mark.parametrize("codec", [JSON_V1, MSGPACK_V2], ids=["v1", "v2"])
def test_half_a_frame_travels_along(codec: Codec) -> None:
    server, client = pair(CLIENT, codec)
    client.send(RUN)
    data = client.data_to_send()
    for cut in range(1, len(data)):
        session = moved(server)
        assert hears(session, data[:cut]) == []
        session = moved(session)
        assert hears(session, data[cut:]) == [RUN]


def test_a_large_frame_arrives_before_anything_moves() -> None:
    server, client = pair()
    client.send(ExecuteRequest("thumb", "x" * 3 * MAX_BEGUN_BYTES, [], {}))
    data = client.data_to_send()
    server.receive_data(data[:MAX_BEGUN_BYTES], 1.0)
    assert rests(server)
    server.receive_data(data[MAX_BEGUN_BYTES:-1], 1.0)
    assert not rests(server)
    moved_to = PortableSession(LIMITS, 0.0)
    assert not rests(moved_to)  # nobody has authenticated


def test_what_is_under_way_keeps_it_here() -> None:
    server, client = pair()
    number = client.send(RUN)
    server.receive_data(client.data_to_send(), 1.0)
    assert not rests(server)
    server.send(DONE, number)
    assert not rests(server)
    server.data_to_send()
    assert rests(server)
    server.close(CloseReason.DRAIN)
    assert not rests(server)


def test_deadlines_are_those_that_they_were() -> None:
    server, client = pair()
    number = client.send(RUN)
    server.receive_data(client.data_to_send(), 3.0)
    server.send(DONE, number)
    server.data_to_send()
    server.expire(5.0)  # a heartbeat: the next one at 10
    server.data_to_send()
    for _ in range(2):
        assert server.next_deadline() == 10.0
        server = moved(server, 7.0)
    server.expire(31.0)
    server.data_to_send()
    events = moved(server, 32.0).expire(33.0)
    assert events == [Closed(CloseReason.HEARTBEAT_TIMEOUT, "silent for 30 s")]


def test_a_violation_is_told_as_before() -> None:
    server, _ = pair()
    events = moved(server).receive_data(b"\0\0\0\1x", 2.0)
    assert [type(event) for event in events] == [Violated, Closed]
