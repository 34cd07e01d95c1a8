"""What one connection does about peers that read slowly, not at all, or say things in an unfortunate order."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from spearpool.config import ConnectionManagerConfig
from spearpool.protocol.credentials import Grant, Verifier
from spearpool.protocol.events import CloseReason, Disconnected
from spearpool.protocol.identity import Identity, Role
from spearpool.protocol.messages import (
    AuthRequest,
    ExecuteResponse,
    ExecutionStatus,
    Heartbeat,
    HeartbeatStatus,
    Timestamp,
)
from spearpool.protocol.session import Received, Side
from spearpool.worker.belongings import Belongings
from spearpool.worker.connection import Connection
from spearpool.worker.connection_manager import ConnectionManager
from tests.conftest import eventually_async

from .peers import Peer, request

pytestmark = pytest.mark.asyncio

OUTPUT = "x" * 8_000
"""About 32 KB on the wire."""


class Talker:
    """Answers each request with as many answers as its first argument says."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.received = 0
        self.reasons: list[CloseReason] = []

    def refusal(self, _identity: Identity) -> str | None:
        return None

    def authenticated(self, connection: Connection, _request: AuthRequest) -> None:
        self.connections.append(connection)

    def received_one(self, connection: Connection, event: Received) -> None:
        self.received += 1
        times = int(getattr(event.payload, "args", ["0"])[0])
        for _ in range(times):
            connection.reply(event.request_id, ExecuteResponse("echo", ExecutionStatus.RUNNING, OUTPUT))
        connection.reply(event.request_id, ExecuteResponse("echo", ExecutionStatus.COMPLETED, "end"))

    def closed(self, _connection: Connection, reason: CloseReason | None) -> None:
        assert reason is not None
        self.reasons.append(reason)

    def took_in(self, _connection: Connection, _belongings: Belongings) -> bool:
        return False


