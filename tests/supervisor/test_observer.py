"""What is seen of instances and queues in a real segment; workers' seats are written by the test."""

from __future__ import annotations

import os

import pytest

from spearpool.metrics.rollup import Rollup
from spearpool.metrics.seat import Seat
from spearpool.supervisor.observer import Observer
from spearpool.supervisor.scaling_moves import Load
from tests.conftest import RuntimeEnv
from tests.supervisor.offices import AGENT, office


def test_work_is_seen_over_all_seats_and_of_living_instances_only(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT, "min_instances": 2}, "b": {"target": AGENT}}) as bench:
        bench.staff.tick()
        instances = dict(bench.staff._instances)
        first, other, second = sorted(instances, key=lambda number: (instances[number].task, number))[:3]
        assert [instances[number].task for number in (first, other, second)] == ["a", "a", "b"]
        observer = Observer(Rollup(bench.premises.segment))
        observer.follow(instances)
        assert observer.look("ab").loads == {"a": Load(0, 0), "b": Load(0, 0)}

        one, two = Seat(bench.premises.segment, 0), Seat(bench.premises.segment, 3)
        where = instances[first].id
        for seat, flying in ((one, 2), (two, 1)):
            seat.set_agent(where.row, where.generation, 1, flying)
            seat.count_execution(where.row, where.generation)
        one.set_agent(instances[second].id.row, 999, 1, 7)  # an earlier namesake's
        one.publish_capacity(bench.premises.segment.task_index("b"), 0, 3)
        two.publish_capacity(bench.premises.segment.task_index("b"), 0, 4)
        seen = observer.look("ab")
        assert seen.loads == {"a": Load(0, 3), "b": Load(7, 0)}
        assert seen.in_use == {first: 2}

        for seat in (one, two):
            seat.set_in_flight(where.row, where.generation, 0)
        assert observer.look("ab").in_use == {}
        one.count_execution(where.row, where.generation)  # begun and ended between two looks
        assert observer.look("ab").in_use == {first: 3}
        assert observer.look("ab").in_use == {}

        two.set_agent(where.row, where.generation + 1, 0, 0)  # a worker died, and with it what it had counted
        assert observer.look("ab").in_use == {}
        one.count_execution(where.row, where.generation)
        assert observer.look("ab").in_use == {first: 4}

        one.count_execution(where.row, where.generation)
        assert (observer.given(first), observer.given(other)) == (5, 0), "up to this moment"
        assert observer.look("ab").in_use == {first: 5}

        observer.follow({number: one for number, one in instances.items() if number != other})
        assert observer.look("ab").in_use == {}, "it is known how much it had been given"


def test_memory_is_measured_of_those_that_run(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        bench.ready()  # it is played by this very process
        observer = Observer(Rollup(bench.premises.segment))
        observer.follow(bench.staff._instances)
        observer.measure(bench.staff._instances.items())
        seen = observer.look("a")
        assert list(seen.memory_bytes) == list(bench.staff._instances)
        assert min(seen.memory_bytes.values()) > 2**20
        assert 0 < seen.host_free_bytes < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        observer.follow({})
        assert observer.look("a").memory_bytes == {}


@pytest.mark.parametrize("rows", [0, 300])
def test_any_number_of_instances(runtime_env: RuntimeEnv, rows: int) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        rollup = Rollup(bench.premises.segment)
        seat = Seat(bench.premises.segment, 1)
        for row in range(rows):
            seat.set_agent(row, row + 1, 1, row)
        sums = rollup.agents(range(rows), range(1, rows + 1))
        assert list(sums.in_flight) == list(range(rows))
