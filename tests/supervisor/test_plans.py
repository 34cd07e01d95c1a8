from __future__ import annotations

import os

import pytest

from spearpool.config import BudgetConfig, ResourceLimits, Settings, TaskConfig
from spearpool.errors import ConfigError
from spearpool.supervisor.budget import Need
from spearpool.supervisor.plans import budget_of, check_budget, need_of, plan_of, with_bounds
from spearpool.supervisor.scaling_moves import TaskPlan


def test_a_plan_is_what_the_settings_say() -> None:
    config = TaskConfig(
        target="exec:cat",
        min_instances=1,
        max_instances=5,
        warm_spare=2,
        idle_timeout_s=7.0,
        max_executions=9,
        max_age_s=11.0,
        max_memory_bytes=13,
        concurrency=3,
    )
    limits = ResourceLimits(memory_bytes=2**20, cpu_cores=0.5)
    assert plan_of(config, limits, 4) == TaskPlan(1, 5, 3, 2, 7.0, 9, 11.0, 13, Need(2**20, 0.5), 4)


@pytest.mark.parametrize(
    ("least", "spare", "most", "meant"), [(0, 0, 0, 1), (1, 0, 0, 1), (3, 0, 0, 3), (1, 4, 0, 4), (1, 0, 8, 8)]
)
def test_without_a_maximum_there_are_as_many_as_the_minimum_and_at_least_one(
    least: int, spare: int, most: int, meant: int
) -> None:
    config = TaskConfig(target="exec:cat", min_instances=least, warm_spare=spare, max_instances=most)
    assert config.most_instances == meant


def test_what_is_not_set_is_the_hosts() -> None:
    cores, memory = len(os.sched_getaffinity(0)), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    budget = budget_of(BudgetConfig(), 1)
    assert budget.shortage(Need(memory, cores)) == ""
    assert "memory" in budget.shortage(Need(memory + 1, 0.0))
    assert "CPU" in budget.shortage(Need(0, cores + 0.5))
    budget.take(Need())
    assert "instances: all 1 places" in budget.shortage(Need())


def test_a_task_that_never_fits_is_a_mistake_in_the_configuration() -> None:
    tasks = {"x": TaskConfig(target="exec:cat", limits=ResourceLimits(memory_bytes=200))}
    check_budget(Settings(tasks=tasks, budget=BudgetConfig(memory_bytes=200)))
    with pytest.raises(ConfigError, match=r"tasks\.x\.limits = .*within the budget \(memory: 200 bytes are wanted"):
        check_budget(Settings(tasks=tasks, budget=BudgetConfig(memory_bytes=100)))


@pytest.mark.parametrize(("low", "high"), [(2, 1), (0, 0), (-1, 3)])
def test_bounds_that_make_no_sense(low: int, high: int) -> None:
    with pytest.raises(ConfigError, match=r"MIN\.\.MAX"):
        with_bounds(TaskConfig(target="exec:cat"), low, high)


def test_bounds_go_over_the_settings() -> None:
    config = with_bounds(TaskConfig(target="exec:cat", warm_spare=5, max_instances=9), 0, 3)
    assert (config.min_instances, config.most_instances, config.warm_spare) == (0, 3, 3)
    assert need_of(ResourceLimits()) == Need()
