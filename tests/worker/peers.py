"""The other side of a worker's connections: an agent or a client with a real session over a real socket."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

from spearpool.protocol.events import CloseReason
from spearpool.protocol.messages import (
    UNSET,
    AuthRequest,
    AuthResponse,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Heartbeat,
    Payload,
)
from spearpool.protocol.session import (
    AuthenticationAnswered,
    Closed,
    Received,
    Session,
    SessionSettings,
    Side,
)
from tests.conftest import TIME_SCALE

from .workers import Pool, Worker

__all__ = ["Peer", "agent", "client", "request"]

P = TypeVar("P", bound=Payload)

SETTINGS = SessionSettings(10.0, inf, inf, inf, 64 * 1024 * 1024)
TIMEOUT_S = 5.0


def request(task: str = "echo", **fields: Any) -> ExecuteRequest:
    """`input` is the input data; other fields are the wire's."""
    data = fields.pop("input", None)
    return ExecuteRequest(task, "", fields.pop("args", []), fields.pop("env", {}), input_data=data, **fields)


class Peer:
    """A connection to a worker. Messages that arrived wait in `inbox`; heartbeats are answered and counted only.

    Its socket is closed once the end of the conversation has been read, or by `close` or `abort`.
    """

    def __init__(self, side: Side) -> None:
        self.session = Session(side, SETTINGS, time.monotonic())
        self.inbox: deque[tuple[int, Payload]] = deque()
        self.answer: AuthResponse | None = None
        self.closed: Closed | None = None
        self.heartbeats = 0
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self, port: int) -> Peer:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        return self

    @property
    def port(self) -> int:
        """Our own one: it says which connection this is."""
        return int(self._writer.get_extra_info("sockname")[1])

    async def authenticate(self, name: str, token: str, extra: dict[str, str] | None = None) -> AuthResponse | None:
        """The answer, or None when the connection ended without one."""
        self.send(AuthRequest(name, token, "test", "test", extra or {}))
        while self.answer is None and self.closed is None:
            await self._read()
        return self.answer

    def send(self, payload: Payload, number: int | None = None) -> int:
        sent = self.session.send(payload, number)
        self._writer.write(self.session.data_to_send())
        return sent

    def send_raw(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    async def next(self, kind: type[P], number: int | None = None) -> P:
        """The next message, which must be of this kind (and have this id). AssertionError when the connection ends."""
        found, payload = await self.message()
        assert isinstance(payload, kind), payload
        assert number in (None, found)
        return payload

    async def message(self) -> tuple[int, Payload]:
        while not self.inbox:
            assert self.closed is None, self.closed
            await self._read()
        return self.inbox.popleft()

    async def until_closed(self) -> str:
        """Read to the end; the reason that the worker gave, "" for none."""
        while self.closed is None:
            await self._read()
        return self.closed.detail

    async def execute(self, payload: ExecuteRequest) -> ExecuteResponse | ErrorMessage:
        """Submit, and wait for what comes back."""
        number = self.send(payload)
        answered, answer = await self.message()
        assert answered == number
        assert isinstance(answer, ExecuteResponse | ErrorMessage)
        return answer

    async def serve(self, handler: Callable[[ExecuteRequest], str]) -> None:
        """Answer every request with the handler's text, until the connection ends."""
        while self.closed is None:
            while self.inbox:
                number, payload = self.inbox.popleft()
                if isinstance(payload, ExecuteRequest):
                    self.complete(number, payload, handler(payload))
            await self._read(timeout_s=inf)

    def complete(self, number: int, payload: ExecuteRequest, output: str, *, echo_id: bool = True) -> None:
        name = payload.execution_id if echo_id else UNSET
        response = ExecuteResponse(payload.task_id, ExecutionStatus.COMPLETED, output, execution_id=name)
        self.send(response, number)

    def close(self) -> None:
        self.session.close(CloseReason.DRAIN)
        self._writer.write(self.session.data_to_send())
        self._writer.close()

    def abort(self) -> None:
        """As if the process had been killed."""
        self._writer.transport.abort()

    async def _read(self, timeout_s: float = TIMEOUT_S) -> None:
        try:
            data = await asyncio.wait_for(
                self._reader.read(1 << 16), None if timeout_s == inf else timeout_s * TIME_SCALE
            )
        except ConnectionError:
            data = b""
        for event in self.session.receive_data(data, time.monotonic()):
            match event:
                case AuthenticationAnswered(response):
                    self.answer = response
                case Received(_, Heartbeat()):
                    self.heartbeats += 1
                case Received(number, payload):
                    self.inbox.append((number, payload))
                case Closed():
                    self.closed = event
                case _:
                    raise AssertionError(event)
        if self.closed is None:
            self._writer.write(self.session.data_to_send())
        else:
            self._writer.close()


async def client(worker: Worker, name: str = "client", rights: str = "submit") -> Peer:
    peer = await Peer(Side.CLIENT).open(worker.port)
    answer = await peer.authenticate(name, Pool.client_token(rights, name))
    assert answer is not None
    assert answer.success, answer
    return peer


async def agent(worker: Worker, name: str, token: str, **extra: str) -> Peer:
    peer = await Peer(Side.AGENT).open(worker.port)
    answer = await peer.authenticate(name, token, extra)
    assert answer is not None
    assert answer.success, answer
    return peer
