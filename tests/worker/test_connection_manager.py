from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from spearpool.config import ConnectionManagerConfig
from spearpool.errors import ErrorCode, PoolStartError
from spearpool.protocol.codec import JSON_V1
from spearpool.protocol.codec_v2 import MSGPACK_V2
from spearpool.protocol.credentials import Grant
from spearpool.protocol.events import (
    Authenticated,
    AuthenticationFailed,
    CloseReason,
    Connected,
    ConnectionEvent,
    Disconnected,
    Errored,
    HeartbeatTimeout,
    MessageReceived,
    MessageSent,
)
from spearpool.protocol.identity import Role
from spearpool.protocol.messages import (
    AuthRequest,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    Heartbeat,
    HeartbeatStatus,
    Signal,
    SignalName,
    Timestamp,
)
from spearpool.protocol.negotiation import ASK
from spearpool.protocol.session import ConnectionState, Side
from spearpool.worker.connection_manager import REFUSED, ConnectionManager
from tests.conftest import eventually_async

from .peers import Peer, agent, client, request
from .workers import Pool, new_pool

pytestmark = pytest.mark.asyncio

CONFIG = ConnectionManagerConfig()


def validator(_instance_id: str, token: str) -> Grant | None:
    return Grant(Role.CLIENT, rights=("submit",)) if token == "a good secret" else None


class Manager:
    """A manager used alone, as the seed has it."""

    def __init__(self, config: ConnectionManagerConfig) -> None:
        self.manager = ConnectionManager.with_validator(config, validator)
        self.events: list[ConnectionEvent] = []
        self.manager.subscribe(lambda _id, event: self.events.append(event))
        self.port = 0

    async def peer(self, token: str = "a good secret") -> Peer:
        peer = await Peer(Side.CLIENT).open(self.port)
        await peer.authenticate("instance-123", token)
        return peer

    def of(self, kind: type[ConnectionEvent]) -> list[ConnectionEvent]:
        return [event for event in self.events if isinstance(event, kind)]

    async def closed(self, reason: CloseReason) -> None:
        await eventually_async(lambda: any(isinstance(e, Disconnected) and e.reason is reason for e in self.events))


@asynccontextmanager
async def alone(config: ConnectionManagerConfig = CONFIG) -> AsyncIterator[Manager]:
    found = Manager(config)
    found.port = await found.manager.start_listening(0)
    try:
        yield found
    finally:
        await found.manager.close()


# --------------------------------------------------------------------------------------------------- as in the seed


async def test_connects_authenticates_and_tells(tmp_path: Path) -> None:
    async with alone() as found:
        peer = await found.peer()
        assert peer.answer is not None
        assert peer.answer.success
        (state,) = found.manager.snapshots()
        assert state.instance_id == "instance-123"
        assert state.session_id == peer.answer.session_id
        assert (state.client_type, state.client_version) == ("test", "test")
        assert (state.status, state.authenticated) == (ConnectionState.AUTHENTICATED, True)
        assert state.remote_addr.startswith("127.0.0.1:")
        assert state.connected_at <= state.last_activity
        peer.close()
        await found.closed(CloseReason.PEER)
        assert len(found.manager) == 0
        assert [type(event) for event in found.events] == [
            Connected,
            Authenticated,
            MessageReceived,
            MessageSent,
            MessageReceived,
            Disconnected,
        ]
        assert found.events[0] == Connected(state.remote_addr)
        last = found.events[-1]
        assert isinstance(last, Disconnected)
        assert last.authenticated
        assert last.lifetime_s > 0


async def test_ids_differ_and_tell_whose_they_are() -> None:
    async with alone() as found:
        peers = [await found.peer() for _ in range(3)]
        states = found.manager.snapshots()
        assert [state.connection_id for state in states] == ["c-0-0-1", "c-0-0-2", "c-0-0-3"]
        assert len({state.session_id for state in states}) == 3
        for peer in peers:
            peer.close()


async def test_used_alone_it_has_no_tasks() -> None:
    async with alone() as found:
        peer = await found.peer()
        answer = await peer.execute(request())
        assert isinstance(answer, ErrorMessage)
        assert answer.error_code == ErrorCode.UNKNOWN
        peer.close()


