"""Two workers that hand connections to each other, beside a model of who owns what; they die between any two steps.

Whatever dies when: a connection has at most one owner, it is lost only with the worker that owned it, and in the books
opened − closed = open, in all and for each seat. The workers are real `Passage`s, their shell is played here; their
channel is a pair of queues that delivers as late as it likes, and what a dead worker had said is still read.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spearpool.worker.passage import (
    OFFER_TIMEOUT_S,
    Abandon,
    Action,
    Count,
    Discard,
    Keep,
    Offer,
    Passage,
    Ready,
    Reclaim,
    Release,
    Send,
    TakeIn,
    Word,
)

ENDLESS = 10**9


class Died(Exception):
    """The worker was killed here."""


@dataclass
class Seat:
    """The words of one seat, which outlive its occupants."""

    opened: int = 0
    closed: int = 0
    handed: Counter[int] = field(default_factory=Counter)


@dataclass(eq=False)
class Channel:
    """Words on their way, with the connection behind the descriptor of an offer. `open` tells which end still is."""

    queues: dict[int, deque[tuple[Word, str | None]]]
    open: dict[int, bool]


class Worker:
    """The occupant of a seat. `owned` are the connections that it may read and write; `descriptors` are duplicates."""

    def __init__(self, seat: int, seats: list[Seat]) -> None:
        self.seat = seat
        self.seats = seats
        self.alive = True
        self.owned: set[str] = set()
        self.resting: set[str] = set()  # offered: owned, and left alone
        self.disturbed: set[str] = set()  # offered, and not what it was then
        self.descriptors: dict[int, str] = {}
        self.passage = Passage()
        self.channel: Channel | None = None
        self.steps = ENDLESS
        self.other_dies_in = ENDLESS
        self.kill_other: Callable[[], None] = lambda: None
        self.fds = itertools.count(100)

    @property
    def book(self) -> Seat:
        return self.seats[self.seat]

    @property
    def other(self) -> int:
        return 1 - self.seat

    def step(self) -> None:
        """Before each thing that it does."""
        if not self.steps:
            raise Died
        self.steps -= 1
        if self.other_dies_in == 0:
            self.kill_other()
        self.other_dies_in -= 1

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            self.step()
            match action:
                case Send():
                    if not self.say(action):
                        self.perform(self.passage.unsent(action))
                        return
                case Ready(connection):
                    channel = self.channel
                    assert channel is not None
                    if not channel.open[self.other]:
                        continue
                    went_on = connection in self.disturbed
                    self.perform(self.passage.withdraw(connection) if went_on else self.passage.commit(connection))
                case Count():
                    self.book.handed[self.other] += 1
                case Release(connection):
                    self.owned.remove(connection)
                    self.settle(connection)
                case Keep(connection):
                    assert connection in self.owned
                    self.settle(connection)
                case Reclaim(connection):
                    assert connection in self.owned
                    self.settle(connection)
                    self.book.opened += 1
                case Abandon(connection):
                    self.owned.remove(connection)
                    self.settle(connection)
                    self.book.closed += 1
                case TakeIn(state, fd, counted):
                    connection = self.descriptors.pop(fd)
                    assert state == connection.encode()
                    self.owned.add(connection)
                    self.book.opened += not counted
                case Discard(fd):
                    del self.descriptors[fd]

    def settle(self, connection: str) -> None:
        self.resting.remove(connection)
        self.disturbed.discard(connection)

    def say(self, send: Send) -> bool:
        channel = self.channel
        if channel is None or not channel.open[self.other]:
            return False
        channel.queues[self.other].append((send.word, send.connection if isinstance(send.word, Offer) else None))
        return True

    def expire(self, now: float) -> None:
        for connection in self.passage.late(now):
            self.perform(self.passage.withdraw(connection))

    def open_offers(self) -> set[str]:
        return {offered.connection for offered in self.passage._offered.values()}

    def brought(self) -> set[str]:
        """Connections whose descriptors wait to be received."""
        if self.channel is None:
            return set()
        return {name for _, name in self.channel.queues[self.seat] if name is not None}

    def hear(self) -> bool:
        """One word, or the end; False when there is nothing to be heard."""
        channel = self.channel
        if channel is None:
            return False
        queue = channel.queues[self.seat]
        if queue:
            word, connection = queue.popleft()
            fd = None
            if connection is not None:
                fd = next(self.fds)
                self.descriptors[fd] = connection
            self.perform(self.passage.heard(word, fd))
        elif not channel.open[self.other]:
            self.channel = None
            self.perform(self.passage.ended(self.seats[self.other].handed[self.seat]))
        else:
            return False
        return True


class HandOverMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.seats = [Seat(), Seat()]
        self.names = (f"c{number}" for number in itertools.count())
        self.now = 0.0
        self.may_be_lost: set[str] = set()
        self.ended: set[str] = set()
        self.made: set[str] = set()
        self.workers = [Worker(seat, self.seats) for seat in (0, 1)]
        self.link()

    def link(self) -> None:
        """As the supervisor does it when both are ready."""
        channel = Channel({0: deque(), 1: deque()}, {0: True, 1: True})
        for worker in self.workers:
            while worker.hear():  # an earlier channel is over
                pass
            worker.channel = channel
            worker.passage = Passage(self.seats[worker.other].handed[worker.seat])

    def guarded(self, worker: Worker, what: object) -> None:
        """Let the worker do something; it may die within."""
        assert callable(what)
        try:
            what()
        except Died:
            self.kill(worker)

    def kill(self, worker: Worker) -> None:
        """The kernel closes what it had; the supervisor books it, by the words alone."""
        worker.alive = False
        if worker.channel is not None:
            worker.channel.open[worker.seat] = False
            worker.channel.queues[worker.seat].clear()
        self.book_crash(worker.seat)
        survivor = self.workers[worker.other]
        offered = worker.open_offers()
        arrived = set(survivor.descriptors.values()) | survivor.brought() if survivor.alive else set()
        self.may_be_lost |= worker.owned - (offered & arrived)  # these are the survivor's now
        self.may_be_lost |= self.unreachable() | (survivor.resting - survivor.open_offers())  # given to it already

    def book_crash(self, seat: int) -> None:
        self.seats[seat].closed += self.open_by_the_books(seat)

    def open_by_the_books(self, seat: int) -> int:
        own, other = self.seats[seat], self.seats[1 - seat]
        return own.opened - own.closed + other.handed[seat] - own.handed[1 - seat]

    def unreachable(self) -> set[str]:
        """Connections of which no living process has a descriptor, nor a word on its way brings one."""
        held: set[str] = set()
        for worker in self.workers:
            if worker.alive:
                held |= worker.owned | set(worker.descriptors.values()) | worker.brought()
        return self.made - self.ended - held

    # Rules

    @rule(seat=st.sampled_from([0, 1]))
    def connect(self, seat: int) -> None:
        worker = self.workers[seat]
        if worker.alive:
            name = next(self.names)
            self.made.add(name)
            worker.owned.add(name)
            worker.book.opened += 1

    @rule(seat=st.sampled_from([0, 1]), which=st.integers(0, 99))
    def offer(self, seat: int, which: int) -> None:
        worker = self.workers[seat]
        free = sorted(worker.owned - worker.resting)
        if worker.alive and worker.channel is not None and free and worker.passage.has_room:
            name = free[which % len(free)]
            worker.resting.add(name)
            self.guarded(worker, lambda: worker.perform(worker.passage.offer(name, name.encode(), self.now)))

    @rule(seat=st.sampled_from([0, 1]), times=st.integers(1, 5))
    def hear(self, seat: int, times: int) -> None:
        worker = self.workers[seat]
        for _ in range(times):
            if worker.alive:
                self.guarded(worker, worker.hear)

    @rule(seat=st.sampled_from([0, 1]))
    def something_happens_to_one_that_is_offered(self, seat: int) -> None:
        """A frame that cannot wait is written: what was offered is not true any more."""
        worker = self.workers[seat]
        if worker.alive and worker.resting:
            worker.disturbed.add(min(worker.resting))

    @rule(seat=st.sampled_from([0, 1]))
    def one_ends(self, seat: int) -> None:
        worker = self.workers[seat]
        if worker.alive and worker.owned:
            name = min(worker.owned)
            if name in worker.resting:
                self.guarded(worker, lambda: worker.perform(worker.passage.withdraw(name)))
            if worker.alive:
                worker.owned.remove(name)
                worker.book.closed += 1
                self.ended.add(name)

    @rule(seat=st.sampled_from([0, 1]))
    def time_passes(self, seat: int) -> None:
        self.now += OFFER_TIMEOUT_S / 2
        worker = self.workers[seat]
        if worker.alive:
            self.guarded(worker, lambda: worker.expire(self.now))

    @rule(seat=st.sampled_from([0, 1]), steps=st.integers(0, 8))
    def will_die_soon(self, seat: int, steps: int) -> None:
        self.workers[seat].steps = steps

    @rule(seat=st.sampled_from([0, 1]), steps=st.integers(0, 4))
    def will_see_the_other_die(self, seat: int, steps: int) -> None:
        """Between two steps of its own."""
        worker, other = self.workers[seat], self.workers[1 - seat]
        worker.other_dies_in = steps
        worker.kill_other = lambda: self.kill(other) if other.alive else None

    @rule(seat=st.sampled_from([0, 1]), times=st.integers(1, 3))
    def hands_over(self, seat: int, times: int) -> None:
        """From the first word to the last, if nobody dies."""
        for _ in range(times):
            self.connect(seat)
            self.offer(seat, 0)
            self.hear(1 - seat, 9)
            self.hear(seat, 9)
            self.hear(1 - seat, 9)

    @rule(seat=st.sampled_from([0, 1]))
    def is_killed(self, seat: int) -> None:
        if self.workers[seat].alive:
            self.kill(self.workers[seat])

    @rule(seat=st.sampled_from([0, 1]), accepted=st.booleans())
    def is_killed_with_an_open_offer(self, seat: int, accepted: bool) -> None:
        if all(worker.alive for worker in self.workers):
            self.connect(seat)
            self.offer(seat, 0)
            if accepted:
                self.hear(1 - seat, 5)
            self.is_killed(seat)

    @rule(seat=st.sampled_from([0, 1]))
    def leaves_the_channel(self, seat: int) -> None:
        """It stops, and its neighbour goes on."""
        worker = self.workers[seat]
        if worker.alive and worker.channel is not None:
            channel, worker.channel = worker.channel, None

            def close() -> None:
                channel.open[seat] = False
                channel.queues[seat].clear()
                worker.perform(worker.passage.close())

            self.guarded(worker, close)
            if not channel.open[worker.other]:
                self.may_be_lost |= (
                    self.unreachable()
                )  # it stops without having heard the other out, who was so much quicker

    @precondition(lambda self: not all(worker.alive for worker in self.workers))
    @rule()
    def heirs_come(self) -> None:
        """What the survivor is still to read, it reads before it meets the heir."""
        for worker in self.workers:
            worker.steps = worker.other_dies_in = ENDLESS
            while worker.alive and worker.hear():
                pass
        for seat, worker in enumerate(self.workers):
            if not worker.alive:
                self.book_crash(seat)  # what a survivor counted before it knew
                self.workers[seat] = Worker(seat, self.seats)
        self.link()

    # What holds at any time

    @invariant()
    def nobody_is_owned_twice(self) -> None:
        owned = [name for worker in self.workers if worker.alive for name in worker.owned]
        assert len(owned) == len(set(owned))

    @invariant()
    def nothing_is_lost_but_with_its_owner(self) -> None:
        assert self.unreachable() <= self.may_be_lost

    def teardown(self) -> None:
        """Let everything settle: then each connection has its owner, and the books know it."""
        for worker in self.workers:
            worker.steps = worker.other_dies_in = ENDLESS
        for _ in range(2):
            while sum(worker.hear() for worker in self.workers if worker.alive):
                pass
            self.now += 2 * OFFER_TIMEOUT_S
            for worker in self.workers:
                if worker.alive:
                    worker.expire(self.now)
        for seat, worker in enumerate(self.workers):
            if worker.alive:
                assert self.open_by_the_books(seat) == len(worker.owned)
                assert not worker.resting
                assert not worker.descriptors
            else:
                self.book_crash(seat)
                assert self.open_by_the_books(seat) == 0
        held = {name for worker in self.workers if worker.alive for name in worker.owned}
        assert self.made - self.ended - held <= self.may_be_lost


TestHandOver = HandOverMachine.TestCase
