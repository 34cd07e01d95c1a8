"""Two workers in one loop that hand connections to each other, under both loops; their peers notice nothing."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spearpool.config import ConnectionManagerConfig
from spearpool.metrics import SeatState
from spearpool.metrics.vocabulary import CLOSED, GAUGE
from spearpool.protocol.messages import ErrorMessage, ExecuteRequest, ExecuteResponse, Signal, SignalName
from spearpool.protocol.session import Side
from spearpool.worker.connection import Connection
from spearpool.worker.control import Claim, Released, RowCleared, SignalAgent
from spearpool.worker.main import new_event_loop
from spearpool.worker.passage import Accepted, Commit, Offer, PassageEnd, Refused, Withdrawn, Word, passage_end
from tests.conftest import eventually_async

from .peers import Peer, agent, client, request
from .workers import Pool, Worker, new_pool

new_event_loop().close()  # libuv keeps a pipe of its own for as long as the process lives: no test's leak

Scene = Callable[["Two"], Coroutine[object, object, None]]


class Two:
    """Two linked workers."""

    def __init__(self, pool: Pool, one: Worker, other: Worker) -> None:
        self.pool, self.one, self.other = pool, one, other

    def open_now(self) -> tuple[int, int]:
        """Connections by the books."""
        return self.one.seat.open_connections(), self.other.seat.open_connections()

    def handed_over(self) -> int:
        return self.one.mover.handover.handed_over + self.other.mover.handover.handed_over

    def balanced(self) -> bool:
        """Whether all books agree: nothing opened is missing, nothing is at two places."""
        workers = (self.one, self.other)
        opened = sum(worker.counter("connections_opened") for worker in workers)
        closed = sum(value for worker in workers for value in closings(worker))
        held = sum(len(worker.connections) for worker in workers)
        return opened - closed == sum(self.open_now()) == held


def closings(worker: Worker) -> list[int]:
    return [worker.seat.counters[place] for place in CLOSED]


def connections(worker: Worker) -> list[Connection]:
    return list(worker.connections)


def movable(connection: Connection) -> bool:
    return connection.at_rest and not connection.moving


def give(giver: Worker, taker: Worker, connection: Connection | None = None) -> None:
    connection = connection or connections(giver)[0]
    assert connection.at_rest
    if connection.agent is not None:
        giver.executions.dispatcher.agent_retired(connection.agent, for_good=False)
    assert giver.mover.handover.give(connection, taker.seat.index)


async def moved(giver: Worker, taker: Worker, connection: Connection | None = None) -> Connection:
    """Give one away, and wait until it has arrived."""
    number = (connection or connections(giver)[0]).number
    give(giver, taker, connection)
    await eventually_async(lambda: taker.connections.connection(number), interval_s=0.001)
    arrived = taker.connections.connection(number)
    assert arrived is not None
    return arrived


@pytest.fixture(params=["asyncio", "uvloop"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Scene], None]:
    """Runs a coroutine with two linked workers."""

    async def run(play: Scene) -> None:
        async with new_pool(tmp_path) as pool:
            one, other = await pool.worker(), await pool.worker(ConnectionManagerConfig(max_connections=20))
            await pool.link(one, other)
            await play(Two(pool, one, other))

    factory = asyncio.new_event_loop if request.param == "asyncio" else new_event_loop

    def start(play: Scene) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(run(play))

    return start


def gauge(worker: Worker, name: str) -> int:
    return int(worker.seat.gauges[GAUGE[name]])


async def still_works(peer: Peer, worker: Worker) -> None:
    """The peer is served, by this worker."""
    before = worker.counter("errors_404")
    peer.send(request("nobody"))
    assert (await peer.next(ErrorMessage)).error_code == 404
    assert worker.counter("errors_404") == before + 1


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    fillers = []
    try:
        while True:
            try:
                fillers.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for fd in fillers:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_moves_under_load(scene: Callable[[Scene], None]) -> None:
    """Nothing is lost, nothing comes twice, the order stays, and each peer keeps its one connection."""

    async def play(two: Two) -> None:
        _, name, token = two.pool.instance("echo")
        worker = await agent(two.one, name, token)
        serving = asyncio.create_task(worker.serve(lambda asked: f"{asked.args[0]}!"))
        clients = [await client(two.one, f"client-{n}") for n in range(8)]
        ports = [peer.port for peer in clients]
        over = False

        async def submit(peer: Peer) -> int:
            done = 0
            while not over:
                for burst in range(3):
                    peer.send(request(args=[f"{done + burst}"]))
                for burst in range(3):
                    answer = await peer.next(ExecuteResponse)
                    assert answer.output == f"{done + burst}!"
                done += 3
                if done % 30 == 0:
                    await asyncio.sleep(0.001)
            return done

        async def move() -> None:
            chance = random.Random(1)
            while two.handed_over() < 1000:
                for giver, taker in ((two.one, two.other), (two.other, two.one)):
                    ready = [connection for connection in connections(giver) if movable(connection)]
                    if ready:
                        give(giver, taker, chance.choice(ready))
                for _ in range(5):
                    await asyncio.sleep(0)

        submitting = [asyncio.create_task(submit(peer)) for peer in clients]
        await asyncio.wait_for(move(), 60)
        over = True
        done = sum(await asyncio.gather(*submitting))
        assert done > 1000
        await eventually_async(two.balanced)
        assert sum(two.open_now()) == 9
        assert [peer.port for peer in clients] == ports
        assert sum(w.executed("echo", "completed") for w in (two.one, two.other)) == done
        assert sum(w.counter("connections_opened") for w in (two.one, two.other)) == 9
        for peer in clients:
            peer.close()
        worker.close()
        await serving

    scene(play)


def test_an_agent_moves_with_its_row_and_its_capacity(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        instance, name, token = two.pool.instance("slow")
        worker = await agent(two.one, name, token, concurrency="1")
        connection = connections(two.one)[0]
        claim = two.one.records(Claim)[0]
        await moved(two.one, two.other)
        assert two.one.seat.agent(instance.row)[:3] == (instance.generation, 0, 0)
        assert two.other.seat.agent(instance.row)[:3] == (instance.generation, 1, 0)
        assert two.other.records(Claim) == [claim]
        assert not two.one.records(Released)
        assert connection.ended
        snapshots = [w.executions.dispatcher.snapshot().tasks["slow"] for w in (two.one, two.other)]
        assert [(snapshot.agents, snapshot.free) for snapshot in snapshots] == [(0, 0), (1, 2)]

        caller = await client(two.one)
        number = caller.send(request("slow", args=["x"]))
        there, asked = await worker.message()
        assert isinstance(asked, ExecuteRequest)
        two.other.executions.agents.signal(SignalAgent(instance.row, instance.generation, "Pause"))
        assert (await worker.next(Signal)).signal_type is SignalName.PAUSE
        worker.complete(there, asked, "done")
        assert (await caller.next(ExecuteResponse, number)).output == "done"

        two.other.executions.agents.row_cleared(RowCleared(instance.row, instance.generation))
        assert "row was cleared" in await worker.until_closed()
        caller.close()
        await eventually_async(two.balanced)

    scene(play)


def test_what_is_known_of_a_connection_goes_with_it(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        peer = await client(two.one)
        before = two.one.connections.snapshots()[0]
        connection = await moved(two.one, two.other)
        assert two.other.connections.snapshots() == [before]
        assert connection.authenticated_at < before.last_activity + 1
        assert len(two.one.connections) == 0
        assert [gauge(worker, "authenticated_now") for worker in (two.one, two.other)] == [0, 1]
        assert (two.one.counter("connections_opened"), two.other.counter("connections_opened")) == (1, 0)
        peer.close()
        await eventually_async(lambda: two.other.counter("connections_closed_peer") == 1)
        assert sum(closings(two.one)) == 0
        assert two.balanced()

    scene(play)


def test_half_a_frame_is_read_by_both_together(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        peer = await client(two.one)
        peer.session.send(request("nobody"))
        frame = peer.session.data_to_send()
        peer.send_raw(frame[:7])
        await peer.drain()
        await eventually_async(lambda: connections(two.one)[0].session.record().begun)
        await moved(two.one, two.other)
        peer.send_raw(frame[7:])
        assert (await peer.next(ErrorMessage)).error_code == 404
        peer.close()

    scene(play)


def test_what_arrives_while_it_moves_is_answered_by_the_other(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        peer = await client(two.one)
        await asyncio.sleep(0)
        give(two.one, two.other)
        peer.send(request("nobody"))
        assert (await peer.next(ErrorMessage)).error_code == 404
        assert two.other.counter("errors_404") == 1
        peer.close()

    scene(play)


def test_what_is_under_way_does_not_move(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        _, name, token = two.pool.instance("echo")
        worker, peer = await agent(two.one, name, token), await client(two.one)
        theirs, ours = connections(two.one)
        assert (theirs.at_rest, ours.at_rest) == (True, True)
        number = peer.send(request())
        there, asked = await worker.message()
        assert isinstance(asked, ExecuteRequest)
        assert (theirs.at_rest, ours.at_rest) == (False, False)
        worker.complete(there, asked, "x")
        await peer.next(ExecuteResponse, number)
        await eventually_async(lambda: theirs.at_rest and ours.at_rest)
        stranger = await Peer(Side.CLIENT).open(two.one.port)
        await eventually_async(lambda: len(two.one.connections) == 3)
        assert not connections(two.one)[2].at_rest
        for each in (worker, peer, stranger):
            each.abort()

    scene(play)


@pytest.mark.parametrize("why", ["it leaves", "it is full"])
def test_a_refused_offer_leaves_everything_as_it_was(scene: Callable[[Scene], None], why: str) -> None:
    async def play(two: Two) -> None:
        peer = await client(two.one)
        others = []
        if why == "it leaves":
            two.other.seat.state = SeatState.LEAVING
        else:
            others = [await client(two.other, f"{n}") for n in range(20)]
        connection = connections(two.one)[0]
        give(two.one, two.other)
        assert connection.moving
        await eventually_async(lambda: not connection.moving)
        await still_works(peer, two.one)
        for each in (peer, *others):
            each.close()
        await eventually_async(two.balanced)

    scene(play)


def test_no_descriptor_is_free(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        peer = await client(two.one)
        connection = connections(two.one)[0]
        with no_more_descriptors():
            give(two.one, two.other)
            await eventually_async(lambda: not connection.moving)
        await still_works(peer, two.one)
        await moved(two.one, two.other)
        peer.close()

    scene(play)


def test_an_ended_connection_is_not_given_away(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        peer = await client(two.one)
        give(two.one, two.other)
        two.one.connections.revoke(["client"])
        assert "revoked" in await peer.until_closed()
        await eventually_async(lambda: not two.one.mover.handover.busy and not two.other.mover.handover.busy)
        assert len(two.other.connections) == 0
        assert two.balanced()

    scene(play)


def test_what_was_revoked_on_the_way_is_closed_on_arrival(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        instance, name, token = two.pool.instance("echo")
        peer, worker = await client(two.one), await agent(two.one, name, token)
        two.other.connections.revoke(["client"])
        two.pool.table.close_row(instance.row)
        for connection in connections(two.one):
            give(two.one, two.other, connection)
        assert "revoked" in await peer.until_closed()
        assert "row was cleared" in await worker.until_closed()
        await eventually_async(two.balanced)
        assert not two.other.records(Claim)

    scene(play)


def test_of_two_connections_of_an_agent_the_newer_stays_wherever_it_comes_from(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        _, name, token = two.pool.instance("echo")
        older = await agent(two.one, name, token)
        newer = await agent(two.other, name, token)
        give(two.one, two.other)
        assert "newer connection" in await older.until_closed()
        assert two.other.executions.dispatcher.snapshot().tasks["echo"].agents == 1
        again = await agent(two.one, name, token)
        give(two.one, two.other)
        assert "newer connection" in await newer.until_closed()
        assert two.other.executions.dispatcher.snapshot().tasks["echo"].agents == 1
        again.close()
        await eventually_async(two.balanced)

    scene(play)


# ------------------------------------------------------------------------------------------------ a neighbour that dies


class Neighbour:
    """The test plays the worker in the seat of `two.other`, word by word."""

    def __init__(self, worker: Worker, seat: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end: PassageEnd = passage_end(ours)
        worker.mover.handover.open(seat, theirs.detach())

    async def hears(self) -> tuple[Word, list[int]]:
        """The next word, which comes with a descriptor if it is an offer."""
        received = await eventually_async(self.end.receive, interval_s=0.001)
        assert received is not None
        return received

    def dies(self) -> None:
        self.end.close()


def as_if_killed(worker: Worker) -> None:
    """Its descriptors are closed without a word, and the supervisor books what it had."""
    for line in list(worker.mover.handover._lines.values()):
        worker.mover.handover._hang_up(line)
    for connection in connections(worker):
        worker.connections.release(connection)
    worker.seat.book_crash()


async def offer(two: Two, neighbour: Neighbour) -> tuple[Offer, socket.socket]:
    give(two.one, two.other)
    word, (fd,) = await neighbour.hears()
    assert isinstance(word, Offer)
    return word, socket.socket(fileno=fd)


def test_the_taker_dies_before_it_has_accepted(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        neighbour = Neighbour(two.one, two.other.seat.index)
        peer = await client(two.one)
        _, sock = await offer(two, neighbour)
        sock.close()
        neighbour.dies()
        await still_works(peer, two.one)
        peer.close()
        await eventually_async(two.balanced)

    scene(play)


def test_the_taker_dies_when_it_has_accepted(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        neighbour = Neighbour(two.one, two.other.seat.index)
        peer = await client(two.one)
        word, sock = await offer(two, neighbour)
        neighbour.end.send(Accepted(word.number))
        sock.close()
        neighbour.dies()
        await still_works(peer, two.one)
        peer.close()
        await eventually_async(two.balanced)
        assert two.one.mover.handover.handed_over == 0

    scene(play)


def test_the_taker_does_not_answer_in_time(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        neighbour = Neighbour(two.one, two.other.seat.index)
        peer = await client(two.one)
        word, sock = await offer(two, neighbour)
        peer.send(request("nobody"))
        two.one.mover.start()
        assert await neighbour.hears() == (Withdrawn(word.number), [])
        sock.close()
        neighbour.end.send(Accepted(word.number))  # too late
        assert (await peer.next(ErrorMessage)).error_code == 404
        await still_works(peer, two.one)
        peer.close()
        await eventually_async(two.balanced)
        neighbour.dies()

    scene(play)


@pytest.mark.parametrize("last", ["offered", "counted", "committed"])
def test_the_giver_dies(scene: Callable[[Scene], None], last: str) -> None:
    """What it was just giving away lives on at the other, whatever it had said last; and all books agree."""

    async def play(two: Two) -> None:
        neighbour = Neighbour(two.one, two.other.seat.index)  # between the two: it can stop at any word
        heir = Neighbour(two.other, two.one.seat.index)
        peer = await client(two.one)
        word, sock = await offer(two, neighbour)
        with sock:
            heir.end.send(word, [sock.fileno()])
        if last != "offered":
            assert await heir.hears() == (Accepted(word.number), [])
            neighbour.end.send(Accepted(word.number))
            assert await neighbour.hears() == (Commit(word.number), [])
            if last == "committed":
                heir.end.send(Commit(word.number))
        as_if_killed(two.one)
        heir.dies()  # with the answer to the offer unread, if it was the last
        await still_works(peer, two.other)
        assert two.open_now() == (0, 1)
        peer.close()
        await eventually_async(lambda: two.open_now() == (0, 0))
        opened = sum(worker.counter("connections_opened") for worker in (two.one, two.other))
        assert opened == (2 if last == "offered" else 1)  # the crash was booked with what was only offered
        neighbour.dies()

    scene(play)


def test_who_stops_leaves_its_offers_to_the_other(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        peer = await client(two.one)
        give(two.one, two.other)
        two.one.mover.stop()
        await still_works(peer, two.other)
        assert two.one.counter("connections_closed_drain") == 1
        peer.close()
        await eventually_async(two.balanced)

    scene(play)


def test_a_new_neighbour_in_the_same_seat(scene: Callable[[Scene], None]) -> None:
    async def play(two: Two) -> None:
        neighbour = Neighbour(two.one, two.other.seat.index)
        peer = await client(two.one)
        word, sock = await offer(two, neighbour)
        sock.close()
        again = Neighbour(two.one, two.other.seat.index)
        await still_works(peer, two.one)
        word, sock = await offer(two, again)
        sock.close()
        again.end.send(Refused(word.number))
        await still_works(peer, two.one)
        assert two.one.mover.handover.loads.of([two.other.seat.index]) == {two.other.seat.index: 0}
        neighbour.dies()
        again.dies()
        peer.close()

    scene(play)
