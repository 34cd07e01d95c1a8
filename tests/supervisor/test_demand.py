from __future__ import annotations

import random

from spearpool.supervisor.demand import PATIENCE_S, Demand


def test_work_that_nobody_is_there_for_is_needed_at_once() -> None:
    demand = Demand(60.0)
    demand.observe(0.0, queued=1, in_flight=0, concurrency=1, living=0)
    assert demand.needed(0.0) == 1


def test_a_queue_that_passes_is_no_need_but_one_that_stands_is() -> None:
    demand = Demand(60.0)
    demand.observe(0.0, queued=5, in_flight=2, concurrency=1, living=2)
    assert demand.needed(0.0) == 2
    demand.observe(PATIENCE_S / 2, queued=0, in_flight=2, concurrency=1, living=2)
    demand.observe(PATIENCE_S, queued=5, in_flight=2, concurrency=1, living=2)
    assert demand.needed(PATIENCE_S) == 2, "another queue"
    demand.observe(2 * PATIENCE_S, queued=5, in_flight=2, concurrency=1, living=2)
    assert demand.needed(2 * PATIENCE_S) == 7


def test_concurrency_divides_what_is_needed() -> None:
    demand = Demand(60.0)
    for now in (0.0, 1.0):
        demand.observe(now, queued=3, in_flight=4, concurrency=4, living=1)
    assert demand.needed(1.0) == 2


def test_what_was_needed_is_kept_for_the_idle_time_and_no_longer() -> None:
    demand = Demand(10.0)
    demand.observe(0.0, 0, 4, 1, 4)
    demand.observe(5.0, 0, 2, 1, 4)
    demand.observe(9.9, 0, 0, 1, 4)
    assert [demand.needed(now) for now in (9.9, 10.0, 14.9, 15.0)] == [4, 2, 2, 0]
    demand.idle_timeout_s = 100.0
    assert demand.needed(16.0) == 0


def test_work_between_two_looks_counts() -> None:
    demand = Demand(10.0)
    demand.observe(0.0, 0, 0, 1, 3)
    demand.worked(0.0, 2)
    assert demand.needed(9.0) == 2


def test_against_the_plain_definition() -> None:
    """The sliding maximum of the heights seen, whatever comes in whatever order."""
    chance = random.Random(4)
    for _ in range(50):
        demand, heights = Demand(3.0), []
        for step in range(100):
            now, height = step * 0.25, chance.randrange(6)
            demand.observe(now, 0, height, 1, 6)
            heights.append((now, height))
            assert demand.needed(now) == max(seen for at, seen in heights if at > now - 3.0)