class Server(Talker):
    def __init__(self, config: ConnectionManagerConfig) -> None:
        super().__init__()
        verifier = Verifier(
            (),
            row_is_alive=lambda _row, _generation: False,
            validator=lambda _name, _token: Grant(Role.CLIENT, rights=("submit",)),
        )
        self.manager = ConnectionManager(config, verifier, handler=_Handler(self))
        self.port = 0

    async def peer(self, receive_buffer: int = 8192) -> Peer:
        """A client with a small receive buffer."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        peer = Peer(Side.CLIENT)
        peer._reader, peer._writer = await asyncio.open_connection(sock=sock, limit=8192)
        await peer.authenticate("client", "long enough")
        return peer

    @property
    def reading(self) -> bool:
        transport = self.connections[0]._transport
        return transport is not None and transport.is_reading()


class _Handler:
    """The handler protocol, on a talker."""

    def __init__(self, talker: Talker) -> None:
        self.refusal = talker.refusal
        self.authenticated = talker.authenticated
        self.received = talker.received_one
        self.closed = talker.closed
        self.took_in = talker.took_in


@asynccontextmanager
async def serving(**config: float) -> AsyncIterator[Server]:
    server = Server(ConnectionManagerConfig(**config))  # type: ignore[arg-type]
    server.port = await server.manager.start_listening(0)
    try:
        yield server
    finally:
        await server.manager.close(grace_s=0.2)


async def test_who_does_not_read_is_not_read_and_loses_nothing() -> None:
    async with serving(max_message_size=64 * 1024 * 1024) as server:
        peer = await server.peer()
        for _ in range(100):
            peer.send(request(args=["10"]))
        await eventually_async(lambda: server.connections and not server.reading)
        answered = server.received
        assert answered <= 100
        ends = 0
        while ends < 100:
            message = await peer.next(ExecuteResponse)
            ends += message.status is ExecutionStatus.COMPLETED
        assert server.received == 100
        assert server.reading
        peer.close()


async def test_what_piles_up_is_bounded() -> None:
    async with serving(max_message_size=64 * 1024) as server:
        peer = await server.peer()
        peer.send(request(args=["1000"]))
        peer.send(request(args=["1000"]))
        await eventually_async(lambda: server.reasons == [CloseReason.OVERLOADED])
        peer.abort()


async def test_a_slow_reader_lives() -> None:
    async with serving(heartbeat_interval=0.05, heartbeat_timeout=0.2) as server:
        peer = await server.peer()
        peer.send(request(args=["300"]))
        await eventually_async(lambda: server.connections and not server.reading)
        begin = time.monotonic()
        while time.monotonic() - begin < 0.8:
            await peer._reader.read(65536)
            await asyncio.sleep(0.01)
        assert not server.reasons
        peer.abort()


async def test_who_reads_nothing_at_all_is_ended() -> None:
    async with serving(heartbeat_interval=0.05, heartbeat_timeout=0.2) as server:
        peer = await server.peer()
        peer._writer.transport.pause_reading()  # type: ignore[attr-defined]
        peer.send(request(args=["300"]))
        await eventually_async(lambda: server.reasons == [CloseReason.HEARTBEAT_TIMEOUT])
        peer.abort()


async def test_answers_to_one_piece_of_input_leave_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server:
        peer = await server.peer()
        connection = server.connections[0]
        writes: list[int] = []
        transport = connection._transport
        assert transport is not None
        monkeypatch.setattr(connection, "_transport", Recorder(transport, writes))
        for sequence in range(10):
            peer.session.send(Heartbeat(Timestamp(0, 0), sequence, HeartbeatStatus.IDLE))
        peer.send_raw(peer.session.data_to_send())
        while peer.heartbeats < 10:
            await peer._read()
        assert len(writes) == 1
        peer.close()
        await eventually_async(lambda: server.reasons == [CloseReason.PEER])


class Recorder:
    """A transport that notes what is written."""

    def __init__(self, transport: asyncio.Transport, writes: list[int]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(len(data))
        self._transport.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


async def test_a_request_and_the_end_in_one_piece() -> None:
    """The answer finds nobody: that is no error."""
    async with serving() as server:
        peer = await server.peer()
        peer.session.send(request(args=["0"]))
        peer.session.close(CloseReason.DRAIN)
        peer.send_raw(peer.session.data_to_send())
        await eventually_async(lambda: server.reasons == [CloseReason.PEER])
        assert server.received == 1
        peer.abort()


async def test_the_end_is_an_end_and_no_reset() -> None:
    """A socket closed with unread bytes in it resets the connection, and the peer may lose what was said last."""
    async with serving() as server:
        peer = await server.peer()
        server.connections[0].close(CloseReason.DRAIN, "goodbye")
        peer.send_raw(bytes(1_000_000))
        await peer.drain()
        data = await peer._reader.read(-1)
        assert "goodbye" in str(peer.session.receive_data(data, 0.0))
        peer.abort()


async def test_nothing_is_read_after_the_end() -> None:
    async with serving() as server:
        peer = await server.peer()
        server.connections[0].close(CloseReason.DRAIN)
        peer.send(request())
        await peer.until_closed()
        await eventually_async(lambda: not server.manager._sockets)
        assert server.received == 0


async def test_the_end_is_told_once() -> None:
    async with serving() as server:
        ends: list[object] = []
        server.manager.subscribe(lambda _id, event: ends.append(event) if isinstance(event, Disconnected) else None)
        peer = await server.peer()
        connection = server.connections[0]
        connection.close(CloseReason.DRAIN)
        connection.close(CloseReason.REPLACED)
        peer.abort()
        await eventually_async(lambda: not server.manager._sockets)
        assert len(ends) == 1
        assert server.reasons == [CloseReason.DRAIN]


async def test_an_error_of_ours_costs_that_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        peer, other = await server.peer(), await server.peer()
        peer.session.send(request(args=["not a number"]))
        peer.session.close(CloseReason.DRAIN)
        peer.send_raw(peer.session.data_to_send())
        await eventually_async(lambda: server.reasons == [CloseReason.LOST])
        assert "ValueError" in caplog.text
        assert len(server.manager) == 1
        peer.abort()
        other.close()
