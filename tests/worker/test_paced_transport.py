"""`paced_transport`: on a real socket pair, with either event loop's transport: what passes, in order, and when."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
import uvloop

from spearpool.worker.pace import BURST_S, Pace
from spearpool.worker.paced_transport import PacedTransport
from tests.conftest import eventually_async

uvloop.new_event_loop().close()  # libuv keeps a pipe per process, from its first loop on: before anybody counts leaks

RATE = 200_000
T = TypeVar("T")
Run = Callable[[Callable[[], Awaitable[T]]], T]


@dataclass
class Protocol(asyncio.Protocol):
    received: bytearray = field(default_factory=bytearray)
    ended: list[str] = field(default_factory=list)

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool:
        self.ended.append("eof")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.append("lost")


@dataclass
class Bench:
    peer: socket.socket
    inner: asyncio.Transport
    protocol: Protocol
    transport: PacedTransport
    counted: list[tuple[int, int]]

    @property
    def passed(self) -> int:
        return sum(size for size, _ in self.counted)

    @property
    def waits(self) -> int:
        return sum(waits for _, waits in self.counted)


async def bench(rate: int = RATE) -> Bench:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    protocol = Protocol()
    inner, _ = await asyncio.get_running_loop().create_connection(lambda: protocol, sock=ours)
    counted: list[tuple[int, int]] = []
    transport = PacedTransport(inner, protocol, Pace(rate, time.monotonic()), lambda *pair: counted.append(pair))
    return Bench(theirs, inner, protocol, transport, counted)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run[None]]:
    with asyncio.Runner(loop_factory=request.param) as runner:

        def go(body: Callable[[], Awaitable[None]]) -> None:
            async def bounded() -> None:
                await asyncio.wait_for(body(), 30)

            runner.run(bounded())

        yield go


async def read(peer: socket.socket, size: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size:
        piece = await loop.sock_recv(peer, 1 << 20)
        assert piece, f"ended after {len(data)} bytes"
        data += piece
    return data


def test_a_little_passes_at_once(run: Run[None]) -> None:
    async def body() -> None:
        at = await bench()
        at.transport.write(b"hello")
        assert await read(at.peer, 5) == b"hello"
        await asyncio.get_running_loop().sock_sendall(at.peer, b"answer")
        await eventually_async(lambda: at.protocol.received == b"answer")
        assert (at.passed, at.waits) == (11, 0)
        assert not at.transport.in_debt
        at.transport.close()
        at.peer.close()

    run(body)


def test_much_that_is_written_follows_at_the_rate_in_order(run: Run[None]) -> None:
    data = bytes(range(256)) * (RATE * 2 // 256)

    async def body() -> None:
        at = await bench()
        began = time.monotonic()
        at.transport.write(data[:1000])
        at.transport.write(data[1000:-500])
        at.transport.write(data[-500:])
        assert at.transport.get_write_buffer_size() >= len(data) - RATE * BURST_S - 1000
        at.transport.write_eof()
        assert await read(at.peer, len(data)) == data
        assert time.monotonic() - began >= len(data) / RATE - BURST_S - 0.01
        assert await asyncio.get_running_loop().sock_recv(at.peer, 1) == b"", "the end comes after the rest"
        assert (at.passed, at.waits) == (len(data), 1)
        at.transport.abort()
        at.peer.close()

    run(body)


def test_much_that_arrives_is_read_at_the_rate(run: Run[None]) -> None:
    data = bytes(range(256)) * (RATE * 3 // 256)

    async def body() -> None:
        at = await bench()
        began = time.monotonic()
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(at.peer, data))
        seen_in_debt = False
        while len(at.protocol.received) < len(data):
            seen_in_debt = seen_in_debt or at.transport.in_debt
            await asyncio.sleep(0.005)
        # the last read may have been as large as the loop makes them
        assert time.monotonic() - began >= (len(data) - 262_144) / RATE - BURST_S - 0.01
        assert seen_in_debt
        assert at.waits >= 1
        assert bytes(at.protocol.received) == data
        await sending
        at.transport.abort()
        at.peer.close()

    run(body)


def test_who_reads_much_can_still_be_written_to_and_the_other_way_round(run: Run[None]) -> None:
    out, back = b"o" * (RATE * 3 // 2), b"b" * (RATE * 3 // 2)

    async def body() -> None:
        at = await bench()
        at.transport.write(out)
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(at.peer, back))
        assert await read(at.peer, len(out)) == out
        await sending
        await eventually_async(lambda: len(at.protocol.received) == len(back), 20)
        assert at.passed == len(out) + len(back)
        at.transport.abort()
        at.peer.close()

    run(body)


def test_what_the_protocol_holds_stays_held_when_the_debt_is_paid(run: Run[None]) -> None:
    async def body() -> None:
        at = await bench(1 << 20)
        at.transport.pause_reading()
        await asyncio.get_running_loop().sock_sendall(at.peer, b"x" * 1000)
        await asyncio.sleep(0.05)
        assert not at.protocol.received
        at.transport.resume_reading()
        await eventually_async(lambda: len(at.protocol.received) == 1000)
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(at.peer, b"y" * (1 << 21)))
        await eventually_async(lambda: at.transport.in_debt)
        at.transport.pause_reading()
        size = len(at.protocol.received)
        await eventually_async(lambda: not at.transport.in_debt)
        await asyncio.sleep(0.05)
        assert len(at.protocol.received) == size
        at.transport.resume_reading()
        await sending
        at.transport.abort()
        at.peer.close()

    run(body)


@pytest.mark.parametrize("how", ["close", "abort", "peer"])
def test_an_end_while_it_waits_ends_it(run: Run[None], how: str) -> None:
    async def body() -> None:
        at = await bench()
        at.transport.write(b"x" * (RATE * 4))
        if how == "peer":
            at.peer.close()
        else:
            getattr(at.transport, how)()
        await eventually_async(lambda: "lost" in at.protocol.ended)
        assert at.transport.is_closing()
        assert at.transport.get_write_buffer_size() == 0
        at.peer.close()

    run(body)
