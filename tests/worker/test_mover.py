"""Two workers in one loop whose movers are at work: balance, and a worker that is emptied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from spearpool.metrics import SeatState
from spearpool.protocol.messages import ExecuteRequest, ExecuteResponse
from spearpool.protocol.session import Side
from spearpool.worker import balance, mover
from spearpool.worker.control import Emptied
from tests.conftest import eventually_async

from .peers import Peer, agent, client, request
from .workers import Pool, Worker, new_pool

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same times, ten times as fast."""
    monkeypatch.setattr(mover, "SETTLED_S", 0.1)
    monkeypatch.setattr(mover, "LOOK_S", 0.01)
    monkeypatch.setattr(balance, "STEADY_S", 0.03)


@asynccontextmanager
async def workers(directory: Path, count: int = 2) -> AsyncIterator[tuple[Pool, list[Worker]]]:
    async with new_pool(directory) as pool:
        made = [await pool.worker() for _ in range(count)]
        for place, one in enumerate(made):
            for other in made[:place]:
                await pool.link(one, other)
        for worker in made:
            worker.mover.start()
        yield pool, made


def held(made: list[Worker]) -> list[int]:
    return [len(worker.connections) for worker in made]


async def test_connections_are_spread_evenly_and_then_left_alone(tmp_path: Path) -> None:
    async with workers(tmp_path, 3) as (_, made):
        peers = [await client(made[0], f"client-{n}") for n in range(11)]
        ports = [peer.port for peer in peers]
        await eventually_async(lambda: sorted(held(made)) == [3, 4, 4])
        moves = sum(worker.mover.handover.handed_over for worker in made)
        assert moves == 7
        await asyncio.sleep(0.2)
        assert sum(worker.mover.handover.handed_over for worker in made) == moves
        assert made[0].mover.handover.loads.of([worker.seat.index for worker in made]) == {
            worker.seat.index: len(worker.connections) for worker in made
        }
        assert [peer.port for peer in peers] == ports
        for peer in peers:
            peer.close()
        await eventually_async(lambda: held(made) == [0, 0, 0])
        assert set(made[0].mover.handover.loads.of([0, 2, 4]).values()) == {0}


async def test_the_young_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "SETTLED_S", 3600.0)
    async with workers(tmp_path) as (_, made):
        peers = [await client(made[0], f"client-{n}") for n in range(6)]
        await asyncio.sleep(0.3)
        assert held(made) == [6, 0]
        for peer in peers:
            peer.close()


async def test_a_client_that_is_never_at_rest_is_held_for_a_moment(tmp_path: Path) -> None:
    """It has always several requests on their way, and gets each answer once, in order."""
    async with workers(tmp_path) as (pool, made):
        _, name, token = pool.instance("echo")
        worker = await agent(made[1], name, token)
        serving = asyncio.create_task(worker.serve(lambda asked: asked.args[0]))
        peers = [await client(made[0], f"client-{n}") for n in range(4)]
        over = False

        async def submit(peer: Peer) -> None:
            sent = answered = 0
            while answered < sent or not over:
                while sent - answered < 5 and not over:
                    peer.send(request(args=[str(sent)]))
                    sent += 1
                assert (await peer.next(ExecuteResponse)).output == str(answered)
                answered += 1

        submitting = [asyncio.create_task(submit(peer)) for peer in peers]
        # four clients here, an agent there
        await eventually_async(lambda: made[0].mover.handover.handed_over == 1 and held(made) == [3, 2])
        over = True
        await asyncio.gather(*submitting)
        for peer in (*peers, worker):
            peer.close()
        await serving


async def test_who_cannot_be_moved_in_time_goes_on_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "HOLD_S", 0.03)
    monkeypatch.setattr(mover, "SPARE_S", 0.3)
    async with workers(tmp_path) as (pool, made):
        _, name, token = pool.instance("slow")
        worker = await agent(made[0], name, token)
        peers = [await client(made[0], f"client-{n}") for n in range(2)]
        for peer in peers:
            peer.send(request("slow"))
        asked = [await worker.message() for _ in peers]
        connections = list(made[0].connections)
        await eventually_async(lambda: any(connection.held for connection in connections))
        await eventually_async(lambda: not any(connection.held for connection in connections))
        assert held(made) == [3, 0]
        for number, payload in asked:
            assert isinstance(payload, ExecuteRequest)
            worker.complete(number, payload, "x")
        for peer in peers:
            await peer.next(ExecuteResponse)
        await eventually_async(lambda: held(made) == [2, 1])
        for peer in (*peers, worker):
            peer.close()


async def test_a_worker_that_leaves_gives_everything_away(tmp_path: Path) -> None:
    async with workers(tmp_path, 3) as (pool, made):
        made[2].seat.state = SeatState.LEAVING  # it gets nothing
        _, name, token = pool.instance("echo")
        worker = await agent(made[0], name, token)
        peers = [await client(made[0], f"client-{n}") for n in range(4)]
        number = peers[0].send(request())
        there, asked = await worker.message()
        assert isinstance(asked, ExecuteRequest)
        told: list[Emptied] = []
        made[0].seat.state = SeatState.LEAVING
        made[0].mover.empty(30.0, told.append)
        await eventually_async(lambda: held(made) == [2, 3, 0])  # the agent and its client have something to do
        assert not told
        late = await client(made[0], "late")
        await eventually_async(lambda: held(made) == [2, 4, 0])
        worker.complete(there, asked, "done")
        assert (await peers[0].next(ExecuteResponse, number)).output == "done"
        await eventually_async(lambda: told)
        assert told == [Emptied(handed_over=6, closed=0, awaited=1)]
        assert held(made) == [0, 6, 0]
        number = peers[1].send(request())
        there, asked = await worker.message()
        assert isinstance(asked, ExecuteRequest)
        worker.complete(there, asked, "again")
        assert (await peers[1].next(ExecuteResponse, number)).output == "again"
        for peer in (*peers, worker, late):
            peer.close()


async def test_what_is_not_over_at_the_deadline_is_closed(tmp_path: Path) -> None:
    async with workers(tmp_path) as (pool, made):
        _, name, token = pool.instance("echo")
        worker, peer = await agent(made[0], name, token), await client(made[0])
        stranger = await Peer(Side.CLIENT).open(made[0].port)
        peer.send(request())
        await worker.next(ExecuteRequest)
        told: list[Emptied] = []
        made[0].seat.state = SeatState.LEAVING
        made[0].mover.empty(0.2, told.append)
        assert "drain" in await peer.until_closed()
        await eventually_async(lambda: told)
        assert told == [Emptied(handed_over=0, closed=3, awaited=1)]
        assert "drain" in await worker.until_closed()
        stranger.abort()


async def test_with_nobody_to_give_it_to_what_is_at_rest_is_closed(tmp_path: Path) -> None:
    async with workers(tmp_path, 1) as (pool, made):
        _, name, token = pool.instance("echo")
        worker, busy, idle = await agent(made[0], name, token), await client(made[0], "a"), await client(made[0], "b")
        number = busy.send(request())
        there, asked = await worker.message()
        assert isinstance(asked, ExecuteRequest)
        told: list[Emptied] = []
        made[0].mover.empty(30.0, told.append)
        assert "drain" in await idle.until_closed()
        worker.complete(there, asked, "done")
        assert (await busy.next(ExecuteResponse, number)).output == "done"
        assert "drain" in await busy.until_closed()
        assert "drain" in await worker.until_closed()
        assert told == [Emptied(handed_over=0, closed=3, awaited=1)]
