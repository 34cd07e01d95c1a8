from __future__ import annotations

import math

from spearpool.supervisor.scaling_moves import InstanceReady, Observed, TaskPlan


def test_a_plan_asks_for_nothing_that_is_not_in_it() -> None:
    plan = TaskPlan(1, 2)
    assert (plan.warm_spare, plan.max_executions, plan.max_age_s, plan.max_memory_bytes) == (0, 0, 0.0, 0)
    assert plan.idle_timeout_s == math.inf


def test_moves_are_values() -> None:
    assert InstanceReady(1) == InstanceReady(1) != InstanceReady(2)
    assert Observed({}, {}).host_free_bytes == math.inf
