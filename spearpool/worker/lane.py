"""One task in one worker: its agents by how much they have to do, and the executions that wait for one.

Our clients' executions wait in `queue`; those of neighbours that came to find no place wait as `guests`.

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
    """`index` is the task's column on the board; `available` is False when nothing may wait for an instance now.

    `places` is what all agents together can have, `free` what of it is not in use, `published` our row of the board.
    Nobody elsewhere is in need while what waits here at the head was received before `fair_until`.
    """

    name: str
    index: int
    available: bool = True
    reason: str = ""
    places: int = 0
    free: int = 0
    agents: dict[Agent, None] = field(default_factory=dict)
    queue: OrderedDict[str, Execution] = field(default_factory=OrderedDict)
    guests: OrderedDict[str, Execution] = field(default_factory=OrderedDict)
    published: tuple[int, int, float] = (0, 0, 0.0)
    fair_until: float = 0.0
    _levels: list[dict[Agent, None]] = field(default_factory=lambda: [{}])

    def idlest(self) -> Agent | None:
        """The agent with the fewest executions among those that can take one more."""
        for level in self._levels:
            if level:
                return next(reversed(level))
        return None

    def since(self) -> float:
        """When the head of the queue, which must not be empty, was received."""
        return next(iter(self.queue.values())).received_at

    def join(self, agent: Agent) -> None:
        self.agents[agent] = None
        self._place(agent)
        self.places += agent.capacity
        self.free += max(0, agent.capacity - len(agent.running))

    def leave(self, agent: Agent) -> None:
        if agent in self.agents:
            del self.agents[agent]
            load = len(agent.running)
            if load < agent.capacity:
                del self._levels[load][agent]
            self.places -= agent.capacity
            self.free -= max(0, agent.capacity - load)

    def suspend(self, agent: Agent) -> None:
        """It keeps what it has and gets no more until `resume`."""
        capacity = agent.held or agent.capacity
        self.retire(agent)
        agent.held = capacity

    def resume(self, agent: Agent) -> None:
        """Go on with an agent that was suspended, unless it has been retired meanwhile, or is for another reason."""
        if agent in self.agents and agent.held and not (agent.parked or agent.paused):
            agent.capacity, agent.held = agent.held, 0
            self.join(agent)

    def retire(self, agent: Agent) -> None:
        """It keeps what it has and gets no more."""
        joined = agent in self.agents
        self.leave(agent)
        agent.capacity = agent.held = 0
        if joined:
            self.agents[agent] = None

    def hold(self, agent: Agent, execution_id: str, execution: Execution | None) -> None:
        """`execution_id` uses one place at the agent from now on."""
        load = len(agent.running)
        agent.running[execution_id] = execution
        if load < agent.capacity and agent in self.agents:
            del self._levels[load][agent]
            self.free -= 1
            self._place(agent)

    def release(self, agent: Agent, execution_id: str) -> Execution | None:
        """The place is free again; returns what `hold` was given. KeyError when the agent does not have that id."""
        execution = agent.running.pop(execution_id)
        load = len(agent.running)
        if load < agent.capacity and agent in self.agents:
            if load + 1 < agent.capacity:
                del self._levels[load + 1][agent]
            self.free += 1
            self._place(agent)
        return execution

    def _place(self, agent: Agent) -> None:
        load = len(agent.running)
        if load < agent.capacity:
            while len(self._levels) <= load:
                self._levels.append({})
            self._levels[load][agent] = None
