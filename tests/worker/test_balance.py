"""What balance promises: pure decisions, and a pool of workers in simulated time that carries them out."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spearpool.worker.balance import PATIENCE_S, SETTLED_S, STEADY_S, Balance, Standing, farewells, shares

LOOK_S = 0.1
loads_by_seat = st.dictionaries(st.integers(0, 31), st.integers(0, 60), min_size=1, max_size=16)


# ------------------------------------------------------------------------------------------------- who gives what


@pytest.mark.parametrize(
    ("loads", "given"),
    [
        ({0: 5}, {}),
        ({0: 5, 2: 4}, {}),
        ({0: 5, 2: 3}, {0: {2: 1}}),
        ({0: 0, 2: 9}, {2: {0: 4}}),
        ({0: 4, 2: 4, 4: 4, 6: 1}, {2: {6: 1}, 4: {6: 1}}),  # 4 3 3 3: the first of those with most keeps more
        ({0: 10, 2: 9, 4: 2, 6: 2}, {0: {4: 4}, 2: {6: 3}}),
        ({0: 1, 2: 9, 4: 9, 6: 1}, {2: {0: 4}, 4: {6: 4}}),
    ],
)
def test_shares(loads: dict[int, int], given: dict[int, dict[int, int]]) -> None:
    assert {seat: share for seat in loads if (share := shares(loads, seat))} == given


def fewest_moves(loads: dict[int, int]) -> int:
    least, rest = divmod(sum(loads.values()), len(loads))
    due = sorted((least + (rank < rest) for rank in range(len(loads))), reverse=True)
    return sum(max(0, have - keep) for have, keep in zip(sorted(loads.values(), reverse=True), due, strict=True))


@given(loads_by_seat)
def test_all_parts_together_even_it_out_with_the_fewest_moves(loads: dict[int, int]) -> None:
    after, moves = dict(loads), 0
    for giver, load in loads.items():
        for seat, count in shares(loads, giver).items():
            after[giver] -= count
            after[seat] += count
            moves += count
            assert count > 0
            assert load - loads[seat] >= 2
    assert max(after.values()) - min(after.values()) <= 1
    assert moves == fewest_moves(loads)


@given(loads_by_seat, st.randoms(use_true_random=False))
def test_in_whatever_order_and_however_far_they_get_no_move_is_wasted(
    loads: dict[int, int], chance: random.Random
) -> None:
    after, moves = dict(loads), 0
    while max(after.values()) - min(after.values()) > 1:
        giver = chance.choice(sorted(after))
        for seat, count in shares(after, giver).items():
            done = chance.randint(0, count)
            after[giver] -= done
            after[seat] += done
            moves += done
    assert moves == fewest_moves(loads)


def test_who_leaves_fills_up_the_others() -> None:
    assert farewells({0: 3, 4: 1, 6: 1}, 2, 5) == [4, 6, 4, 6, 4]
    assert farewells({0: 1, 4: 1}, 2, 3) == [4, 0, 4]
    assert farewells({}, 2, 3) == []
    assert farewells({0: 1}, 2, 0) == []


# --------------------------------------------------------------------------------------------------- when it does


def standings(*loads: int) -> list[Standing]:
    return [Standing(2 * slot, load) for slot, load in enumerate(loads)]


def test_waits_until_the_number_is_steady() -> None:
    balance = Balance(0)
    assert balance.look(standings(4, 0), 0.0) == {}
    assert balance.look(standings(6, 0), STEADY_S) == {}
    assert balance.look(standings(8, 0), 2 * STEADY_S) == {}
    assert balance.look(standings(8, 0), 3 * STEADY_S - 0.01) == {}
    assert balance.look(standings(8, 0), 3 * STEADY_S) == {2: 4}
    assert balance.look(standings(4, 4), 3 * STEADY_S) == {}
    assert balance.look(standings(2, 6), 3 * STEADY_S) == {}
    assert balance.look(standings(6, 2), 3 * STEADY_S) == {2: 2}  # still the same number


def test_waits_no_longer_than_its_patience() -> None:
    balance = Balance(0)
    acted = [step for step in range(100) if balance.look(standings(10 + step, 0), step * LOOK_S)]
    assert acted
    assert acted[0] * LOOK_S == pytest.approx(PATIENCE_S)
    assert all((later - sooner) * LOOK_S >= PATIENCE_S - 1e-9 for sooner, later in itertools.pairwise(acted))


def test_leaving_is_for_those_that_stay() -> None:
    balance = Balance(0)
    assert balance.leave(standings(9, 2, 0), 4) == [4, 4, 2, 4]
    assert balance.leave(standings(9), 4) == []


# ------------------------------------------------------------------------------------------------------ a whole pool


@dataclass(eq=False)
class Resident:
    """A simulated connection. `times` counts its moves."""

    since: float
    times: int = 0


@dataclass(eq=False)
class Worker:
    """`phase` is when it first looks. Its words are those of `metrics.loads`."""

    seat: int
    balance: Balance
    ready: bool = True
    leaving: bool = False
    residents: list[Resident] = field(default_factory=list)
    settled: set[Resident] = field(default_factory=set)
    sent: dict[int, int] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)


class Pool:
    """Workers that look at the loads at their own times; what they give away is on its way for a random while."""

    def __init__(self, count: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.moves = 0
        self.refusing = 0.02
        self.workers: dict[int, Worker] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        for slot in range(count):
            self.join(2 * slot)

    def join(self, seat: int) -> Worker:
        worker = self.workers[seat] = Worker(seat, Balance(seat))
        for other in self.workers.values():
            other.sent.pop(seat, None)
            other.received.pop(seat, None)
        self._at(self.now + self.random.random() * LOOK_S, lambda: self._look(worker))
        return worker

    def connect(self, worker: Worker) -> Resident:
        resident = Resident(self.now)
        worker.residents.append(resident)
        return resident

    def disconnect(self, worker: Worker, resident: Resident) -> None:
        worker.residents.remove(resident)
        worker.settled.discard(resident)

    def die(self, worker: Worker) -> None:
        worker.ready = False
        del self.workers[worker.seat]

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = end

    @property
    def serving(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.ready and not worker.leaving]

    def held(self) -> dict[int, int]:
        return {worker.seat: len(worker.residents) for worker in self.serving}

    def even(self) -> bool:
        held = self.held().values()
        return max(held) - min(held) <= 1

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _load(self, worker: Worker) -> int:
        coming = sum(
            max(0, other.sent.get(worker.seat, 0) - worker.received.get(other.seat, 0))
            for other in self.workers.values()
        )
        return len(worker.settled) + coming

    def _look(self, worker: Worker) -> None:
        if not worker.ready:
            return
        self._at(self.now + LOOK_S, lambda: self._look(worker))
        old = {resident for resident in worker.residents if self.now - resident.since >= SETTLED_S}
        worker.settled |= old
        shown = [Standing(other.seat, self._load(other)) for other in self.serving]
        if worker.leaving:
            for seat, resident in zip(
                worker.balance.leave(shown, len(worker.residents)), list(worker.residents), strict=False
            ):
                self._give(worker, seat, resident)
            return
        for seat, count in worker.balance.look(shown, self.now).items():
            for resident in [each for each in worker.residents if each in old][:count]:
                self._give(worker, seat, resident)

    def _give(self, giver: Worker, seat: int, resident: Resident) -> None:
        assert giver.leaving or self.now - resident.since >= SETTLED_S
        giver.sent[seat] = giver.sent.get(seat, 0) + 1
        self.disconnect(giver, resident)
        self._at(self.now + self.random.expovariate(200), lambda: self._take(giver, seat, resident))

    def _take(self, giver: Worker, seat: int, resident: Resident) -> None:
        taker = self.workers.get(seat)
        if taker is None or taker.leaving or self.random.random() < self.refusing:  # refused, or dead
            giver.residents.append(resident)
            giver.settled.add(resident)
            if taker is not None:
                giver.sent[seat] -= 1
            return
        taker.residents.append(resident)
        taker.settled.add(resident)
        taker.received[giver.seat] = taker.received.get(giver.seat, 0) + 1
        resident.times += 1
        self.moves += 1


@settings(max_examples=60)
@given(st.integers(2, 16), st.integers(1, 400), st.integers(0, 2**32), st.floats(0.0, 0.8))
def test_a_burst_is_even_two_seconds_after_the_last_connect(count: int, many: int, seed: int, spread_s: float) -> None:
    pool = Pool(count, seed)
    connected = []
    for _ in range(many):
        pool.run(pool.random.random() * 2 * spread_s / many)
        connected.append(pool.connect(pool.random.choice(pool.serving)))
    needed = fewest_moves(pool.held())
    pool.run(2.0)
    assert pool.even()
    assert pool.moves <= 1.5 * needed
    assert all(resident.times <= 1 for resident in connected)  # no ping-pong
    pool.run(20.0)
    assert pool.moves <= needed + 2  # refused ones may have been too much for somebody by then


@pytest.mark.parametrize("many", [64, 400])
def test_eight_workers(many: int) -> None:
    for seed in range(20):
        pool = Pool(8, seed)
        for _ in range(many):
            pool.connect(pool.random.choice(pool.serving))
        needed = fewest_moves(pool.held())
        pool.run(2.0)
        held = pool.held().values()
        assert max(held) / (sum(held) / 8) <= 1.2
        assert pool.moves <= 1.5 * needed


@settings(max_examples=40)
@given(st.integers(2, 16), st.integers(0, 2**32))
def test_short_lived_ones_neither_move_nor_hold_up_the_others(count: int, seed: int) -> None:
    pool = Pool(count, seed)
    crowded = pool.serving[0]
    lasting = [pool.connect(crowded) for _ in range(3 * count)]
    for _ in range(600):
        worker = pool.random.choice(pool.serving)
        passing = pool.connect(worker)
        pool.run(0.005)
        pool.disconnect(worker, passing)
    where = {worker.seat: sum(one in lasting for one in worker.residents) for worker in pool.serving}
    assert set(where.values()) == {3}
    assert pool.moves <= 1.5 * 3 * (count - 1)


@settings(max_examples=40)
@given(st.integers(3, 16), st.integers(0, 2**32))
def test_who_leaves_is_emptied_at_once_and_gets_nothing(count: int, seed: int) -> None:
    pool = Pool(count, seed)
    for _ in range(10 * count):
        pool.connect(pool.random.choice(pool.serving))
    pool.run(pool.random.random() * 2)
    pool.refusing = 0.0
    leavers = pool.random.sample(pool.serving, pool.random.randint(1, count - 1))
    for leaver in leavers:
        leaver.leaving = True
    pool.run(1.0)
    assert not any(leaver.residents for leaver in leavers)
    pool.run(2.0)
    assert sum(pool.held().values()) == 10 * count
    assert pool.even()


@settings(max_examples=40)
@given(st.integers(2, 12), st.integers(0, 2**32))
def test_however_workers_come_and_die_it_is_even_in_the_end(count: int, seed: int) -> None:
    pool = Pool(count, seed)
    chance = pool.random
    for _ in range(200):
        pool.run(chance.expovariate(20))
        worker = chance.choice(pool.serving)
        match chance.randrange(20):
            case 0 if len(pool.workers) > 1:
                pool.die(worker)
                pool.join(worker.seat ^ 1)
            case 1 | 2 | 3 if worker.residents:
                pool.disconnect(worker, chance.choice(worker.residents))
            case _:
                pool.connect(worker)
    before = pool.moves
    needed_at_most = sum(pool.held().values())
    pool.run(2.0)
    assert pool.even()
    assert pool.moves - before <= needed_at_most
    settled = pool.moves
    pool.run(30.0)
    assert pool.moves == settled
