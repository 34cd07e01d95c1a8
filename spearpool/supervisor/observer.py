"""Looks at the shared memory for what `scaling` decides by: what waits, what runs, and which instances have worked.

A look costs a few numpy operations, whatever the number of instances; Python code runs only for those in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from spearpool.instances.instance import Instance
from spearpool.metrics.rollup import Rollup
from spearpool.processes import host_free_bytes, private_bytes

from .scaling_moves import Load, Observed

__all__ = ["Observer"]


@dataclass(slots=True)
class _Roll:
    """The instances that are looked at: parallel lists. `counted` is what the seats said at the last look of how many
    executions each was given, `given` how many it was: a dead worker's seat starts from zero again."""

    numbers: list[int]
    tasks: list[str]
    rows: list[int]
    generations: list[int]
    counted: list[int]
    given: list[int]


class Observer:
    """`instances` are looked at from `follow` on, under the numbers that `scaling` knows them by."""

    def __init__(self, rollup: Rollup) -> None:
        self._rollup = rollup
        self._roll = _Roll([], [], [], [], [], [])
        self._memory: dict[int, int] = {}
        self._host_free = host_free_bytes()

    def follow(self, instances: Mapping[int, Instance]) -> None:
        """Look at these from now on."""
        before = self._roll
        known = dict(zip(before.numbers, zip(before.counted, before.given, strict=True), strict=True))
        counts = [known.get(number, (0, 0)) for number in instances]
        self._roll = _Roll(
            list(instances),
            [instance.task for instance in instances.values()],
            [instance.id.row for instance in instances.values()],
            [instance.id.generation for instance in instances.values()],
            [counted for counted, _ in counts],
            [given for _, given in counts],
        )
        self._memory = {number: held for number, held in self._memory.items() if number in instances}

    def measure(self, instances: Iterable[tuple[int, Instance]]) -> None:
        """See how much memory these hold, and how much the host has left. For about once a second."""
        self._host_free = host_free_bytes()
        self._memory = {
            number: private_bytes(instance.identity.pid)
            for number, instance in instances
            if instance.identity is not None
        }

    def given(self, number: int) -> int:
        """How many executions an instance has been given in its life, up to now."""
        roll = self._roll
        place = roll.numbers.index(number)
        (counted,) = self._rollup.agents([roll.rows[place]], [roll.generations[place]]).executions
        return roll.given[place] + max(0, counted - roll.counted[place])

    def look(self, tasks: Iterable[str]) -> Observed:
        """How it stands with these tasks."""
        roll = self._roll
        sums = self._rollup.agents(roll.rows, roll.generations)
        in_flight = dict.fromkeys((*tasks, *roll.tasks), 0)
        in_use: dict[int, int] = {}
        for place, (flying, counted, before) in enumerate(
            zip(sums.in_flight, sums.executions, roll.counted, strict=True)
        ):
            grown = max(0, counted - before)
            if flying or grown:
                roll.given[place] += grown
                in_use[roll.numbers[place]] = roll.given[place]
                in_flight[roll.tasks[place]] += flying
        roll.counted = list(sums.executions)
        queued = self._rollup.queued()
        loads = {task: Load(queued.get(task, 0), flying) for task, flying in in_flight.items()}
        return Observed(loads, in_use, self._memory, self._host_free)
