"""Several workers in one loop, joined by real socketpairs; and the words that a link carries."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path

import pytest

from spearpool.errors import ErrorCode
from spearpool.metrics import SeatState
from spearpool.protocol.messages import (
    UNSET,
    ErrorMessage,
    ExecuteRequest,
    ExecuteResponse,
    ExecutionStatus,
    Signal,
    SignalName,
)
from spearpool.worker.links import Link, Links, SharedBoard
from spearpool.worker.outbox import Outbox
from tests.conftest import eventually_async

from .peers import Peer, agent, client, request
from .workers import Pool, Worker, new_pool

pytestmark = pytest.mark.asyncio

MAX_BYTES = 64 * 1024


# ------------------------------------------------------------------------------------------------------- one link


class Hearer:
    """Notes what comes over a link."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.heard: list[tuple[object, ...]] = []

    def link_up(self, link: Link) -> None:
        self.links.append(link)
        self.heard.append(("up", link.incarnation))

    def link_submitted(self, _link: Link, request_id: int, asked: ExecuteRequest) -> None:
        self.heard.append(("submitted", request_id, asked))

    def link_refused(self, _link: Link, execution_id: str) -> None:
        self.heard.append(("refused", execution_id))

    def link_answered(self, _link: Link, execution_id: str, response: ExecuteResponse) -> None:
        self.heard.append(("answered", execution_id, response))

    def link_cancelled(self, _link: Link, execution_id: str) -> None:
        self.heard.append(("cancelled", execution_id))

    def link_nudged(self, _link: Link, task: str) -> None:
        self.heard.append(("nudged", task))

    def link_unused(self, _link: Link, task: str) -> None:
        self.heard.append(("unused", task))

    def link_located(self, _link: Link, execution_id: str) -> None:
        self.heard.append(("located", execution_id))

    def link_mislaid(self, _link: Link, execution_id: str) -> None:
        self.heard.append(("mislaid", execution_id))

    def link_down(self, link: Link) -> None:
        self.heard.append(("down", link.incarnation))

    async def hears(self, *expected: tuple[object, ...]) -> None:
        await eventually_async(lambda: len(self.heard) >= len(expected))
        assert self.heard == list(expected)
        self.heard.clear()


class Ends:
    """Two ends of a link, each with a hearer: worker 1 hears with `ours`, slot 2 with `theirs`."""

    def __init__(self) -> None:
        outbox = Outbox(asyncio.get_running_loop())
        self.ours, self.theirs = Hearer(), Hearer()
        self.links = [Links(hearer, outbox, MAX_BYTES) for hearer in (self.ours, self.theirs)]

    async def open(self) -> tuple[Link, Link]:
        for links, number, end in zip(self.links, (2, 1), socket.socketpair(), strict=True):
            await links.open(number, 2 * number, end.detach())
        return self.links[0].to(2), self.links[1].to(1)


@asynccontextmanager
async def two_ends() -> AsyncIterator[Ends]:
    ends = Ends()
    try:
        yield ends
    finally:
        for links in ends.links:
            links.close()
        await asyncio.sleep(0.01)


async def test_every_word_arrives() -> None:
    async with two_ends() as ends:
        link, _ = await ends.open()
        asked = request(hops=1, execution_id="e")
        response = ExecuteResponse("echo", ExecutionStatus.COMPLETED, "x", execution_id="e")
        link.forward(asked)
        link.forward(asked)
        link.reply(7, response)
        link.relay(response)
        link.refuse(7, ErrorCode.OVERLOADED, "full", "e")
        link.terminate("e")
        link.nudge("echo")
        link.unused("echo")
        link.located("e")
        link.mislaid("e")
        await ends.theirs.hears(
            ("up", 1),
            ("submitted", 1, asked),
            ("submitted", 2, asked),
            ("answered", "e", response),
            ("answered", "e", response),
            ("refused", "e"),
            ("cancelled", "e"),
            ("nudged", "echo"),
            ("unused", "echo"),
            ("located", "e"),
            ("mislaid", "e"),
        )


