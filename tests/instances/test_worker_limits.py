"""What is published of the limits that workers keep; they are played here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from spearpool.config import ResourceLimits
from spearpool.instances.worker_limits import Traffic, WorkerLimits
from spearpool.metrics.instances_table import LimitState
from spearpool.metrics.vocabulary import LimitLevel
from tests.instances.runtime_driver import House, housing, wire_agent

pytestmark = pytest.mark.process


class Bench:
    """An instance, and what the workers would say of it."""

    def __init__(self, house: House, limits: ResourceLimits) -> None:
        self.now = 100.0
        self.traffic = Traffic()
        self.house = house
        self.instance = house.create(wire_agent(), limits)
        self.limits = WorkerLimits(house.table, lambda _instance: self.traffic, lambda: self.now)

    def published(self) -> list[LimitState]:
        self.limits.publish(self.instance)
        return list(self.house.row(self.instance).limits)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with housing(tmp_path) as house:
        yield house


def test_without_these_limits_nothing_is_published(house: House) -> None:
    assert Bench(house, ResourceLimits()).published() == []


def test_time(house: House) -> None:
    bench = Bench(house, ResourceLimits(execution_timeout_s=2.5))
    assert bench.published() == [LimitState("execution_timeout_s", LimitLevel.WATCHED, 2.5, 0, 0)]
    bench.limits.overran(bench.instance)
    bench.limits.overran(bench.instance)
    assert bench.published() == [LimitState("execution_timeout_s", LimitLevel.WATCHED, 2.5, 0, 2)]


def test_traffic_is_told_as_a_rate_and_waits_as_breaches(house: House) -> None:
    bench = Bench(house, ResourceLimits(network_bytes_per_s=50_000))

    def seen(after_s: float, traffic: Traffic) -> tuple[float, int]:
        bench.now += after_s
        bench.traffic = traffic
        (limit,) = bench.published()
        assert (limit.name, limit.level, limit.value) == ("network_bytes_per_s", LimitLevel.ENFORCED, 50_000)
        return limit.usage, limit.breaches

    assert seen(0, Traffic()) == (0, 0)
    assert seen(2, Traffic(3000, 1)) == (1500, 1)
    assert seen(1, Traffic(8000, 5)) == (5000, 5)
    assert seen(1, Traffic(1000, 1)) == (0, 5), "a worker died, and its seat was cleared"
    assert seen(1, Traffic(1500, 3)) == (500, 7)
    bench.limits.forget(bench.instance)
    assert seen(0, Traffic(1500, 3)) == (0, 3)
    assert seen(0.001, Traffic(4500, 3)) == (0, 3), "of a moment's traffic nothing is concluded"
    assert seen(1.499, Traffic(6000, 4)) == (4000, 4)
