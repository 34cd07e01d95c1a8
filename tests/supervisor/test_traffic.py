from __future__ import annotations

from spearpool.instances.worker_limits import Traffic
from spearpool.metrics.seat import Seat
from spearpool.protocol.identifiers import InstanceId
from spearpool.supervisor.traffic import TrafficCount
from tests.conftest import RuntimeEnv
from tests.supervisor.offices import AGENT, office


def test_adds_up_what_each_worker_has_counted_of_this_very_instance(runtime_env: RuntimeEnv) -> None:
    with office(runtime_env, tasks={"a": {"target": AGENT}}) as bench:
        count = TrafficCount(bench.premises.segment)
        assert count(InstanceId(3, 2)) == Traffic(0, 0)
        for index, (generation, size, waits) in enumerate([(2, 100, 1), (2, 50, 2), (1, 999, 9)]):
            seat = Seat(bench.premises.segment, index)
            seat.set_agent(3, generation, 1, 0)
            seat.count_traffic(3, generation, size, waits)
        assert count(InstanceId(3, 2)) == Traffic(150, 3)
