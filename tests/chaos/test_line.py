"""A chaos client against servers that are wrong in one way each."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.chaos.crowd import Assignment, Crowd, Times
from tests.chaos.line import Cut, Dismissed, Line, NotAdmitted, Tally, dial
from tests.conftest import eventually_async
from tests.integration.test_loadtest import TOKEN, Behaviour, EchoServer, error, executed, frame

HEARTBEAT_ID = 2**63


class Server(EchoServer):
    """Knows how many connections it still has."""

    serving = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving += 1
        await super().serve(reader, writer)
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.serving -= 1


@asynccontextmanager
async def fake_pool(behaviour: Behaviour = executed) -> AsyncIterator[Server]:
    """Gone when its last connection is."""
    fake = Server(behaviour)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.address = "{}:{}".format(*server.sockets[0].getsockname())
    try:
        yield fake
        await eventually_async(lambda: not fake.serving)
    finally:
        server.close()
        await server.wait_closed()


async def reach(server: EchoServer, tally: Tally, token: str = TOKEN) -> Line:
    host, port = server.address.split(":")
    return await dial(tally, (host, int(port)), token, "test", timeout_s=5)


def unknown(request_id: int, _: str) -> bytes:
    return executed(request_id, None, "Failed", error_code=502)


@pytest.mark.parametrize(
    ("behaviour", "counted"),
    [
        (executed, {"right": 1}),
        (lambda number, text: executed(number, None, output_data=list(text.encode())), {"right": 1}),
        (lambda number, text: executed(number, text, "Started") + executed(number, text), {"right": 1}),
        (lambda number, text: executed(number, text + "!"), {"wrong": 1}),
        (lambda number, text: executed(number, text) * 2, {"right": 1, "duplicate": 1}),
        (lambda number, text: executed(number, text) + executed(number + 7, text), {"right": 1, "stray": 1}),
        (lambda number, text: executed(number, text) + frame("Signal", 1, {}), {"right": 1, "stray": 1}),
        (lambda number, _: error(number, 503), {"refused executions": 1}),
        (lambda number, _: executed(number, None, "Timeout"), {"failed": 1}),
        (unknown, {"outcome unknown": 1}),
    ],
)
@pytest.mark.asyncio
async def test_how_an_execution_ends(behaviour: Behaviour, counted: dict[str, int]) -> None:
    tally = Tally()
    async with fake_pool(behaviour) as server:
        line = await reach(server, tally)
        await line.execute("t", b"text", b"text")
        await eventually_async(lambda: tally.counts == Counter(counted | {"executions": 1}))
        assert line.ended is None
        line.leave()
        await eventually_async(lambda: line.gone and server.counts["ConnectionClose"])
    assert len(tally.examples) == len(counted.keys() - {"right", "outcome unknown"})


@pytest.mark.asyncio
async def test_cut() -> None:
    tally = Tally()
    async with fake_pool(lambda *_: None) as server:
        line = await reach(server, tally)
        await asyncio.gather(line.execute("t", b"1", b"1"), line.execute("t", b"2", b"2"))
    assert isinstance(line.ended, Cut)
    assert tally.counts == {"executions": 2, "reset": 1, "lost with their connection": 2}


@pytest.mark.asyncio
async def test_dismissed() -> None:
    goodbye = frame("ConnectionClose", 1, {"reason": "drain"})
    tally = Tally()
    async with fake_pool(lambda _, text: goodbye if text == "1" else None) as server:
        line = await reach(server, tally)
        await asyncio.gather(line.execute("t", b"1", b"1"), line.execute("t", b"2", b"2"))
    assert isinstance(line.ended, Dismissed)
    assert str(line.ended) == "drain"
    assert tally.counts == {"executions": 2, "dismissed": 1, "lost with their connection": 2}


@pytest.mark.asyncio
async def test_not_admitted() -> None:
    tally = Tally()
    async with fake_pool() as server:
        with pytest.raises(NotAdmitted):
            await reach(server, tally, "another token")
    assert tally.counts == {"not admitted": 1}


@pytest.mark.asyncio
async def test_what_was_not_answered_is_counted_when_given_up() -> None:
    tally = Tally()
    async with fake_pool(lambda *_: b"") as server:
        line = await reach(server, tally)
        line.execute("t", b"1", b"1")
        await eventually_async(lambda: server.counts["ExecuteRequest"])
        line.give_up()
        await eventually_async(lambda: line.gone)
    assert tally.counts == {"executions": 1, "without a final status": 1}


@pytest.mark.asyncio
async def test_heartbeats_are_answered() -> None:
    beat = frame("Heartbeat", HEARTBEAT_ID, {"timestamp": 0, "sequence": 1, "status": "Active"})
    async with fake_pool(lambda number, text: beat + executed(number, text)) as server:
        line = await reach(server, Tally())
        await line.execute("t", b"1", b"1")
        await eventually_async(lambda: server.counts["Heartbeat"])
        line.leave()
        await eventually_async(lambda: line.gone)


@pytest.mark.asyncio
async def test_a_slow_client_reads_late() -> None:
    tally = Tally()
    async with fake_pool() as server:
        line = await reach(server, tally)
        line.read_nothing()
        answer = line.execute("t", b"1", b"1")
        await eventually_async(lambda: server.counts["ExecuteRequest"])
        assert not answer.done()
        line.read_on()
        await answer
        line.leave()
        await eventually_async(lambda: line.gone)
    assert tally.counts == {"executions": 1, "right": 1}


@pytest.mark.asyncio
async def test_a_crowd_comes_at_its_rate_and_goes() -> None:
    def shout(request_id: int, text: str) -> bytes:
        return executed(request_id, text.upper())

    async with fake_pool(shout) as server:
        host, port = server.address.split(":")
        crowd = Crowd(Assignment("c", host, int(port), TOKEN, 1, rate=100, residents=3))
        await crowd.prepare()
        now = time.monotonic()
        account = await crowd.run(Times(now, now + 0.4, now + 1.0, 5.0))
        await eventually_async(lambda: server.counts["ConnectionClose"] == 103)
    counts = account.counts
    assert (counts["passed"], counts["dialled"], account.kept) == (100, 103, 3)
    assert (len(account.calm_ms), len(account.storm_ms)) == (40, 60)
    assert counts["right"] == counts["executions"] > 10
    assert server.counts["AuthRequest"] == 103
    assert not counts.get("without a final status")


@pytest.mark.asyncio
async def test_a_crowd_notices_that_nobody_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        host, port = sock.getsockname()
        now = time.monotonic()
        account = await Crowd(Assignment("c", host, port, TOKEN, 1, rate=50)).run(Times(now, now, now + 0.2, 5.0))
    assert account.counts == {"dialled": 10, "refused": 10}
    assert account.storm_ms == []
