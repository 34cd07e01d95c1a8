"""What many dispatchers make of scarce capacity together, in simulated time: fair, busy, and without needless hops."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import pytest

from spearpool.worker.executions import Dispatch, Forward, Nudge, Unused

from .simulation import SimulatedPool

WORKERS = 8
DELAY_S = 0.000_3

Seconds = Callable[[], float]


def new_pool(delay_s: float = DELAY_S) -> SimulatedPool:
    return SimulatedPool(WORKERS, delay_s)


def constant(seconds: float) -> Seconds:
    return lambda: seconds


def measure(pool: SimulatedPool, warm_up_s: float = 0.5, seconds: float = 1.0) -> None:
    pool.run(warm_up_s)
    pool.forget()
    pool.run(seconds)


@pytest.mark.parametrize("delay_s", [0.000_1, 0.001], ids=["quick links", "slow links"])
@pytest.mark.parametrize(
    ("hosts", "places", "service_s", "clients"),
    [(1, 1, 0.000_1, 64), (1, 2, 0.001, 16), (2, 2, 0.001, 16), (2, 1, 0.01, 4)],
    ids=["one place, short", "one host", "two hosts", "long"],
)
def test_all_queues_wait_alike_and_no_place_is_idle(
    hosts: int, places: int, service_s: float, clients: int, delay_s: float
) -> None:
    """Instances at one or two of eight workers, clients at all that never stop: once the others starved."""
    pool = new_pool(delay_s)
    for worker in pool.workers[:hosts]:
        pool.add_agent(worker, places, constant(service_s))
    for worker in pool.workers:
        pool.add_clients(worker, clients)
    measure(pool)
    waits = pool.mean_waits()
    assert len(waits) == WORKERS
    assert max(waits) < 2 * fmean(waits)
    assert max(max(worker.waits) for worker in pool.workers) < 2 * fmean(waits)
    assert pool.utilisation(1.0) > 0.99
    assert pool.bounced <= 0.01 * pool.said[Forward]
    assert pool.said[Unused] <= 0.01 * pool.said[Nudge]


def test_a_short_queue_does_not_starve_beside_long_ones() -> None:
    """Two workers get more than there is capacity for, the others a little: all wait for the same time."""
    pool = new_pool()
    pool.add_agent(pool.workers[0], 2, pool.around(0.001))
    for worker, rate in zip(pool.workers, (1200, 900, 5, 5, 5, 5, 5, 5), strict=True):
        pool.add_arrivals(worker, rate)
    measure(pool, 1.0, 2.0)
    busy, *_ = waits = pool.mean_waits()
    assert len(waits) == WORKERS
    assert max(waits) < 1.5 * busy
    assert pool.utilisation(2.0) > 0.99


def test_who_has_instances_of_its_own_keeps_its_work() -> None:
    pool = new_pool()
    for worker in pool.workers:
        pool.add_agent(worker, 1, pool.around(0.000_2))
        pool.add_clients(worker, 16)
    measure(pool, 0.2, 0.5)
    assert pool.said[Forward] <= 0.01 * pool.said[Dispatch]
    assert pool.utilisation(0.5) > 0.99


def test_a_hung_worker_costs_nothing() -> None:
    pool = new_pool()
    host, hung = pool.workers[0], pool.workers[3]
    pool.add_agent(host, 2, constant(0.000_2))
    for worker in pool.workers:
        pool.add_clients(worker, 32)
    pool.run(0.5)
    pool.hang(hung, 0.5)
    measure(pool, 0.1, 0.4)
    assert not hung.waits
    assert pool.utilisation(0.4) > 0.99
    waits = pool.mean_waits()
    assert max(waits) < 2 * fmean(waits)
    measure(pool, 0.2, 0.5)
    waits = pool.mean_waits()
    assert len(waits) == WORKERS
    assert max(waits) < 2 * fmean(waits)
    assert pool.bounced <= 0.01 * pool.said[Forward]


@pytest.mark.parametrize("load", [0.5, 0.8, 0.95])
@pytest.mark.parametrize(
    ("service_s", "delay_s"),
    [(0.002, 0.000_3), (0.000_2, 0.000_3), (0.002, 0.02)],
    ids=["steady", "links slower than the work", "large payloads"],
)
def test_hops_are_not_made_twice(load: float, service_s: float, delay_s: float) -> None:
    """All comes to workers without instances: what is on its way is not sent again for a row that is out of date."""
    pool = new_pool(delay_s)
    hosts, others = pool.workers[:2], pool.workers[2:]
    for worker in hosts:
        pool.add_agent(worker, 4, pool.around(service_s))
    for worker in others:
        pool.add_arrivals(worker, load * 8 / service_s / len(others))
    measure(pool, 0.2, 0.5)
    assert pool.said[Forward] > 100
    assert pool.bounced <= 0.05 * pool.said[Forward]