async def test_a_taken_port_is_an_error() -> None:
    async with alone() as found:
        other = ConnectionManager.with_validator(CONFIG, validator)
        with pytest.raises(PoolStartError, match=str(found.port)):
            await other.start_listening(found.port)


async def test_listens_on_a_socket_that_it_is_given() -> None:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=7)) as listener:
        listener.setblocking(False)
        manager = ConnectionManager.with_validator(ConnectionManagerConfig(backlog=77), validator)
        port = await manager.start_listening(listener.dup())
        assert port == listener.getsockname()[1]
        peer = await Peer(Side.CLIENT).open(port)
        answer = await peer.authenticate("x", "a good secret")
        assert answer is not None
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        assert int.from_bytes(info[28:32], "little") == 77  # tcpi_sacked of a listener: its backlog
        peer.close()
        await manager.close()


# --------------------------------------------------------------------------------------------------- authentication


@pytest.mark.parametrize(
    ("token", "cause"),
    [
        ("", "fewer than 8 bytes"),
        ("short", "fewer than 8 bytes"),
        ("a wrong secret", "the validator refused"),
        ("v1.garbage", "parts"),
    ],
)
async def test_a_stranger_is_told_little_and_the_event_all(token: str, cause: str) -> None:
    async with alone() as found:
        peer = await found.peer(token)
        assert peer.answer is not None
        assert not peer.answer.success
        assert peer.answer.error_message == REFUSED
        await peer.until_closed()
        await found.closed(CloseReason.AUTHENTICATION)
        (failed,) = found.of(AuthenticationFailed)
        assert isinstance(failed, AuthenticationFailed)
        assert cause in failed.cause
        assert not found.of(Authenticated)


async def test_nothing_is_allowed_before_authentication() -> None:
    async with alone() as found:
        peer = await Peer(Side.CLIENT).open(found.port)
        raw = peer.session.codec.encode(Signal(SignalName.PAUSE), 1, time.time_ns())
        peer.send_raw(len(raw).to_bytes(4, "big") + raw)
        answer = await peer.next(ErrorMessage)
        assert answer.error_code == ErrorCode.NOT_AUTHENTICATED
        await peer.until_closed()
        await found.closed(CloseReason.PROTOCOL)
        (errored,) = found.of(Errored)
        assert isinstance(errored, Errored)
        assert errored.code == 401


async def test_silence_before_authentication_ends_it() -> None:
    async with alone(ConnectionManagerConfig(auth_timeout=0.05)) as found:
        peer = await Peer(Side.CLIENT).open(found.port)
        answer = await peer.next(ErrorMessage)
        assert answer.error_code == ErrorCode.TIMED_OUT
        await peer.until_closed()
        await found.closed(CloseReason.AUTH_TIMEOUT)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xff\xff\xff", ErrorCode.TOO_LARGE),
        (b"\0\0\0\0", ErrorCode.MALFORMED),
        (b"\0\0\0\x04GET ", ErrorCode.MALFORMED),
    ],
    ids=["oversize prefix", "empty frame", "garbage"],
)
async def test_broken_frames_are_answered_and_end_it(data: bytes, code: ErrorCode) -> None:
    async with alone() as found:
        peer = await Peer(Side.CLIENT).open(found.port)
        peer.send_raw(data)
        answer = await peer.next(ErrorMessage)
        assert answer.error_code == code
        await peer.until_closed()
        await found.closed(CloseReason.PROTOCOL)


async def test_half_a_frame_and_the_end_is_a_loss() -> None:
    async with alone() as found:
        peer = await found.peer()
        peer.send_raw(b"\0\0\0\x10half")
        await peer.drain()
        peer._writer.close()
        await found.closed(CloseReason.LOST)


async def test_a_reset_is_a_loss() -> None:
    async with alone() as found:
        peer = await found.peer()
        sock = peer._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.abort()
        await found.closed(CloseReason.LOST)


