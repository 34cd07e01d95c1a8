"""Who counts for what, of a task's instances."""

from __future__ import annotations

import pytest

from spearpool.backoff import Breaker
from spearpool.supervisor.demand import Demand
from spearpool.supervisor.members import Member, Task
from spearpool.supervisor.scaling_moves import TaskPlan


def task_of(*members: dict[str, object], maximum: int = 3) -> Task:
    task = Task("t", TaskPlan(1, maximum, max_age_s=100.0), Breaker(), Demand(60.0), start_at=0.0)
    for number, fields in enumerate(members):
        task.members[number] = Member(number, task, task.plan, **fields)  # type: ignore[arg-type]
    return task


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, (1, 0, 1, 0, 0)),
        ({"ready_at": 1.0}, (0, 1, 1, 0, 1)),
        ({"ready_at": 1.0, "busy": True}, (0, 1, 1, 0, 0)),
        ({"ready_at": 1.0, "paused": True}, (0, 1, 0, 0, 0)),
        ({"ready_at": 1.0, "cause": "old"}, (0, 1, 0, 1, 0)),
        ({"ready_at": 1.0, "cause": "old", "retiring": True}, (0, 0, 0, 0, 0)),
    ],
)
def test_what_one_instance_counts_as(fields: dict[str, object], counts: tuple[int, ...]) -> None:
    task = task_of(fields)
    found = (task.starting, task.ready, task.serving, len(task.outgoing), len(task.idle()))
    assert found == counts
    assert len(task.working()) == bool(fields.get("busy"))
    assert len(task.paused()) == bool(fields.get("paused"))


@pytest.mark.parametrize(
    ("members", "maximum", "lacks"),
    [
        ([], 1, True),
        ([{"ready_at": 1.0}], 2, False),
        ([{"ready_at": 1.0, "paused": True}], 2, True),
        ([{"ready_at": 1.0, "paused": True}], 1, False),
        ([{"ready_at": 1.0, "cause": "old"}], 1, True),
        ([{"ready_at": 1.0, "cause": "old"}, {}], 1, False),
    ],
)
def test_whether_one_is_lacking(members: list[dict[str, object]], maximum: int, lacks: bool) -> None:
    task = task_of(*members, maximum=maximum)
    task.wanted = 1
    assert task.lacks_one == lacks


def test_who_is_due() -> None:
    task = task_of({"ready_at": 0.0}, {"ready_at": 0.0, "paused": True})
    ordinary, paused = task.members.values()
    assert "max_age_s = 100" in ordinary.due(100.0)
    assert paused.due(100.0) == ""
    task.plan = TaskPlan(1, 3, version=1)
    assert ordinary.due(0.0) == paused.due(0.0) == "its task was reloaded"
