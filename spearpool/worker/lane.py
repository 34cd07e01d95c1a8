"""One task in one worker: its agents by how much they have to do, and the executions that wait for one.

All operations are O(1): agents with free capacity stand in `_levels[k]`, k being how many executions they hold. The one
that was used last comes first (its caches are warm, and whoever is to be retired is the one that was idle longest).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from .executions import Agent, Execution

__all__ = ["Lane"]


@dataclass(slots=True, eq=False)
class Lane:
    """`index` is the task's column on the board; `available` is False when nothing may wait for an instance now."""

    name: str
    index: int
    available: bool = True
    reason: str = ""
    free: int = 0
    agents: dict[Agent, None] = field(default_factory=dict)
    queue: OrderedDict[str, Execution] = field(default_factory=OrderedDict)
    published: tuple[int, int] = (0, 0)
    _levels: list[dict[Agent, None]] = field(default_factory=lambda: [{}])

    def idlest(self) -> Agent | None:
        """The agent with the fewest executions among those that can take one more."""
        for level in self._levels:
            if level:
                return next(reversed(level))
        return None

    def join(self, agent: Agent) -> None:
        self.agents[agent] = None
        self._place(agent)
        self.free += max(0, agent.capacity - len(agent.running))

    def leave(self, agent: Agent) -> None:
        if agent in self.agents:
            del self.agents[agent]
            self._take_out(agent)
            self.free -= max(0, agent.capacity - len(agent.running))

    def retire(self, agent: Agent) -> None:
        """It keeps what it has and gets no more."""
        joined = agent in self.agents
        self.leave(agent)
        agent.capacity = 0
        if joined:
            self.agents[agent] = None

    def hold(self, agent: Agent, execution_id: str, execution: Execution | None) -> None:
        """`execution_id` uses one place at the agent from now on."""
        if agent in self.agents:
            self._take_out(agent)
            self.free -= len(agent.running) < agent.capacity
        agent.running[execution_id] = execution
        if agent in self.agents:
            self._place(agent)

    def release(self, agent: Agent, execution_id: str) -> Execution | None:
        """The place is free again; returns what `hold` was given. KeyError when the agent does not have that id."""
        joined = agent in self.agents
        if joined:
            self._take_out(agent)
        execution = agent.running.pop(execution_id)
        if joined:
            self.free += len(agent.running) < agent.capacity
            self._place(agent)
        return execution

    def _place(self, agent: Agent) -> None:
        load = len(agent.running)
        if load < agent.capacity:
            while len(self._levels) <= load:
                self._levels.append({})
            self._levels[load][agent] = None

    def _take_out(self, agent: Agent) -> None:
        load = len(agent.running)
        if load < agent.capacity:
            del self._levels[load][agent]
