"""What `scaling` works with, out of the settings: a plan per task, and the budget of all of them."""

from __future__ import annotations

import math
import os

from spearpool.config import BudgetConfig, ResourceLimits, Settings, TaskConfig
from spearpool.errors import ConfigError
from spearpool.packing import replace

from .budget import Budget, Need
from .scaling_moves import TaskPlan

__all__ = ["budget_of", "check_budget", "need_of", "plan_of", "with_bounds"]


def plan_of(config: TaskConfig, limits: ResourceLimits, version: int = 0) -> TaskPlan:
    return TaskPlan(
        minimum=config.min_instances,
        maximum=config.most_instances,
        concurrency=config.concurrency,
        warm_spare=config.warm_spare,
        idle_timeout_s=config.idle_timeout_s,
        max_executions=config.max_executions,
        max_age_s=config.max_age_s,
        max_memory_bytes=config.max_memory_bytes,
        need=need_of(limits),
        version=version,
    )


def need_of(limits: ResourceLimits) -> Need:
    return Need(limits.memory_bytes or 0, limits.cpu_cores or 0.0)


def budget_of(config: BudgetConfig, rows: int) -> Budget:
    """`rows` is how many instances the instances table has room for. What is not set is what the host has."""
    memory_bytes = config.memory_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = config.cpu_cores or len(os.sched_getaffinity(0))
    return Budget(min(config.instances or math.inf, rows), memory_bytes, cores)


def check_budget(settings: Settings) -> None:
    """Raises `ConfigError` when a task's limits alone exceed the budget: no instance of it could ever be started."""
    budget = budget_of(settings.budget, 1)
    for name in settings.tasks:
        shortage = budget.shortage(need_of(settings.limits_of(name)))
        if shortage:
            raise ConfigError(
                f"tasks.{name}.limits", settings.tasks[name].target, f"limits within the budget ({shortage})"
            )


def with_bounds(config: TaskConfig, minimum: int, maximum: int) -> TaskConfig:
    """The task with other bounds. Raises `ConfigError`."""
    if not 0 <= minimum <= maximum or not maximum:
        raise ConfigError("instances", f"{minimum}..{maximum}", "MIN..MAX with 0 <= MIN <= MAX and MAX of 1 or more")
    return replace(config, min_instances=minimum, max_instances=maximum, warm_spare=min(config.warm_spare, maximum))