async def test_too_many_are_told_so() -> None:
    async with alone(ConnectionManagerConfig(max_connections=2)) as found:
        peers = [await found.peer() for _ in range(2)]
        refused = await Peer(Side.CLIENT).open(found.port)
        refused.send(AuthRequest("x", "a good secret", "1", "x", {}))
        answer = await refused.next(ErrorMessage)
        assert (answer.error_code, answer.details) == (ErrorCode.OVERLOADED, "1000")
        assert (await refused.until_closed()).startswith("overloaded")
        await found.closed(CloseReason.OVERLOADED)
        assert len(found.manager) == 2
        peers.pop().close()
        await found.closed(CloseReason.PEER)
        admitted = await found.peer()
        assert admitted.answer is not None
        assert admitted.answer.success
        admitted.close()
        peers.pop().close()


# ----------------------------------------------------------------------------------------------- life of a connection


async def test_heartbeats_are_answered() -> None:
    async with alone() as found:
        peer = await found.peer()
        peer.send(Heartbeat(Timestamp(0, 0), 41, HeartbeatStatus.IDLE))
        while not peer.heartbeats:
            await peer._read()
        assert found.manager.snapshots()[0].heartbeat_sequence == 41
        peer.close()


async def test_heartbeats_are_sent() -> None:
    async with alone(ConnectionManagerConfig(heartbeat_interval=0.05)) as found:
        peer = await found.peer()
        while peer.heartbeats < 3:
            await peer._read()
        assert found.manager.snapshots()[0].heartbeat_sequence >= 1
        peer.close()


async def test_a_silent_peer_is_ended() -> None:
    async with alone(ConnectionManagerConfig(heartbeat_interval=0.04, heartbeat_timeout=0.15)) as found:
        peer = await found.peer()
        await found.closed(CloseReason.HEARTBEAT_TIMEOUT)
        (event,) = found.of(HeartbeatTimeout)
        assert isinstance(event, HeartbeatTimeout)
        assert event.silent_s > 0.1
        assert (await peer.until_closed()).startswith("heartbeat_timeout")


async def test_a_peer_that_answers_heartbeats_lives_and_idles_out() -> None:
    config = ConnectionManagerConfig(heartbeat_interval=0.04, heartbeat_timeout=0.15, connection_timeout=0.4)
    async with alone(config) as found:
        peer = await found.peer()
        begin = time.monotonic()
        assert (await peer.until_closed()).startswith("idle")
        assert time.monotonic() - begin > 0.3
        assert not found.of(HeartbeatTimeout)


async def test_closing_says_goodbye() -> None:
    async with alone() as found:
        peers = [await found.peer() for _ in range(3)]
        leaving = asyncio.create_task(found.manager.close())
        assert [(await peer.until_closed()) for peer in peers] == ["drain"] * 3
        for peer in peers:
            peer._writer.close()
        await leaving
        assert len(found.manager) == 0


async def test_closing_does_not_wait_for_who_stays() -> None:
    async with alone() as found:
        peer = await found.peer()
        begin = time.monotonic()
        await found.manager.close(grace_s=0.1)
        assert time.monotonic() - begin < 5.0
        assert not found.manager._sockets
        assert (await peer.until_closed()) == "drain"


async def test_what_has_ended_and_lingers_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spearpool.worker.connection.LINGER_S", 0.05)
    async with alone() as found:
        peer = await Peer(Side.CLIENT).open(found.port)
        peer.send_raw(b"\0\0\0\0")
        await found.closed(CloseReason.PROTOCOL)
        await eventually_async(lambda: not found.manager._sockets)
        peer._writer.close()


async def test_stop_listening_keeps_what_is_connected() -> None:
    async with alone() as found:
        peer = await found.peer()
        found.manager.stop_listening()
        with pytest.raises(ConnectionRefusedError):
            await Peer(Side.CLIENT).open(found.port)
        peer.send(Heartbeat(Timestamp(0, 0), 1, HeartbeatStatus.IDLE))
        while not peer.heartbeats:
            await peer._read()
        peer.close()


# ------------------------------------------------------------------------------------------------------ with a worker


@asynccontextmanager
async def pool_of(directory: Path) -> AsyncIterator[Pool]:
    async with new_pool(directory) as pool:
        await pool.worker()
        yield pool