async def test_what_was_said_before_the_end_arrives_before_it() -> None:
    async with two_ends() as ends:
        link, _ = await ends.open()
        link.nudge("echo")
        link.close()
        await ends.theirs.hears(("up", 1), ("nudged", "echo"), ("down", 1))
        await ends.ours.hears(("up", 2), ("down", 2))


async def test_a_newer_link_takes_the_place_of_the_older() -> None:
    async with two_ends() as ends:
        older, _ = await ends.open()
        newer, _ = await ends.open()
        assert newer is not older
        await ends.ours.hears(("up", 2), ("down", 2), ("up", 2))
        older.nudge("lost")
        newer.nudge("echo")
        await eventually_async(lambda: ("nudged", "echo") in ends.theirs.heard)
        assert ("nudged", "lost") not in ends.theirs.heard
        assert ends.theirs.heard.count(("down", 1)) == 1


async def test_two_links_opened_in_one_turn_leave_the_second() -> None:
    async with two_ends() as ends:
        await asyncio.gather(ends.open(), ends.open())
        await eventually_async(lambda: ends.ours.heard.count(("up", 2)) - ends.ours.heard.count(("down", 2)) == 1)
        assert ends.links[0].to(2)._transport is not None


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\4junk"])
async def test_a_link_that_talks_nonsense_is_over(data: bytes) -> None:
    hearer = Hearer()
    links = Links(hearer, Outbox(asyncio.get_running_loop()), MAX_BYTES)
    ours, theirs = socket.socketpair()
    await links.open(2, 4, ours.detach())
    with theirs:
        theirs.sendall(data)
        await hearer.hears(("up", 2), ("down", 2))
        assert theirs.recv(1) == b""


async def test_who_does_not_read_is_congested() -> None:
    hearer = Hearer()
    links = Links(hearer, Outbox(asyncio.get_running_loop()), MAX_BYTES)
    ours, theirs = socket.socketpair()
    await links.open(2, 4, ours.detach())
    link = links.to(2)

    def congested() -> bool:
        return link.congested

    with theirs:
        while not congested():
            link.forward(request(working_dir="x" * 10_000, execution_id="e"))
            await asyncio.sleep(0)
        theirs.setblocking(False)
        while congested():
            await asyncio.get_running_loop().sock_recv(theirs, 1 << 20)
        links.close()
        await asyncio.sleep(0.01)


# ----------------------------------------------------------------------------------------------------- two workers


class Two:
    """The client's worker, the agents' worker, and the link between them."""

    def __init__(self, pool: Pool, origin: Worker, other: Worker, caller: Peer) -> None:
        self.pool = pool
        self.origin = origin
        self.other = other
        self.caller = caller
        self.peers = [caller]

    async def agent(self, worker: Worker, task: str = "echo") -> Peer:
        _, name, token = self.pool.instance(task)
        peer = await agent(worker, name, token)
        self.peers.append(peer)
        return peer

    async def asked(self, peer: Peer) -> tuple[int, ExecuteRequest]:
        number, payload = await peer.message()
        assert isinstance(payload, ExecuteRequest), payload
        return number, payload

    def queued(self, worker: Worker) -> int:
        return worker.executions.dispatcher.snapshot().queued

    def die(self, worker: Worker) -> None:
        """What its neighbours see of a worker's SIGKILL: the end of the link."""
        for neighbour in self.pool.workers:
            link = worker.executions.links.get(neighbour.incarnation)
            if link is not None and link._transport is not None:
                link._transport.abort()


@asynccontextmanager
async def two_workers(directory: Path) -> AsyncIterator[Two]:
    async with new_pool(directory) as pool:
        origin, other = await pool.worker(), await pool.worker()
        await pool.link(origin, other)
        two = Two(pool, origin, other, await client(origin))
        try:
            yield two
        finally:
            for peer in two.peers:
                peer.close()


async def test_forwards_and_answers(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        server = await two.agent(two.other)
        sent = two.caller.send(request(input=b"over there", timeout=5))
        number, asked = await two.asked(server)
        assert asked.input_data == b"over there"
        assert asked.hops is UNSET
        assert asked.execution_id is not UNSET
        assert asked.execution_id.startswith(f"{two.origin.slot}-")
        assert asked.deadline_ms is not UNSET
        assert 4000 < asked.deadline_ms <= 5000
        server.complete(number, asked, "done")
        answer = await two.caller.next(ExecuteResponse, sent)
        assert (answer.output, answer.execution_id) == ("done", asked.execution_id)


async def test_only_the_origin_counts_and_links_are_no_connections(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        server = await two.agent(two.other)
        two.caller.send(request())
        server.complete(*await two.asked(server), "done")
        await two.caller.next(ExecuteResponse)
        counted = {
            worker.slot: [worker.executed("echo", stage) for stage in ("received", "forwarded", "completed")]
            for worker in two.pool.workers
        }
        assert counted == {two.origin.slot: [1, 1, 1], two.other.slot: [0, 0, 0]}
        assert two.other.counter("messages_in_execute_request") == 0
        assert two.other.counter("messages_out_execute_request") == 1


async def test_a_hundred_at_once_over_a_link(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        servers = [await two.agent(two.other) for _ in range(3)] + [await two.agent(two.origin)]
        serving = [asyncio.create_task(peer.serve(lambda r: (r.input_data or b"").decode())) for peer in servers]
        sent = {two.caller.send(request(input=str(n).encode())): str(n) for n in range(100)}
        for _ in range(100):
            number, answer = await two.caller.message()
            assert isinstance(answer, ExecuteResponse)
            assert answer.output == sent.pop(number)
        for peer in servers:
            peer.close()
        await asyncio.gather(*serving)


async def test_what_waits_goes_where_capacity_appears(tmp_path: Path) -> None:
    """The nudge, not the re-read: that one is switched off here."""
    async with two_workers(tmp_path) as two:
        two.caller.send(request())
        await eventually_async(lambda: two.queued(two.origin) == 1)
        two.origin.executions.dispatcher.next_deadline = lambda: float("inf")  # type: ignore[method-assign]
        if two.origin.executions._timer is not None:
            two.origin.executions._timer.cancel()
        server = await two.agent(two.other)
        server.complete(*await two.asked(server), "done")
        assert (await two.caller.next(ExecuteResponse)).output == "done"


async def test_a_neighbour_without_capacity_refuses_and_the_origin_queues(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        two.other.seat.publish_capacity(two.pool.segment.task_index("echo"), 1, 0)  # a row that is out of date
        sent = two.caller.send(request())
        await eventually_async(lambda: two.queued(two.origin) == 1)
        two.other.seat.publish_capacity(two.pool.segment.task_index("echo"), 0, 0)
        server = await two.agent(two.origin)
        server.complete(*await two.asked(server), "here")
        assert (await two.caller.next(ExecuteResponse, sent)).output == "here"


async def test_a_busy_worker_makes_room_for_who_waits_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All words of the exchange: the row says who waits since when, the nudge, the guest, the answer."""
    monkeypatch.setattr("spearpool.worker.placement.PATIENCE_S", 0.0)
    async with two_workers(tmp_path) as two:
        two.caller.send(request(input=b"theirs"))
        await eventually_async(lambda: two.queued(two.origin) == 1)
        local = await client(two.other)
        two.peers.append(local)
        for number in range(3):
            local.send(request(input=b"ours %d" % number))
        await eventually_async(lambda: two.queued(two.other) == 3)
        server = await two.agent(two.other)
        order = []
        for _ in range(4):
            number, asked = await two.asked(server)
            order.append(asked.input_data)
            if len(order) == 1:  # only then may the guest be late
                await eventually_async(lambda: two.queued(two.origin) == 0 and two.queued(two.other) == 3)
            server.complete(number, asked, "done")
        assert order == [b"ours 0", b"theirs", b"ours 1", b"ours 2"]
        assert (await two.caller.next(ExecuteResponse)).output == "done"


async def test_the_board_as_one_worker_sees_it(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        task = two.pool.segment.task_index("echo")
        seats = (two.origin.seat, two.other.seat)
        ours, theirs = (
            SharedBoard(seat, (99, task), worker.executions.links)
            for seat, worker in zip(seats, two.pool.workers, strict=True)
        )
        assert (ours.free(1), ours.waiting(1, inf)) == ({}, {})
        ours.publish(1, 9, 9, 1.0)
        assert (ours.free(1), ours.waiting(1, inf)) == ({}, {})  # it is about neighbours
        theirs.publish(1, 3, 4, 2.5)
        assert (ours.free(1), ours.waiting(1, inf), ours.queued(two.other.incarnation, 1)) == (
            {two.other.incarnation: 3},
            {two.other.incarnation: 2.5},
            4,
        )
        assert (ours.waiting(1, 2.6), ours.waiting(1, 2.5)) == ({two.other.incarnation: 2.5}, {})
        theirs.publish_arrived(two.origin.incarnation, 7)
        assert (ours.arrived(two.other.incarnation), theirs.arrived(two.origin.incarnation)) == (7, 0)
        link = two.origin.executions.links.to(two.other.incarnation)
        link.pause_writing()
        assert (ours.congested(two.other.incarnation), ours.free(1), ours.waiting(1, inf)) == (
            True,
            {},
            {two.other.incarnation: 2.5},
        )
        link.resume_writing()
        assert not ours.leaving(two.other.incarnation)
        two.other.seat.state = SeatState.LEAVING
        assert ours.leaving(two.other.incarnation)
        assert ours.leaving(77)


async def test_a_time_out_reaches_the_agent_over_there(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        server = await two.agent(two.other)
        two.caller.send(request(deadline_ms=50))
        number, asked = await two.asked(server)
        answer = await two.caller.next(ExecuteResponse)
        assert answer.status is ExecutionStatus.TIMEOUT
        signal = await server.next(Signal)
        assert (signal.signal_type, signal.execution_id) == (SignalName.TERMINATE, asked.execution_id)
        server.complete(number, asked, "too late")
        two.caller.send(request())
        _, again = await two.asked(server)
        assert again.execution_id != asked.execution_id


async def test_a_cancel_reaches_the_agent_over_there(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        server = await two.agent(two.other)
        sent = two.caller.send(request())
        _, asked = await two.asked(server)
        two.caller.send(Signal(SignalName.TERMINATE, execution_id=asked.execution_id))
        assert (await two.caller.next(ExecuteResponse, sent)).status is ExecutionStatus.CANCELLED
        assert (await server.next(Signal)).execution_id == asked.execution_id


async def test_a_neighbours_death_does_not_hang_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spearpool.worker.books.REATTACH_GRACE_S", 0.1)
    async with two_workers(tmp_path) as two:
        server = await two.agent(two.other)
        two.caller.send(request())
        await two.asked(server)
        two.die(two.other)
        answer = await two.caller.next(ExecuteResponse)
        assert (answer.status, answer.error_code) == (ExecutionStatus.FAILED, ErrorCode.OUTCOME_UNKNOWN)


async def test_a_neighbours_death_is_survived_when_the_agent_comes_over(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        _, name, token = two.pool.instance("echo")
        server = await agent(two.other, name, token)
        sent = two.caller.send(request())
        _, asked = await two.asked(server)
        two.die(two.other)
        server.abort()
        assert asked.execution_id is not UNSET
        back = await agent(two.origin, name, token, running=asked.execution_id)
        two.peers.append(back)
        back.complete(0, asked, "after all")
        assert (await two.caller.next(ExecuteResponse, sent)).output == "after all"


async def test_and_when_it_goes_to_a_third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spearpool.worker.books.REATTACH_GRACE_S", 0.5)
    async with two_workers(tmp_path) as two:
        third = await two.pool.worker()
        await two.pool.link(two.origin, third)
        _, name, token = two.pool.instance("echo")
        server = await agent(two.other, name, token)
        sent = two.caller.send(request())
        _, asked = await two.asked(server)
        two.die(two.other)
        server.abort()
        assert asked.execution_id is not UNSET
        back = await agent(third, name, token, running=asked.execution_id)
        two.peers.append(back)
        await asyncio.sleep(0.6)  # longer than the grace: the origin knows where it is
        back.complete(0, asked, "after all")
        assert (await two.caller.next(ExecuteResponse, sent)).output == "after all"


async def test_an_agent_of_a_living_neighbour_may_move_here(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        _, name, token = two.pool.instance("echo")
        server = await agent(two.other, name, token)
        sent = two.caller.send(request())
        _, asked = await two.asked(server)
        server.abort()
        assert asked.execution_id is not UNSET
        back = await agent(two.origin, name, token, running=asked.execution_id)
        two.peers.append(back)
        back.complete(0, asked, "here")
        assert (await two.caller.next(ExecuteResponse, sent)).output == "here"


async def test_the_origins_death_leaves_the_neighbour_serving(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        server = await two.agent(two.other)
        two.caller.send(request())
        number, asked = await two.asked(server)
        two.die(two.origin)
        await eventually_async(lambda: two.other.executions.links.get(two.origin.incarnation) is None)
        local = await client(two.other)
        two.peers.append(local)
        local.send(request(input=b"local"))
        server.complete(number, asked, "nobody hears it")
        number, asked = await two.asked(server)
        assert asked.input_data == b"local"
        server.complete(number, asked, "heard")
        assert (await local.next(ExecuteResponse)).output == "heard"


async def test_a_neighbour_that_leaves_is_not_given_work(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        server = await two.agent(two.other)
        two.other.seat.state = SeatState.LEAVING
        two.caller.send(request())
        await eventually_async(lambda: two.queued(two.origin) == 1)
        two.other.seat.state = SeatState.READY
        server.complete(*await two.asked(server), "when it stays")
        assert (await two.caller.next(ExecuteResponse)).output == "when it stays"


async def test_a_neighbour_that_does_not_read_is_not_given_work(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        server = await two.agent(two.other)
        link = two.origin.executions.links.to(two.other.incarnation)
        link.pause_writing()
        two.caller.send(request())
        await eventually_async(lambda: two.queued(two.origin) == 1)
        link.resume_writing()
        await two.asked(server)


async def test_the_queue_is_not_a_neighbours(tmp_path: Path) -> None:
    """A forwarded execution that meets a full house goes home, also when the house has a queue of its own."""
    async with two_workers(tmp_path) as two:
        local = await client(two.other)
        two.peers.append(local)
        local.send(request(input=b"local"))
        await eventually_async(lambda: two.queued(two.other) == 1)
        two.origin.executions.links.to(two.other.incarnation).forward(request(execution_id="0-7-1-99", hops=1))
        await asyncio.sleep(0.05)
        assert two.queued(two.other) == 1
        server = await two.agent(two.other)
        _, asked = await two.asked(server)
        assert asked.input_data == b"local"


async def test_errors_of_one_request_do_not_reach_another(tmp_path: Path) -> None:
    async with two_workers(tmp_path) as two:
        server = await two.agent(two.other)
        sent = two.caller.send(request())
        number, asked = await two.asked(server)
        link = two.other.executions.links.to(two.origin.incarnation)
        link.refuse(number, ErrorCode.OVERLOADED, "another's", "0-7-1-99")
        link.relay(ExecuteResponse("echo", ExecutionStatus.COMPLETED, "another's", execution_id="0-7-1-99"))
        server.complete(number, asked, "its own")
        answer = await two.caller.next(ExecuteResponse, sent)
        assert answer.output == "its own"
        assert not [payload for _, payload in two.caller.inbox if isinstance(payload, ErrorMessage)]