async def test_counts_everything(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as pool:
        worker = pool.workers[0]
        for _ in range(5):
            peer = await client(worker)
            peer.send(Heartbeat(Timestamp(0, 0), 1, HeartbeatStatus.IDLE))
            while not peer.heartbeats:
                await peer._read()
            peer.close()
        stranger = await Peer(Side.CLIENT).open(worker.port)
        await stranger.authenticate("x", "nobody's token")
        stranger.close()
        await eventually_async(lambda: worker.counter("connections_closed_peer") == 5)
        await eventually_async(lambda: worker.counter("connections_closed_authentication") == 1)
        counted = {
            name: worker.counter(name)
            for name in (
                "connections_opened",
                "authenticated",
                "auth_failed",
                "messages_in_auth_request",
                "messages_out_auth_response",
                "messages_in_heartbeat",
                "messages_out_heartbeat",
                "messages_in_connection_close",
            )
        }
        assert counted == {
            "connections_opened": 6,
            "authenticated": 5,
            "auth_failed": 1,
            "messages_in_auth_request": 6,
            "messages_out_auth_response": 6,
            "messages_in_heartbeat": 5,
            "messages_out_heartbeat": 5,
            "messages_in_connection_close": 5,
        }
        sizes = [event.size_bytes for _, event in worker.events if isinstance(event, MessageReceived)]
        assert worker.counter("bytes_in") == sum(sizes) > 0


async def test_the_newer_connection_of_an_agent_wins(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as pool:
        worker = pool.workers[0]
        _, name, token = pool.instance("echo")
        older = await agent(worker, name, token)
        newer = await agent(worker, name, token)
        assert (await older.until_closed()).startswith("replaced")
        older.close()
        caller = await client(worker)
        sent = caller.send(request())
        number, asked = await newer.message()
        assert isinstance(asked, ExecuteRequest)
        newer.complete(number, asked, "newer")
        answered, _ = await caller.message()
        assert answered == sent
        for peer in (newer, caller):
            peer.close()


@pytest.mark.parametrize(("agents", "clients"), [({}, {}), ({}, ASK), (ASK, {}), (ASK, ASK)])
async def test_each_peer_gets_the_encoding_that_it_asks_for(
    tmp_path: Path, agents: dict[str, str], clients: dict[str, str]
) -> None:
    async with pool_of(tmp_path) as pool:
        worker = pool.workers[0]
        _, name, token = pool.instance("echo")
        server = await agent(worker, name, token, **agents)
        caller = await Peer(Side.CLIENT).open(worker.port)
        await caller.authenticate("caller", Pool.client_token("submit", "caller"), clients)
        for peer, asked in ((server, agents), (caller, clients)):
            assert peer.session.codec is (MSGPACK_V2 if asked else JSON_V1)
            assert peer.answer is not None
            assert ("encoding:msgpack" in peer.answer.supported_features) is bool(asked)
        sent = caller.send(request(input=bytes(range(256))))
        number, asked_for = await server.message()
        assert isinstance(asked_for, ExecuteRequest)
        assert asked_for.input_data == bytes(range(256))
        server.complete(number, asked_for, "done")
        assert (await caller.next(ExecuteResponse, sent)).output == "done"
        for peer in (server, caller):
            peer.close()


async def test_clients_may_share_an_identity(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as pool:
        peers = [await client(pool.workers[0], "the same") for _ in range(3)]
        assert len(pool.workers[0].connections) == 3
        for peer in peers:
            peer.close()


async def test_a_cleared_row_opens_no_door(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as pool:
        worker = pool.workers[0]
        instance, name, token = pool.instance("echo")
        pool.table.close_row(instance.row)
        peer = await Peer(Side.AGENT).open(worker.port)
        answer = await peer.authenticate(name, token)
        assert answer is not None
        assert not answer.success
        failed = [event for _, event in worker.events if isinstance(event, AuthenticationFailed)]
        assert "not alive" in failed[0].cause
        peer.close()


async def test_revoking_closes_what_was_opened_with_the_token(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as pool:
        worker = pool.workers[0]
        revoked, other = await client(worker, "one"), await client(worker, "other")
        worker.connections.revoke(["one"])
        assert (await revoked.until_closed()).startswith("revoked")
        revoked.close()
        again = await Peer(Side.CLIENT).open(worker.port)
        answer = await again.authenticate("one", Pool.client_token(name="one"))
        assert answer is not None
        assert not answer.success
        again.close()
        other.close()
